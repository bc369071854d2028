"""What is wanted becomes workers: new ones beside the old, as many as are called for, and none that nobody needs."""

import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
from sqlalchemy import select

from modelmill.control import reconciler as module
from modelmill.control.canary import Tally
from modelmill.control.db import Database, Deployment, Replica
from modelmill.control.deployments import Deployments
from modelmill.control.reconciler import Reconciler
from modelmill.control.scaling import Signals
from modelmill.errors import MillError, StorageFull
from tests.control.fakes import FakeCluster
from tests.making import plain_bundle

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

    def __init__(self, database, registry, project, folder, clock, cores=8, budget=0):
        self.database, self.registry, self.project, self.clock = database, registry, project, clock
        self.wanted, self.cluster, self.folder = Deployments(database, registry), FakeCluster(), folder
        self.tallies, self.cores, self.budget = {}, cores, budget
        self.begin()

    def begin(self):
        """The loop, as after a start of the platform."""
        self.loop = Reconciler(
            self.database, self.registry, self.wanted, self.cluster, self.folder, self.folder, "worker:main",
            self.cores, self.budget,
        )  # fmt: skip
        self.loop.tally = lambda place: self.tallies.get(place[2], Tally())
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
        for handle in handles or [one for one in self.alive if one not in self.told]:
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
            (one.spec["model"], one.spec["version"], one.spec["threads"]) for one in self.alive if not one.asked
        ]  # fmt: skip

    @property
    def versions(self):
        return [version for _, version, _ in self.staying]

    def hear(self, signals, name="digits", gateway="g main"):
        self.loop.hear(gateway, "default", name, signals)

    def row(self, name="digits"):
        return self.wanted.get(self.project, name)

    def route(self, name="digits"):
        return self.wanted.snapshot(None).routes[f"default/{name}"]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def make(database, registry, project, tmp_path, clock):
    for model in ("digits", "letters"):
        for number in (1, 2, 3):
            bundle = plain_bundle(tmp_path / f"{model}{number}", metrics={"accuracy": number / 10})
            registry.add(project, model, bundle, None)

    def made(**how):
        stage = Stage(database, registry, project, tmp_path / "run", clock, **how)
        stage.told = []
        return stage

    return made


@pytest.fixture
def stage(make):
    return make()


# ---- workers


def test_a_deployment_gets_its_workers_and_is_ready_when_all_are(stage):
    stage.deploy(replicas=2)
    stage.tick()
    one, two = stage.cluster.started
    assert one.spec["socket"] != two.spec["socket"]
    assert (one.spec["model"], one.spec["version"], one.entry) == ("digits", 1, "worker:main")
    assert not stage.route().ready
    stage.ready(one)
    assert not stage.route().ready
    stage.ready(two)
    route = stage.route()
    assert (route.ready, route.batch, route.version) == (True, 8, 1)
    assert sorted(route.sockets) == sorted([one.spec["socket"], two.spec["socket"]])


def test_when_nothing_changes_nothing_is_done(stage):
    stage.deploy()
    stage.ready()
    stage.hear(Signals(idle_seconds=3))
    before, revision = stage.wanted.snapshot(None), stage.database.revision()
    stage.tick(50, 0.05)
    assert stage.wanted.snapshot(before) is None
    assert stage.database.revision() == revision
    assert len(stage.cluster.started) == 1


def test_deploying_twice_is_the_same_as_once(stage):
    stage.deploy()
    stage.deploy()
    stage.ready()
    stage.deploy()
    assert len(stage.cluster.started) == 1


def test_a_new_version_comes_up_beside_the_old_one(stage):
    stage.deploy(replicas=2)
    old = stage.alive
    stage.ready()
    for handle in old:
        handle.obeys = False
    stage.deploy("digits:2")
    new = stage.cluster.started[2:]
    assert len(new) == 2
    stage.ready(new[0])
    assert ([one.asked for one in old], stage.route().version, len(stage.route().sockets)) == ([0, 0], 1, 2)
    stage.ready(new[1])
    assert ([one.asked for one in old], stage.route().version) == ([1, 1], 2)
    assert sorted(stage.route().sockets) == sorted(one.spec["socket"] for one in new)
    for handle in old:
        handle.code = 0
    stage.tick()
    assert (stage.versions, stage.route().ready) == ([2, 2], True)


