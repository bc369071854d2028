"""How many workers a deployment should have: tables of what is seen and what follows."""

from itertools import pairwise

import pytest

from modelmill.control.reconciler.scaling import (
    HeldMemory,
    Scale,
    Signals,
    evict,
    scale,
    share,
)
from modelmill.types import ServingOptions

NOW = 1000.0
ELASTIC = ServingOptions(min_replicas=1, max_replicas=4, target_delay_ms=100)
SLEEPY = ServingOptions(
    min_replicas=0, max_replicas=2, idle_seconds=60, target_delay_ms=100
)
SLOW = Signals(waiting=9, oldest=0.2, busy=1)
CALM = Signals(busy=0, idle_seconds=5)


@pytest.mark.parametrize(
    ("options", "state", "seen", "wanted"),
    [
        # a fixed number stays, whatever comes
        (ServingOptions(min_replicas=2, max_replicas=2), Scale(2, 0), SLOW, 2),
        (ServingOptions(min_replicas=2, max_replicas=2), Scale(2, 0), CALM, 2),
        # new limits hold at once
        (
            ServingOptions(min_replicas=3, max_replicas=3),
            Scale(1, NOW),
            CALM,
            3,
        ),
        (
            ServingOptions(min_replicas=1, max_replicas=2),
            Scale(4, NOW),
            SLOW,
            2,
        ),
        # one more while calls wait too long, a step at a time, up to the most
        (ELASTIC, Scale(1, 0), SLOW, 2),
        (ELASTIC, Scale(3, 0), SLOW, 4),
        (ELASTIC, Scale(4, 0), SLOW, 4),
        (ELASTIC, Scale(1, NOW - 0.5), SLOW, 1),
        (ELASTIC, Scale(1, 0), Signals(waiting=900, oldest=0.05), 1),
        (ELASTIC, Scale(1, 0), Signals(waiting=0, oldest=0.2), 1),
        # one fewer after a calm time
        (ELASTIC, Scale(3, 0, NOW - 30), CALM, 2),
        (ELASTIC, Scale(3, 0, NOW - 29), CALM, 3),
        (ELASTIC, Scale(1, 0, NOW - 99), CALM, 1),
        (ELASTIC, Scale(3, 0, NOW - 99), Signals(busy=3), 3),
        (
            ELASTIC,
            Scale(3, 0, NOW - 99),
            Signals(waiting=1, oldest=0.08, busy=1),
            3,
        ),
        # none when nobody calls, one again when somebody does
        (SLEEPY, Scale(1, 0), Signals(idle_seconds=60), 0),
        (SLEEPY, Scale(2, 0), Signals(idle_seconds=60), 0),
        (SLEEPY, Scale(1, 0), Signals(idle_seconds=59), 1),
        (SLEEPY, Scale(1, 0), Signals(idle_seconds=99, busy=1), 1),
        (SLEEPY, Scale(1, 0), Signals(idle_seconds=99, waiting=1), 1),
        (
            SLEEPY,
            Scale(1, NOW - 30),
            Signals(idle_seconds=9999),
            1,
        ),  # it was loaded just now
        (SLEEPY, Scale(0, 0), Signals(idle_seconds=9999), 0),
        (SLEEPY, Scale(0, NOW), Signals(waiting=1), 1),
        (ELASTIC, Scale(1, 0), Signals(idle_seconds=9999), 1),
    ],
)
def test_the_next_number_of_workers(options, state, seen, wanted):
    after = scale(NOW, state, seen, options)
    assert after.wanted == wanted
    assert after.changed == (NOW if wanted != state.wanted else state.changed)


def test_no_more_are_wanted_before_those_that_start_are_there():
    assert scale(NOW, Scale(2, 0), SLOW, ELASTIC, complete=False).wanted == 2
    assert scale(NOW, Scale(2, 0), SLOW, ELASTIC, complete=True).wanted == 3


def test_a_calm_time_has_to_be_one_piece():
    state = Scale(2, 0)
    for now, seen in (
        (0, CALM),
        (20, CALM),
        (25, Signals(waiting=3, oldest=0.08, busy=2)),
        (29, CALM),
        (58, CALM),
    ):
        state = scale(now, state, seen, ELASTIC)
        assert state.wanted == 2
    assert scale(59, state, CALM, ELASTIC).wanted == 1


def test_load_that_comes_and_goes_settles():
    """Up in steps while calls wait, down in steps afterwards, and never up and down in turns."""
    state, seen = Scale(1, 0), []
    for tick in range(4000):
        now = tick * 0.05
        state = scale(now, state, SLOW if now < 20 else CALM, ELASTIC)
        seen.append(state.wanted)
    changes = [
        after - before for before, after in pairwise(seen) if after != before
    ]
    assert changes == [1, 1, 1, -1, -1, -1]


@pytest.mark.parametrize(
    ("held", "budget", "chosen"),
    [
        ([], 10, []),
        ([HeldMemory(1, 5, 99), HeldMemory(2, 5, 50)], 10, []),
        (
            [HeldMemory(1, 6, 50), HeldMemory(2, 5, 99)],
            10,
            [2],
        ),  # the least recently used first
        (
            [HeldMemory(1, 6, 99), HeldMemory(2, 5, 50), HeldMemory(3, 5, 70)],
            10,
            [1],
        ),
        (
            [HeldMemory(1, 6, 99), HeldMemory(2, 5, 50), HeldMemory(3, 5, 70)],
            9,
            [1, 3],
        ),
        (
            [HeldMemory(1, 6, 99, waiting=True), HeldMemory(2, 5, 50)],
            10,
            [2],
        ),  # none in use
        ([HeldMemory(1, 6, 0.5), HeldMemory(2, 5, 0.9)], 1, []),
        ([HeldMemory(1, 6, 99), HeldMemory(2, 5, 0.5)], 1, [1]),
        ([HeldMemory(1, 6, 99)], -5, [1]),
    ],
)
def test_who_sleeps_when_the_memory_is_full(held, budget, chosen):
    assert evict(held, budget) == chosen


@pytest.mark.parametrize(
    ("cores", "fixed", "automatic", "each"),
    [
        (8, 0, 1, 8),
        (8, 0, 2, 4),
        (8, 0, 3, 2),
        (8, 4, 2, 2),
        (8, 0, 0, 8),
        (2, 0, 9, 1),
        (2, 9, 3, 1),
        (8, 8, 0, 1),
    ],
)
def test_the_cores_are_shared(cores, fixed, automatic, each):
    assert share(cores, fixed, automatic) == each
