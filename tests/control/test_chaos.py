"""Whatever people ask for and whatever workers do: left alone, the loop comes to rest with what is
wanted.
"""

import random
from contextlib import suppress

import pytest

from modelmill.control.reconciler.canary import Tally
from modelmill.control.reconciler.scaling import Signals
from modelmill.errors import MillError

NAMES = ("a", "b", "c")


def ask_for_something(stage, draw):
    """One thing that people may do; what can't be done is refused."""
    name, version = draw.choice(NAMES), draw.randint(1, 3)
    reference = f"{draw.choice(('digits', 'letters'))}:{version}"
    wanted, project = stage.wanted, stage.project
    options = draw.choice(
        [
            {},
            {"replicas": draw.randint(1, 3)},
            {"min_replicas": 0, "max_replicas": 2, "idle_seconds": 30},
            {"threads": 2},
        ]
    )
    things = [
        lambda: wanted.deploy(project, reference, name, **options),
        lambda: wanted.deploy(project, reference, name),
        lambda: wanted.add_variant(project, reference, name, weight=0.3),
        lambda: wanted.add_variant(project, reference, name, shadow=True),
        lambda: wanted.promote(project, name),
        lambda: wanted.drop_variants(project, name),
        lambda: wanted.set_loaded(project, name, draw.random() < 0.6),
        lambda: wanted.undeploy(project, name),
    ]
    with suppress(MillError):
        draw.choices(things, (4, 4, 3, 1, 2, 1, 2, 1))[0]()


def let_workers_do_something(stage, draw):
    """Workers become ready, take fewer threads, fail, crash, hang, and grow."""
    for one in stage.alive:
        what = draw.random()
        one.holds = draw.choice((10, 30))
        if what < 0.5 and one not in stage.told:
            stage.told.append(one)
            one.said.append(
                {"ready": True, "batch": 8}
                | ({"threads": 1} if what < 0.2 else {})
            )
        elif what < 0.53:
            one.code = -9
        elif what < 0.56:
            one.said.append({"error": "it broke"})
            one.code = 1
        elif what < 0.58:
            stage.loop.end_hung(one.spec["socket"])
        one.obeys = draw.random() < 0.8


def say_something(stage, draw):
    """Gateways tell how queues stand, and what was counted."""
    for name in NAMES:
        if draw.random() < 0.5:
            waiting = draw.choice((0, 0, 5))
            stage.hear(
                Signals(
                    waiting,
                    waiting * 0.1,
                    min(waiting, 1),
                    0.0 if waiting else draw.choice((2, 90)),
                ),
                name,
            )
    if draw.random() < 0.1:
        version = f"{draw.choice(('digits', 'letters'))}:{draw.randint(1, 3)}"
        before = stage.tallies.get(version, Tally())
        stage.tallies[version] = Tally(
            before.success + 30,
            before.failure + draw.choice((0, 30)),
            before.seconds + 1,
        )


@pytest.mark.parametrize("seed", range(12))
def test_left_alone_it_comes_to_rest(make, seed):
    draw = random.Random(seed)
    stage = make(cores=draw.choice((1, 4)), budget=draw.choice((0, 100)))
    revision = -1
    for _ in range(250):
        if draw.random() < 0.3:
            ask_for_something(stage, draw)
        let_workers_do_something(stage, draw)
        say_something(stage, draw)
        if draw.random() < 0.02:
            for one in stage.alive:
                one.kill()
            stage.begin()  # the platform was started again
        news, revision = revision != (now := stage.database.revision()), now
        stage.tick(seconds=draw.choice((0.05, 0.05, 2.0)), news=news)
    for one in stage.alive:
        one.obeys = True
    for _ in range(150):  # everything works again, and nobody calls
        for name in NAMES:
            stage.hear(Signals(idle_seconds=5), name)
        for one in stage.alive:
            one.holds = 10
            if one not in stage.told:
                stage.told.append(one)
                one.said.append({"ready": True, "batch": 8, "threads": 1})
        stage.tick(seconds=1)  # more seldom, and what was heard would be stale
    before, started = stage.database.revision(), len(stage.cluster.started)
    for _ in range(30):
        for name in NAMES:
            stage.hear(Signals(idle_seconds=5), name)
        stage.tick(seconds=1)
    assert (stage.database.revision(), len(stage.cluster.started)) == (
        before,
        started,
    )
    for row in stage.wanted.all(stage.project):
        route = stage.route(row.name)
        assert route.loaded == row.loaded
        assert (
            row.error == "" or row.asleep
        )  # what failed last stays told until it is tried again
        if not row.loaded:
            assert not route.ready
            continue
        assert route.ready
        assert (route.model, route.version) == (row.model, row.version)
        assert bool(route.sockets) != row.asleep
        assert all(
            side.ready and len(side.sockets) == 1 for side in route.others
        )
    served = {
        socket
        for route in stage.wanted.snapshot(None).routes.values()
        for side in (route, *route.others)
        for socket in side.sockets
    }
    assert {
        one.spec["socket"] for one in stage.alive
    } == served  # no worker is left over