def test_gateways_are_told_before_a_worker_is_asked_to_go(stage, monkeypatch):
    stage.deploy()
    stage.ready()
    (old,) = stage.alive
    seen = []
    monkeypatch.setattr(old, "terminate", lambda: seen.append(stage.route().sockets))
    stage.deploy("digits:2")
    stage.ready()
    assert seen == [[stage.cluster.started[1].spec["socket"]]]


def test_a_version_that_was_wanted_for_a_moment_does_not_hold_memory(stage):
    stage.deploy()
    stage.ready()
    stage.deploy("digits:2")
    stage.deploy("digits:3")
    assert stage.versions == [1, 3]
    stage.ready()
    assert (stage.versions, stage.route().version) == ([3], 3)


def test_a_version_that_can_not_be_loaded_leaves_the_old_one_serving(stage):
    stage.deploy()
    stage.ready()
    stage.deploy("digits:2")
    bad = stage.cluster.started[1]
    bad.said.append({"error": "model.onnx was changed", "code": "bundle_corrupt"})
    bad.code = 1
    stage.tick()
    assert stage.row().error == "model.onnx was changed"
    assert (stage.route().version, stage.route().ready, len(stage.route().sockets)) == (1, True, 1)
    stage.deploy("digits:1")
    assert (stage.row().error, stage.route().version, stage.versions[0]) == ("", 1, 1)


def test_a_worker_that_fails_is_tried_again_ever_more_slowly(stage):
    stage.deploy()
    began = [stage.clock.now]
    for _ in range(600):
        stage.alive and setattr(stage.alive[-1], "code", 3)
        before = len(stage.cluster.started)
        stage.tick(seconds=0.25)
        if len(stage.cluster.started) > before:
            began.append(stage.clock.now)
    waits = [after - before for before, after in pairwise(began)]
    assert len(waits) >= 5
    assert waits == sorted(waits)
    assert waits[-1] >= 15
    assert "ended with status 3" in stage.route().error


def test_a_worker_that_was_lost_is_replaced_at_once(stage):
    stage.deploy()
    stage.ready()
    stage.cluster.started[0].code = -9
    stage.tick(2)
    assert len(stage.cluster.started) == 2
    assert (stage.route().ready, stage.route().sockets) == (True, [])  # its calls wait for the next one
    stage.ready()
    assert stage.route().sockets == [stage.cluster.started[1].spec["socket"]]
    assert stage.row().error == ""


def test_a_worker_that_hangs_is_ended_and_replaced_at_once(stage):
    stage.deploy()
    stage.ready()
    (hung,) = stage.alive
    stage.loop.end_hung("another socket")
    assert not hung.killed
    stage.loop.end_hung(hung.spec["socket"])
    assert hung.killed
    stage.tick(2)
    assert len(stage.alive) == 1
    stage.loop.end_hung(hung.spec["socket"])  # told once more
    assert stage.alive[0].code is None


def test_more_and_fewer_workers(stage):
    for replicas in (1, 3, 2):
        stage.deploy(replicas=replicas)
        stage.ready()
        stage.ready()
        assert len(stage.staying) == len(stage.route().sockets) == replicas


def test_an_undeployed_model_loses_its_workers(stage, database):
    stage.deploy()
    stage.ready()
    stage.deploy("letters:1", "starting")  # it goes while it starts
    for name in ("digits", "starting"):
        stage.wanted.undeploy(stage.project, name)
    stage.tick(3)
    assert stage.alive == []
    assert stage.wanted.snapshot(None).routes == {}
    with database.session() as session:
        assert session.scalars(select(Replica)).all() == []


def test_a_worker_that_does_not_go_is_ended(stage):
    stage.deploy()
    stage.cluster.started[0].obeys = False
    stage.wanted.undeploy(stage.project, "digits")
    stage.tick()
    stage.tick(seconds=30)
    assert not stage.cluster.started[0].killed
    stage.tick(seconds=60)
    assert stage.cluster.started[0].killed


def test_what_can_not_be_started_is_told(stage):
    stage.cluster.failing = OSError(11, "no more processes")
    stage.deploy()
    assert "no more processes" in stage.row().error
    assert not stage.route().ready
    stage.cluster.failing = None
    stage.tick(seconds=5)
    stage.ready()
    assert (stage.row().error, stage.route().ready) == ("", True)


