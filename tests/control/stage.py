"""The loop with a clock and a cluster that the test plays."""

from modelmill.control.deployments import Deployments
from modelmill.control.reconciler.canary import Tally
from modelmill.control.reconciler.launcher import Launcher
from modelmill.control.reconciler.loop import NodeLimits, Reconciler
from modelmill.control.reconciler.scaling import Signals
from tests.control.fakes import FakeCluster

CALLED = Signals(waiting=1, oldest=0.01)
SLOW = Signals(waiting=9, oldest=5.0, busy=1)


class Clock:
    """Time as the test says."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Stage:
    """The loop with a clock and a cluster that the test plays."""

    def __init__(
        self, database, registry, project, folder, clock, cores=8, budget=0
    ):
        self.database = database
        self.registry = registry
        self.project = project
        self.clock = clock
        self.wanted = Deployments(database, registry)
        self.cluster = FakeCluster()
        self.folder = folder
        self.tallies = {}
        self.cores = cores
        self.budget = budget
        self.begin()

    def begin(self):
        """The loop, as after a start of the platform."""
        self.loop = Reconciler(
            self.database,
            Launcher(
                self.cluster,
                self.registry,
                "worker:main",
                self.folder,
                self.folder,
            ),
            NodeLimits(self.cores, self.budget, load_seconds=600.0),
            tally=lambda place: self.tallies.get(place[2], Tally()),
        )
        self.loop.recover()

    def deploy(self, reference="digits:1", name="", **options):
        row = self.wanted.deploy(self.project, reference, name, **options)
        self.tick()
        return row

    def beside(self, reference, name="digits", **how):
        row = self.wanted.add_variant(self.project, reference, name, **how)
        self.tick()
        return row

    def tick(self, times=1, seconds=0.0, news=True):
        for _ in range(times):
            self.clock.now += seconds
            self.loop.tick(news)

    def ready(self, *handles, **said):
        for handle in handles or [
            one for one in self.alive if one not in self.told
        ]:
            self.told.append(handle)
            handle.said.append({"ready": True, "batch": 8} | said)
        self.tick(2)

    told: list = []  # noqa: RUF012

    @property
    def alive(self):
        return [one for one in self.cluster.started if one.code is None]

    @property
    def staying(self):
        """What is alive and was not asked to go, as (model, version, threads)."""
        return [
            (one.spec["model"], one.spec["version"], one.spec["threads"])
            for one in self.alive
            if not one.asked
        ]

    @property
    def versions(self):
        return [version for _, version, _ in self.staying]

    def hear(self, signals, name="digits", gateway="g main"):
        self.loop.record_signals(gateway, "default", name, signals)

    def row(self, name="digits"):
        return self.wanted.get(self.project, name)

    def route(self, name="digits"):
        return self.wanted.snapshot(None).routes[f"default/{name}"]


def sleepy(stage, name="digits", reference="digits:1"):
    stage.deploy(
        reference, name, min_replicas=0, max_replicas=1, idle_seconds=60
    )
    stage.ready()


def asleep(stage):
    sleepy(stage)
    stage.clock.now += 100
    stage.hear(Signals(idle_seconds=100))
    stage.tick(3, news=False)
    assert stage.staying == []


def with_canary(stage, **how):
    stage.deploy(threads=2)
    stage.ready()
    stage.beside("digits:2", **({"weight": 0.2} | how))
