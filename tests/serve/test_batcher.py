"""Which calls go now."""

from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.serve.batcher import BatchLimits, take

NOW = 100.0


@dataclass
class Wait:
    """A waiting call."""

    name: str
    size: int = 1
    deadline: float = NOW + 1
    left: bool = False
    attempts: int = 0

    def gone(self) -> bool:
        return self.left


def names(calls):
    return "".join(call.name for call in calls)


LATE, LEFT = NOW - 1, True


@pytest.mark.parametrize(
    ("queue", "calls", "size", "batch", "expired", "rest"),
    [
        ([], 4, 10, "", "", ""),
        ([Wait("a", attempts=1), Wait("b", attempts=1), Wait("c")], 4, 10, "a", "", "bc"),
        ([Wait("a"), Wait("b", attempts=1), Wait("c")], 4, 10, "a", "", "bc"),
        ([Wait("a")], 4, 10, "a", "", ""),
        ([Wait("a"), Wait("b"), Wait("c")], 2, 10, "ab", "", "c"),
        ([Wait("a", 6), Wait("b", 5), Wait("c", 1)], 4, 10, "a", "", "bc"),
        ([Wait("a", 5), Wait("b", 5), Wait("c", 1)], 4, 10, "ab", "", "c"),
        ([Wait("a", 99)], 4, 10, "a", "", ""),
        ([Wait("a", 99), Wait("b", 0)], 4, 10, "a", "", "b"),
        ([Wait("a", 1), Wait("b", 99)], 4, 10, "a", "", "b"),
        ([Wait("a", deadline=LATE), Wait("b")], 4, 10, "b", "a", ""),
        ([Wait("a", deadline=NOW)], 4, 10, "", "a", ""),
        ([Wait("a", left=LEFT), Wait("b")], 4, 10, "b", "", ""),
        ([Wait("a", deadline=LATE, left=LEFT)], 4, 10, "", "", ""),
        ([Wait("a"), Wait("b", deadline=LATE), Wait("c", left=LEFT), Wait("d")], 2, 10, "ad", "b", ""),
        ([Wait("a", 99, deadline=LATE), Wait("b")], 1, 10, "b", "a", ""),
    ],
)
def test_the_next_batch(queue, calls, size, batch, expired, rest):
    waiting = deque(queue)
    sent, late = take(waiting, NOW, BatchLimits(calls, size))
    assert (names(sent), names(late), names(waiting)) == (batch, expired, rest)


WAITS = st.builds(
    Wait, st.just("x"), st.integers(0, 40), st.sampled_from([NOW - 1, NOW, NOW + 1]), st.booleans()
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(WAITS, max_size=30), st.integers(1, 8), st.integers(1, 60))
def test_order_is_kept_nothing_is_lost_and_limits_hold(queue, calls, size):
    for number, call in enumerate(queue):
        call.name = chr(ord("A") + number)
    waiting, sent, late = deque(queue), [], []
    while waiting:
        before = len(waiting)
        batch, expired = take(waiting, NOW, BatchLimits(calls, size))
        assert len(waiting) < before  # it always comes to an end
        assert len(batch) <= calls
        assert len(batch) == 1 or sum(call.size for call in batch) <= size
        sent += batch
        late += expired
    wanted = [call for call in queue if not call.left]
    assert names(sent) == names(call for call in wanted if call.deadline > NOW)
    assert names(late) == names(call for call in wanted if call.deadline <= NOW)