def test_a_bundle_that_is_gone_is_told(stage):
    shutil.rmtree(stage.registry.folder(stage.registry.get(stage.project, "digits:1")))
    stage.deploy()
    assert "is missing" in stage.row().error
    assert stage.cluster.started == []


def test_one_model_under_two_names_and_another_under_the_same(stage):
    stage.deploy("digits:1", "stable")
    stage.deploy("digits:2", "next")
    stage.ready()
    assert (stage.route("stable").version, stage.route("next").version) == (1, 2)
    stage.deploy("letters:3", "next")
    assert stage.route("next").model == "digits"
    stage.ready()
    assert (stage.route("next").model, stage.route("next").version) == ("letters", 3)


def test_stopping_asks_every_worker_and_ends_those_that_stay(stage):
    stage.deploy(replicas=2)
    stage.cluster.started[0].obeys = False
    stage.loop.stop()
    assert [one.asked for one in stage.cluster.started] == [1, 1]
    assert stage.cluster.started[0].killed


def test_after_a_restart_nothing_is_ready_until_it_is(stage):
    stage.deploy()
    stage.ready()
    stage.begin()
    assert (stage.route().ready, stage.route().sockets) == (False, [])
    stage.tick()
    stage.ready()
    assert stage.route().ready


# ---- how they run


def test_the_cores_are_shared_and_a_share_that_shrinks_rolls_the_workers(stage):
    stage.deploy()
    stage.ready()
    assert stage.staying == [("digits", 1, 8)]
    stage.deploy("letters:1")
    assert stage.staying == [("digits", 1, 8), ("digits", 1, 4), ("letters", 1, 4)]
    assert stage.route().ready
    stage.ready()
    assert stage.staying == [("digits", 1, 4), ("letters", 1, 4)]
    stage.wanted.undeploy(stage.project, "letters")
    stage.tick(3)
    assert stage.staying == [("digits", 1, 4)]  # a share that grows is no reason to roll


def test_a_worker_that_takes_one_thread_stays_whatever_its_share(stage):
    stage.deploy()
    stage.ready(threads=1)
    stage.deploy("letters:1")
    stage.ready(threads=1)
    assert stage.staying == [("digits", 1, 8), ("letters", 1, 4)]
    assert len(stage.cluster.started) == 2


def test_what_is_still_starting_is_not_replaced_for_its_threads(stage):
    for number, name in enumerate("abcdefgh", 1):
        stage.deploy("digits:1", name)
        assert len(stage.cluster.started) == number
    stage.ready(threads=1)
    assert len(stage.cluster.started) == 8


def test_a_deployment_is_served_while_its_threads_are_rolled(stage):
    stage.deploy("digits:1")
    stage.deploy("letters:1")
    stage.ready()  # digits started with all cores
    assert stage.route().ready
    stage.ready()
    assert stage.staying == [("letters", 1, 4), ("digits", 1, 4)]


@pytest.mark.parametrize("options", [{"threads": 3}, {"engine": "openvino"}, {"precision": "bf16"}])
def test_other_options_roll_the_workers(stage, options):
    stage.deploy()
    stage.ready()
    stage.deploy(**options)
    new = stage.cluster.started[1]
    assert {name: new.spec[name] for name in options} == options
    assert stage.route().sockets == [stage.cluster.started[0].spec["socket"]]
    stage.ready()
    assert stage.route().sockets == [new.spec["socket"]]
    stage.tick(5)
    assert len(stage.cluster.started) == 2


def test_options_that_do_not_work_leave_the_old_workers_serving(stage):
    stage.deploy()
    stage.ready()
    stage.deploy(precision="bf16")
    bad = stage.cluster.started[1]
    bad.said.append({"error": "the engine 'onnx' has no precision 'bf16'", "code": "invalid_input"})
    bad.code = 1
    stage.tick()
    assert "no precision" in stage.row().error
    stage.tick()
    assert "no precision" in stage.row().error  # until it works or is changed
    assert stage.route().ready


# ---- how many


def elastic(stage, **options):
    stage.deploy(**({"min_replicas": 1, "max_replicas": 3, "target_delay_ms": 100} | options))
    stage.ready()


