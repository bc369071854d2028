"""As many workers as are called for, none that nobody needs, and no more than the memory holds."""

from itertools import pairwise

import pytest

from modelmill.control.reconciler.scaling import Signals
from tests.control.stage import CALLED, SLOW, asleep, sleepy

# ---- how many


def elastic(stage, **options):
    stage.deploy(
        **(
            {"min_replicas": 1, "max_replicas": 3, "target_delay_ms": 100}
            | options
        )
    )
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


def test_nobody_calls_and_it_sleeps_somebody_calls_and_it_wakes(stage):
    asleep(stage)
    assert stage.row().asleep
    route = stage.route()
    assert (route.ready, route.asleep, route.sockets) == (
        True,
        True,
        [],
    )  # the next call waits for its worker
    stage.tick(20, 1)
    assert len(stage.cluster.started) == 1
    stage.hear(CALLED)
    stage.tick(news=False)
    assert stage.versions == [1]
    stage.ready()
    assert (
        stage.row().asleep,
        stage.route().asleep,
        len(stage.route().sockets),
    ) == (
        False,
        False,
        1,
    )


def test_a_sleeping_deployment_that_is_loaded_stays_awake_for_a_while(stage):
    asleep(stage)
    stage.wanted.set_loaded(stage.project, "digits", True)
    stage.tick()
    stage.ready()
    for _ in range(50):
        # Nobody has called for long, but it was asked for
        stage.hear(Signals(idle_seconds=5000))
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
    assert [one.spec["model"] for one in stage.cluster.started[2:]] == [
        "letters"
    ]
    assert (
        stage.route().ready,
        stage.route().asleep,
        stage.route().version,
    ) == (
        True,
        True,
        1,
    )
    stage.hear(CALLED)
    stage.tick(2)
    assert stage.cluster.started[-1].spec["model"] == "digits"


def test_a_call_that_comes_while_it_falls_asleep_is_answered(stage):
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
    """The loop decides over what it has read; by the time it writes, somebody has deployed another
    version.
    """
    sleepy(stage)
    stage.clock.now += 100
    stage.hear(Signals(idle_seconds=100))
    # After the revision was looked at
    stage.wanted.deploy(stage.project, "digits:2", "")
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
        assert (stage.staying, stage.route().ready, stage.route().loaded) == (
            [],
            False,
            False,
        )
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
    assert (
        len(stage.cluster.started) == 3
    )  # and it is not started and ended in turns
    assert (
        sum(
            replica.memory
            for rows in stage.wanted.replicas(stage.project).values()
            for replica in rows
        )
        == 80
    )


@pytest.mark.parametrize(
    "seen",
    [
        Signals(idle_seconds=0.2),
        Signals(waiting=1, idle_seconds=50),
        Signals(busy=1, idle_seconds=50),
    ],
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
    """A new version, a canary and more workers of what serves start also when the memory is nearly
    full.
    """
    stage = crowd(make, "digits", budget=100, holds=98)
    stage.tick(2, 3)
    stage.beside("digits:2", weight=0.1)
    assert (stage.versions, stage.row().asleep) == ([1, 2], False)
    stage.wanted.drop_variants(stage.project, "digits")
    stage.deploy("digits:3")
    assert (stage.versions, stage.row().asleep) == ([1, 3], False)
    stage.ready(threads=1)
    assert (stage.route().version, stage.versions) == (3, [3])


def test_what_is_deployed_or_loaded_starts_though_the_memory_is_full_and_the_idle_one_goes(
    make,
):
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
    assert [one.title for one in stage.alive] == [
        f"modelmill: worker {name}" for name in "abe"
    ]  # not who is called
    stage.ready(threads=1)
    stage.ready(threads=1)
    stage.ready(threads=1)
    assert len(stage.staying) == 5