def test_workers_follow_the_queue_and_settle(stage):
    elastic(stage)
    counts = []
    for tick in range(2000):
        stage.hear(SLOW if tick < 400 else Signals(idle_seconds=1))
        stage.tick(seconds=0.05, news=tick % 20 == 0)
        if tick % 40 == 39:
            stage.ready()
        counts.append(len(stage.staying))
    assert max(counts) == 3
    assert counts[-1] == 1
    assert [b - a for a, b in pairwise(counts) if a != b] == [1, 1, -1, -1]


def test_no_more_are_started_while_one_starts(stage):
    elastic(stage)
    for _ in range(200):
        stage.hear(SLOW)
        stage.tick(seconds=0.05, news=False)
    assert len(stage.staying) == 2


def test_signals_of_several_gateways_are_one_and_old_ones_do_not_count(stage):
    elastic(stage)
    stage.clock.now += 5
    stage.hear(SLOW, gateway="a")
    stage.hear(Signals(), gateway="b")
    stage.tick(news=False)
    assert len(stage.staying) == 2
    stage.clock.now += 3
    stage.ready()
    stage.tick(100, 0.1, news=False)
    assert len(stage.staying) == 2  # nobody has spoken lately


def sleepy(stage, name="digits", reference="digits:1"):
    stage.deploy(reference, name, min_replicas=0, max_replicas=1, idle_seconds=60)
    stage.ready()


def asleep(stage):
    sleepy(stage)
    stage.clock.now += 100
    stage.hear(Signals(idle_seconds=100))
    stage.tick(3, news=False)
    assert stage.staying == []


def test_nobody_calls_and_it_sleeps_somebody_calls_and_it_wakes(stage):
    asleep(stage)
    assert stage.row().asleep
    route = stage.route()
    assert (route.ready, route.asleep, route.sockets) == (True, True, [])  # the next call waits for its worker
    stage.tick(20, 1)
    assert len(stage.cluster.started) == 1
    stage.hear(CALLED)
    stage.tick(news=False)
    assert stage.versions == [1]
    stage.ready()
    assert (stage.row().asleep, stage.route().asleep, len(stage.route().sockets)) == (False, False, 1)


def test_a_sleeping_deployment_that_is_loaded_stays_awake_for_a_while(stage):
    asleep(stage)
    stage.wanted.set_loaded(stage.project, "digits", True)
    stage.tick()
    stage.ready()
    for _ in range(50):
        stage.hear(Signals(idle_seconds=5000))  # nobody has called for long, but it was asked for
        stage.tick(seconds=1)
    assert stage.versions == [1]
    stage.hear(Signals(idle_seconds=5000))
    stage.tick(3, seconds=20)
    stage.hear(Signals(idle_seconds=5000))
    stage.tick(3)
    assert stage.versions == []


def test_deploying_a_sleeping_one_wakes_it_with_the_new_version(stage):
    asleep(stage)
    stage.deploy("digits:2", min_replicas=0)
    assert stage.versions == [2]
    stage.ready()
    assert (stage.route().version, stage.route().asleep) == (2, False)


def test_what_sleeps_sleeps_on_after_a_restart(stage):
    asleep(stage)
    stage.deploy("letters:1")
    stage.begin()
    stage.tick(3)
    assert [one.spec["model"] for one in stage.cluster.started[2:]] == ["letters"]
    assert (stage.route().ready, stage.route().asleep, stage.route().version) == (True, True, 1)
    stage.hear(CALLED)
    stage.tick(2)
    assert stage.cluster.started[-1].spec["model"] == "digits"


def test_a_call_that_comes_while_it_falls_asleep_is_heard(stage):
    sleepy(stage)
    stage.clock.now += 100
    stage.hear(Signals(idle_seconds=100))
    stage.loop.tick(False)
    stage.hear(CALLED)
    stage.tick(3, 0.05, news=False)
    assert stage.versions == [1]
    stage.ready()
    assert (stage.row().asleep, stage.route().ready) == (False, True)


def test_what_somebody_deployed_meanwhile_is_not_put_to_sleep(stage):
    """The loop decides over what it has read; by the time it writes, somebody has deployed another version."""
    sleepy(stage)
    stage.clock.now += 100
    stage.hear(Signals(idle_seconds=100))
    stage.wanted.deploy(stage.project, "digits:2", "")  # after the revision was looked at
    stage.loop.tick(False)
    stage.tick()
    assert not stage.row().asleep
    assert 2 in stage.versions
    stage.ready()
    assert (stage.route().version, stage.versions) == (2, [2])


def test_unloading_and_loading_can_be_repeated(stage):
    stage.deploy()
    stage.ready()
    for _ in range(2):
        stage.wanted.set_loaded(stage.project, "digits", False)
        stage.tick(2)
        assert (stage.staying, stage.route().ready, stage.route().loaded) == ([], False, False)
    stage.hear(CALLED)
    stage.tick(2)
    assert stage.staying == []  # unloaded is not asleep
    for _ in range(2):
        stage.wanted.set_loaded(stage.project, "digits", True)
        stage.tick(2)
        assert stage.versions == [1]
    stage.ready()
    assert (stage.route().ready, stage.route().loaded) == (True, True)


# ---- memory


def crowd(make, *names, budget=100, holds=40):
    """Deployments that are ready, each of whose workers holds so much."""
    stage = make(budget=budget)
    for name in names:
        stage.deploy("digits:1", name)
        stage.alive[-1].holds = holds
    stage.ready(threads=1)
    return stage


def test_the_least_recently_used_sleeps_when_the_workers_hold_too_much(make):
    stage = crowd(make, "a", "b", "c")
    for name, idle in (("a", 50), ("b", 90), ("c", 2)):
        stage.hear(Signals(idle_seconds=idle), name)
    stage.clock.now += 99
    for name, idle in (("a", 50), ("b", 90), ("c", 2)):
        stage.hear(Signals(idle_seconds=idle), name)
    stage.tick(3, news=False)
    assert [stage.row(name).asleep for name in "abc"] == [False, True, False]
    assert [stage.route(name).ready for name in "abc"] == [True, True, True]
    stage.tick(20, 1)
    assert len(stage.staying) == 2
    assert len(stage.cluster.started) == 3  # and it is not started and ended in turns
    assert sum(replica.memory for rows in stage.wanted.replicas(stage.project).values() for replica in rows) == 80


@pytest.mark.parametrize(
    "seen", [Signals(idle_seconds=0.2), Signals(waiting=1, idle_seconds=50), Signals(busy=1, idle_seconds=50)]
)
def test_what_is_being_called_is_not_put_to_sleep(make, seen):
    stage = crowd(make, "a", "b", "c")
    stage.clock.now += 99
    for _ in range(30):
        for name in "abc":
            stage.hear(seen, name)
        stage.tick(seconds=0.5)
    assert len(stage.staying) == 3


def test_one_that_was_put_to_sleep_wakes_and_another_goes(make):
    stage = crowd(make, "a", "b", "c")
    stage.clock.now += 99
    for name, idle in (("a", 90), ("b", 50), ("c", 2)):
        stage.hear(Signals(idle_seconds=idle), name)
    stage.tick(3)
    stage.hear(CALLED, "a")
    stage.tick(2)
    stage.alive[-1].holds = 40
    stage.ready(threads=1)
    assert not stage.row("a").asleep
    stage.clock.now += 3
    for name, idle in (("a", 1.5), ("b", 55), ("c", 5)):
        stage.hear(Signals(idle_seconds=idle), name)
    stage.tick(2)
    assert [stage.row(name).asleep for name in "abc"] == [False, True, False]


def test_at_a_restart_what_does_not_fit_sleeps_until_it_is_called(make):
    stage = crowd(make, "a", "b", "c", budget=1000, holds=300)
    stage.budget = 700
    for one in stage.alive:
        one.code = 0
    stage.cores = 1  # two start at a time
    stage.begin()
    for _ in range(20):
        stage.tick(seconds=1)
        for one in stage.alive:
            one.holds = 350
        stage.ready(threads=1)
    assert sum(stage.row(name).asleep for name in "abc") == 1
    assert len(stage.staying) == 2
    assert all(stage.route(name).ready for name in "abc")


def test_what_serves_is_not_put_to_sleep_by_its_own_change(make):
    """A new version, a canary and more workers of what serves start also when the memory is nearly full."""
    stage = crowd(make, "digits", budget=100, holds=98)
    stage.tick(2, 3)
    stage.beside("digits:2", weight=0.1)
    assert (stage.versions, stage.row().asleep) == ([1, 2], False)
    stage.wanted.drop_variants(stage.project, "digits")
    stage.deploy("digits:3")
    assert (stage.versions, stage.row().asleep) == ([1, 3], False)
    stage.ready(threads=1)
    assert (stage.route().version, stage.versions) == (3, [3])


def test_what_is_deployed_or_loaded_starts_though_the_memory_is_full_and_the_idle_one_goes(make):
    stage = crowd(make, "a", budget=100, holds=98)
    stage.tick(2, 3)
    stage.deploy("letters:1", "b")
    assert len(stage.staying) == 2
    stage.alive[-1].holds = 50
    stage.ready(threads=1)
    stage.clock.now += 30
    stage.hear(Signals(idle_seconds=90), "a")
    stage.hear(Signals(idle_seconds=2), "b")
    stage.tick(3)
    assert [stage.row(name).asleep for name in "ab"] == [True, False]


def test_memory_of_canaries_is_not_counted_as_what_sleeping_would_free(make):
    stage = make(budget=100)
    stage.deploy("digits:1", "a")
    stage.deploy("letters:1", "b")
    stage.beside("digits:2", "a", weight=0.1)
    for one, holds in zip(stage.alive, (10, 60, 60), strict=True):
        one.holds = holds
    stage.ready(threads=1)
    stage.clock.now += 99
    for _ in range(10):
        stage.hear(Signals(idle_seconds=90), "a")
        stage.hear(Signals(idle_seconds=50), "b")
        stage.tick(seconds=1)
    assert stage.staying[0][:2] == ("digits", 2)
    assert [stage.row(name).asleep for name in "ab"] == [True, True]


def test_only_so_many_start_at_a_time(make):
    stage = make(cores=1)
    for name in "abcde":
        stage.deploy("digits:1", name)
    assert len(stage.staying) == 2
    stage.hear(CALLED, "e")
    stage.tick()
    assert [one.title for one in stage.alive] == [f"modelmill: worker {name}" for name in "abe"]  # not who is called
    stage.ready(threads=1)
    stage.ready(threads=1)
    stage.ready(threads=1)
    assert len(stage.staying) == 5


# ---- canaries and shadows


def with_canary(stage, **how):
    stage.deploy(threads=2)
    stage.ready()
    stage.beside("digits:2", **({"weight": 0.2} | how))


def test_a_canary_gets_a_worker_and_then_its_share(stage):
    with_canary(stage)
    assert stage.versions == [1, 2]
    (side,) = stage.route().others
    assert (side.version, side.ready, side.weight, side.shadow) == (2, False, 0.2, False)
    stage.ready()
    route = stage.route()
    (side,) = route.others
    assert (route.version, side.ready, side.sockets) == (1, True, [stage.cluster.started[1].spec["socket"]])
    stage.tick(20, 1)
    assert len(stage.cluster.started) == 2


def test_a_promoted_canary_keeps_its_worker(stage):
    with_canary(stage)
    stage.ready()
    old, new = stage.alive
    stage.wanted.promote(stage.project, "digits")
    stage.tick(3)
    assert stage.alive == [new]
    route = stage.route()
    assert (route.version, route.sockets, route.others) == (2, [new.spec["socket"]], [])
    assert len(stage.cluster.started) == 2
    assert old.asked == 1


def test_promoting_what_is_not_ready_or_too_few_rolls(stage):
    stage.deploy(replicas=2, threads=2)
    stage.ready()
    stage.beside("digits:2", weight=0.5)
    stage.wanted.promote(stage.project, "digits")
    stage.tick()
    assert (stage.versions, stage.route().version) == ([1, 1, 2, 2], 1)
    stage.ready()
    assert (stage.versions, stage.route().version) == ([2, 2], 2)
    assert len(stage.cluster.started) == 4


def test_promoting_while_another_version_rolls_in(stage):
    with_canary(stage)
    stage.ready()
    stage.deploy("digits:3")
    assert stage.versions == [1, 2, 3]
    stage.wanted.promote(stage.project, "digits")
    stage.tick(3)
    assert (stage.versions, stage.route().version, stage.route().others) == ([2], 2, [])


def test_a_canary_of_a_sleeping_deployment_can_be_promoted(stage):
    asleep(stage)
    stage.beside("digits:2", weight=0.1)
    stage.ready()
    stage.wanted.promote(stage.project, "digits")
    stage.tick(3)
    assert (stage.versions, stage.route().version, stage.route().asleep) == ([2], 2, False)
    assert len(stage.cluster.started) == 2


def test_a_canary_of_another_model(stage):
    stage.deploy("digits:1", "app")
    stage.ready()
    stage.beside("letters:1", "app", weight=0.5)
    stage.ready()
    (side,) = stage.route("app").others
    assert (side.model, side.version, side.ready) == ("letters", 1, True)
    stage.wanted.promote(stage.project, "app")
    stage.tick(3)
    assert (stage.route("app").model, [model for model, *_ in stage.staying]) == ("letters", ["letters"])


def test_a_canary_that_is_taken_away_loses_its_worker(stage):
    with_canary(stage)
    stage.ready()
    stage.wanted.drop_variants(stage.project, "digits")
    stage.tick(2)
    assert (stage.versions, stage.route().others) == ([1], [])


def test_a_canary_that_is_worse_is_rolled_back_with_a_note(stage):
    with_canary(stage)
    stage.tick(1, 1)
    stage.ready()
    stage.tallies = {"digits:1": Tally(100, 0, 1.0), "digits:2": Tally(10, 5, 0.1)}
    stage.tick(3, 1)
    assert len(stage.route().others) == 1  # too few to say
    stage.tallies["digits:2"] = Tally(10, 15, 0.1)
    stage.tick(3, 1)
    assert stage.route().others == []
    assert stage.row().note == "digits:2 was rolled back: 15 of 25 requests failed (limit 5%)"
    assert (stage.versions, stage.route().ready, stage.row().error) == ([1], True, "")


def test_a_canary_is_not_judged_by_what_came_before_it(stage):
    stage.tallies = {"digits:1": Tally(100, 0, 1.0), "digits:2": Tally(0, 500, 0.0)}
    with_canary(stage)
    stage.ready()
    stage.tick(3, 1)
    assert len(stage.route().others) == 1
    stage.wanted.drop_variants(stage.project, "digits")
    stage.tick(2, 1)
    stage.tallies["digits:2"] = Tally(0, 900, 0.0)  # it was asked by its number meanwhile
    stage.beside("digits:2", weight=0.5)
    stage.ready()
    stage.tick(3, 1)
    assert len(stage.route().others) == 1


def test_a_canary_is_compared_with_the_version_that_serves_now(stage):
    with_canary(stage)
    stage.ready()
    stage.tallies = {"digits:1": Tally(100_000, 5000, 1000.0), "digits:2": Tally()}
    stage.tick(2, 1)
    stage.deploy("digits:3")
    stage.ready()
    assert stage.route().version == 3
    stage.tallies |= {"digits:3": Tally(50, 0, 0.5), "digits:2": Tally(50, 0, 0.5)}
    stage.tick(3, 1)
    assert len(stage.route().others) == 1


def test_shadows_are_not_judged(stage):
    with_canary(stage, weight=0.0, shadow=True)
    stage.ready()
    stage.tallies = {"digits:1": Tally(100, 0, 1.0), "digits:2": Tally(0, 500)}
    stage.tick(5, 1)
    (side,) = stage.route().others
    assert (side.shadow, side.ready, side.weight) == (True, True, 0.0)


def test_a_canary_that_does_not_start_is_rolled_back_and_may_be_tried_again(stage):
    with_canary(stage)
    for _ in range(200):
        for one in stage.alive[1:]:
            one.said.append({"error": "model.onnx was changed"})
            one.code = 1
        stage.tick(seconds=0.25)
    assert len(stage.cluster.started) == 1 + 3
    assert stage.row().note == "digits:2 was rolled back: model.onnx was changed"
    assert (stage.row().error, stage.route().ready, stage.route().others) == ("", True, [])
    stage.beside("digits:2", weight=0.5)
    stage.alive[-1].code = 1
    stage.tick()
    assert len(stage.route().others) == 1  # a new trial has new chances


def test_a_canary_that_somebody_takes_away_while_it_fails_is_not_noted(stage):
    with_canary(stage)
    for _ in range(2):
        stage.alive[1].code = 1
        stage.tick(2, 10)
    stage.wanted.drop_variants(stage.project, "digits")
    stage.alive[1].code = 1
    stage.tick(3)
    assert stage.row().note == ""


def test_a_rollback_keeps_what_somebody_added_meanwhile(stage):
    with_canary(stage)
    stage.ready()
    stage.tick(1, 1)
    stage.tallies = {"digits:1": Tally(100, 0, 1.0), "digits:2": Tally(0, 100)}
    write = stage.loop._book.write

    def add_first(workers):
        stage.loop._book.write = write
        stage.wanted.add_variant(stage.project, "digits:3", "digits", weight=0.5)
        write(workers)

    stage.loop._book.write = add_first
    stage.tick(1, 1)
    assert [one["version"] for one in stage.row().variants] == [3]
    assert "digits:2 was rolled back" in stage.row().note


def test_an_unloaded_deployment_has_no_canary_either(stage):
    with_canary(stage)
    stage.ready()
    stage.wanted.set_loaded(stage.project, "digits", False)
    stage.tick(2)
    assert stage.staying == []
    stage.wanted.set_loaded(stage.project, "digits", True)
    stage.tick()
    assert sorted(stage.versions) == [1, 2]


# ---- a database that fails


class Failing:
    """A database whose writes fail while told to."""

    def __init__(self, database: Database) -> None:
        self._database, self.full = database, False

    def session(self):
        return self._broken() if self.full else self._database.session()

    def _broken(self):
        raise StorageFull("the disk is full")

    def __getattr__(self, name):
        return getattr(self._database, name)


def test_a_write_that_fails_is_tried_again(stage, database, monkeypatch):
    stage.deploy()
    (one,) = stage.alive
    failing, write = Failing(database), stage.loop._book.write
    monkeypatch.setattr(stage.loop._book, "database", failing)

    def broken(workers):
        failing.full = True
        try:
            write(workers)
        finally:
            failing.full = False

    monkeypatch.setattr(stage.loop._book, "write", broken)
    one.said.append({"ready": True})
    for _ in range(3):
        with pytest.raises(MillError):
            stage.tick(news=False)
    stage.deploying = stage.wanted.deploy(stage.project, "digits:2", "")
    with pytest.raises(MillError):
        stage.tick()
    assert (stage.route().ready, one.asked) == (False, 0)
    monkeypatch.setattr(stage.loop._book, "write", write)
    stage.tick(2, news=False)
    assert len(stage.cluster.started) == 2
    stage.ready(stage.cluster.started[1])
    assert (stage.route().version, stage.route().ready, stage.versions) == (2, True, [2])


def test_a_decision_to_sleep_survives_a_write_that_fails(stage, database, monkeypatch):
    sleepy(stage)
    stage.clock.now += 100
    stage.hear(Signals(idle_seconds=100))
    failing = Failing(database)
    monkeypatch.setattr(stage.loop._book, "database", failing)
    failing.full = True
    with pytest.raises(MillError):
        stage.tick(news=False)
    failing.full = False
    stage.tick(2, news=False)
    assert (stage.row().asleep, stage.staying) == (True, [])
    assert len(stage.cluster.started) == 1


def test_rows_that_go_between_reading_and_writing_do_not_stop_the_loop(stage):
    stage.deploy()
    stage.deploy("letters:1")
    write = stage.loop._book.write

    def undeploy_first(workers):
        stage.loop._book.write = write
        stage.wanted.undeploy(stage.project, "digits")
        write(workers)

    stage.loop._book.write = undeploy_first
    stage.ready()
    stage.tick(3)
    assert [model for model, *_ in stage.staying] == ["letters"]
    assert stage.route("letters").ready


def test_what_nobody_wants_any_more_is_forgotten(stage, database):
    for number in range(3):
        with_canary(stage)
        stage.ready()
        stage.hear(replace(CALLED, busy=number))
        stage.tick(2, 1)
        stage.wanted.undeploy(stage.project, "digits")
        stage.tick(3, 1)
    loop = stage.loop
    assert not any((loop._scales, loop._heard, loop._failures, loop._judges, loop._workers, loop._book._updates))
    with database.session() as session:
        assert session.scalars(select(Deployment)).all() == []
