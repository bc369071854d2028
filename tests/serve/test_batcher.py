"""Which calls go now: tables of a queue, the limits, and what comes of them."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.serve.batcher import BatchLimits, Lanes, admit, take

NOW = 100.0
WIDE = BatchLimits(64, 64, 1 << 20)


@dataclass(eq=False)
class Wait:
    """A waiting call."""

    name: str
    key: str = ""
    priority: int = 0
    rows: int = 1
    size: int = 1
    deadline: float = NOW + 60
    arrived: float = NOW
    attempts: int = 0
    left: bool = False

    def gone(self) -> bool:
        return self.left


def names(calls):
    return "".join(call.name for call in calls)


def queue_of(*calls):
    lanes = Lanes()
    for call in calls:
        lanes.add(call)
    return lanes


def calls_of(text, **said):
    """`a1 a2 b1`: calls named by their number, of the keys a and b."""
    return [Wait(word[1:], word[0], **said) for word in text.split()]


def all_of(lanes, limits):
    """Batch after batch, until nothing waits."""
    batches = []
    while lanes.count:
        batches.append(take(lanes, NOW, limits).batch)
    return batches


LATE, LEFT = NOW - 1, True


@pytest.mark.parametrize(
    ("queue", "limits", "batch", "expired", "rest"),
    [
        ([], (4, 64, 10), "", "", ""),
        ([Wait("a")], (4, 64, 10), "a", "", ""),
        (
            [Wait("a"), Wait("b"), Wait("c")],
            (2, 64, 10),
            "ab",
            "",
            "c",
        ),  # calls
        (
            [Wait("a", rows=3), Wait("b", rows=2), Wait("c")],
            (4, 4, 10),
            "a",
            "",
            "bc",
        ),  # rows
        ([Wait("a", rows=3), Wait("b"), Wait("c")], (4, 4, 10), "ab", "", "c"),
        (
            [Wait("a", size=6), Wait("b", size=5), Wait("c")],
            (4, 64, 10),
            "a",
            "",
            "bc",
        ),  # bytes
        (
            [Wait("a", size=5), Wait("b", size=5), Wait("c")],
            (4, 64, 10),
            "ab",
            "",
            "c",
        ),
        (
            [Wait("a", size=99)],
            (4, 64, 10),
            "a",
            "",
            "",
        ),  # larger than the limit: alone
        ([Wait("a", size=99), Wait("b")], (4, 64, 10), "a", "", "b"),
        ([Wait("a", rows=500), Wait("b")], (4, 64, 10), "a", "", "b"),
        ([Wait("a"), Wait("b", rows=500)], (4, 64, 10), "a", "", "b"),
        ([Wait("a", deadline=LATE), Wait("b")], (4, 64, 10), "b", "a", ""),
        ([Wait("a", deadline=NOW)], (4, 64, 10), "", "a", ""),
        ([Wait("a", left=LEFT), Wait("b")], (4, 64, 10), "b", "", ""),
        ([Wait("a", deadline=LATE, left=LEFT)], (4, 64, 10), "", "", ""),
        (
            [
                Wait("a"),
                Wait("b", deadline=LATE),
                Wait("c", left=LEFT),
                Wait("d"),
            ],
            (2, 64, 10),
            "ad",
            "b",
            "",
        ),
        (
            [Wait("a", size=99, deadline=LATE), Wait("b")],
            (1, 64, 10),
            "b",
            "a",
            "",
        ),
        (
            [Wait("a"), Wait("b", attempts=1), Wait("c")],
            (4, 64, 10),
            "a",
            "",
            "bc",
        ),  # handed over by another queue
    ],
)
def test_the_next_batch(queue, limits, batch, expired, rest):
    lanes = queue_of(*queue)
    taken = take(lanes, NOW, BatchLimits(*limits))
    assert (names(taken.batch), names(taken.expired), names(lanes)) == (
        batch,
        expired,
        rest,
    )
    assert taken.wait == 0
    assert (lanes.count, lanes.size) == (
        len(rest),
        sum(call.size for call in lanes),
    )


@pytest.mark.parametrize(
    ("queue", "order"),
    [
        ("a1 a2 a3", "123"),
        (
            "a1 a2 a3 b4 c5",
            "14523",
        ),  # one greedy key delays the others by one call, not by three
        ("a1 b2 a3 b4 a5 b6", "123456"),
        ("b1 a2 a3 b4", "1243"),
        ("a1 a2 b3 b4 c5 c6", "135246"),
    ],
)
def test_keys_take_turns(queue, order):
    assert (
        "".join(map(names, all_of(queue_of(*calls_of(queue)), BatchLimits(1))))
        == order
    )
    assert names(take(queue_of(*calls_of(queue)), NOW, WIDE).batch) == order


def test_a_key_that_comes_back_goes_to_the_end_of_the_round():
    lanes, order = queue_of(*calls_of("a1 a2 b3 b4")), ""
    for name in "5678":
        order += names(take(lanes, NOW, BatchLimits(1)).batch)
        lanes.add(Wait(name, "c"))
    assert (
        order == "1325"
    )  # c came when it was the turn of b, and waited for it and for a
    lone = queue_of(Wait("1", "a"))
    take(lone, NOW, WIDE)
    lone.add(Wait("2", "b"))
    lone.add(Wait("3", "a"))
    lone.add(Wait("4", "b"))
    assert sorted(names(take(lone, NOW, BatchLimits(2)).batch)) == ["2", "3"]


def test_a_smaller_priority_goes_first_whoever_waits():
    calls = [
        Wait("1", "a", 5),
        Wait("2", "b", 5),
        Wait("3", "a", 0),
        Wait("4", "c", 2),
        Wait("5", "a", 0),
    ]
    assert (
        "".join(map(names, all_of(queue_of(*calls), BatchLimits(1)))) == "35412"
    )


@pytest.mark.parametrize(
    ("ages", "limits", "wait", "batch"),
    [
        ([], BatchLimits(4, max_wait=1), 0, ""),
        ([0.25], BatchLimits(4, max_wait=1), 0.75, ""),
        ([0.25, 0.5, 0], BatchLimits(4, max_wait=1), 0.5, ""),
        ([1], BatchLimits(4, max_wait=1), 0, "0"),
        ([0, 1.5], BatchLimits(4, max_wait=1), 0, "01"),
        ([0, 0, 0, 0], BatchLimits(4, max_wait=1), 0, "0123"),
        ([0, 0, 0], BatchLimits(64, 3, max_wait=1), 0, "012"),
        (
            [0, 0, 0],
            BatchLimits(64, 64, 3, max_wait=1),
            0,
            "012",
        ),  # full in bytes
        ([0, 0], BatchLimits(64, 64, 3, max_wait=1), 1, ""),
    ],
)
def test_with_a_longest_wait_a_batch_stays_until_it_is_full_or_old(
    ages, limits, wait, batch
):
    lanes = queue_of(
        *[Wait(str(n), arrived=NOW - age) for n, age in enumerate(ages)]
    )
    taken = take(lanes, NOW, limits)
    assert (taken.wait, names(taken.batch)) == (pytest.approx(wait), batch)


@pytest.mark.parametrize(("allowed", "wait"), [(60, 10), (8, 4), (0.1, 0.05)])
def test_a_call_in_a_hurry_is_sent_while_there_is_time_to_answer_it(
    allowed, wait
):
    lanes = queue_of(Wait("1"), Wait("2", deadline=NOW + allowed))
    assert take(lanes, NOW, BatchLimits(max_wait=10)).wait == pytest.approx(
        wait
    )
    assert (
        names(take(lanes, NOW + wait, BatchLimits(max_wait=10)).batch) == "12"
    )


def test_a_call_nobody_waits_for_makes_no_batch_wait():
    lanes = queue_of(Wait("1", left=True), Wait("2", left=True))
    assert take(lanes, NOW, BatchLimits(max_wait=10)) == ([], [], 0)
    assert lanes.count == 0


@pytest.mark.parametrize(
    ("again", "queue", "idle", "batches"),
    [
        (
            "12",
            "a3 a4",
            True,
            ["1", "2", "34"],
        ),  # each alone, before all others
        (
            "12",
            "a3 a4",
            False,
            [""],
        ),  # only an idle worker gets them, and the others do not overtake
        ("", "a3 a4", False, ["34"]),
    ],
)
def test_what_was_lost_with_a_worker_goes_alone_and_to_an_idle_one(
    again, queue, idle, batches
):
    lanes = queue_of(*calls_of(queue))
    for name in reversed(again):
        lanes.put_back(Wait(name, attempts=1))
    assert [
        names(take(lanes, NOW, WIDE, idle=idle).batch) for _ in batches
    ] == batches


def test_what_was_lost_does_not_wait_for_a_fuller_batch():
    lanes = queue_of(*calls_of("a1"))
    lanes.put_back(Wait("2", attempts=1))
    assert names(take(lanes, NOW, BatchLimits(max_wait=10)).batch) == "2"
    assert take(lanes, NOW, BatchLimits(max_wait=10)).wait == 10


@pytest.mark.parametrize("said", [{"left": True}, {"deadline": LATE}])
def test_a_lost_call_that_is_over_keeps_nobody_waiting(said):
    lanes = queue_of(*calls_of("a1"))
    lanes.put_back(Wait("2", attempts=1, **said))
    assert names(take(lanes, NOW, WIDE).batch) == "1"


def test_forgetting_what_nobody_waits_for_keeps_the_order():
    calls = [*calls_of("a1 a2 b3 a4 b5"), Wait("6", "c", -1)]
    lanes = queue_of(*calls)
    for name in "98":
        lanes.put_back(Wait(name, attempts=1, left=name == "9"))
    for call in (calls[0], calls[4]):
        call.left = True
    lanes.purge()
    assert (lanes.count, lanes.size) == (5, 5)
    assert "".join(map(names, all_of(lanes, BatchLimits(1)))) == "86234"


@pytest.mark.parametrize(
    ("queue", "key", "limit", "admitted"),
    [
        ("", "a", 2, True),
        ("a1", "a", 2, True),
        ("a1 a2", "a", 2, False),
        ("a1 a2 a3 a4", "b", 4, True),  # beyond the limit: up to its fair share
        ("a1 a2 a3 a4 b5", "b", 4, True),
        ("a1 a2 a3 a4 b5 b6", "b", 4, False),
        ("a1 a2 a3 a4 b5 b6", "a", 4, False),
        ("a1 a2 a3 a4 b5 b6", "c", 4, True),
        ("a1 a2 a3 a4 b5 b6 c7", "c", 4, False),
        ("a1 b2", "c", 2, False),  # a third of two is none
    ],
)
def test_a_full_queue_admits_who_has_less_than_a_fair_share(
    queue, key, limit, admitted
):
    assert admit(queue_of(*calls_of(queue)), key, limit) is admitted


def test_an_empty_lane_is_no_key_that_waits():
    lanes = queue_of(*calls_of("a1"))
    take(lanes, NOW, WIDE)
    for call in calls_of("b2 b3 b4 b5"):
        lanes.add(call)
    assert lanes.keys() == 1
    assert admit(lanes, "a", 4)


CALLS = st.builds(
    Wait,
    st.just("x"),
    st.sampled_from("abc"),
    st.integers(0, 2),
    st.integers(0, 9),
    st.integers(0, 40),
    st.sampled_from([NOW - 1, NOW, NOW + 1, NOW + 60]),
    st.sampled_from([NOW, NOW - 0.5, NOW - 2]),
    st.integers(0, 1),
    st.booleans(),
)
LIMITS = st.builds(
    BatchLimits,
    st.integers(1, 8),
    st.integers(1, 12),
    st.integers(1, 60),
    st.sampled_from([0.0, 1.0]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(CALLS, max_size=30), LIMITS, st.randoms(use_true_random=False))
def test_nothing_is_lost_nothing_goes_twice_and_limits_hold(
    calls, limits, random
):
    lanes = Lanes()
    sent = []
    late = []
    now = NOW
    coming = list(calls)
    while coming or lanes.count:
        for _ in range(min(len(coming), random.randint(0, 4))):
            call = coming.pop(0)
            (lanes.put_back if call.attempts else lanes.add)(call)
        if random.random() < 0.1:
            lanes.purge()
        idle, before = random.random() < 0.7, lanes.count
        batch, expired, wait = take(lanes, now, limits, idle=idle)
        assert lanes.count <= before - len(batch) - len(expired)
        assert (lanes.count, lanes.size) == (
            len(list(lanes)),
            sum(call.size for call in lanes),
        )
        if wait:
            assert not batch
            assert 0 < wait <= limits.max_wait
            now += wait
        elif (
            lanes.count == before and before
        ):  # nothing moved: it must be what only an idle worker may get
            assert not idle
            assert lanes.next().attempts
        assert len(batch) <= limits.calls
        assert (
            len(batch) <= 1 or sum(call.size for call in batch) <= limits.size
        )
        assert (
            len(batch) <= 1 or sum(call.rows for call in batch) <= limits.rows
        )
        assert not any(call.attempts for call in batch) or (
            len(batch) == 1 and idle
        )
        assert all(call.deadline > now for call in batch)
        assert all(call.deadline <= now for call in expired)
        sent += batch
        late += expired
    wanted = [call for call in calls if not call.left]
    assert sorted(map(id, sent + late)) == sorted(map(id, wanted))


@settings(max_examples=200, deadline=None)
@given(st.lists(CALLS, max_size=30), st.integers(1, 8))
def test_within_a_key_and_a_priority_the_order_is_kept(calls, most):
    for number, call in enumerate(calls):
        call.name = str(number)
        call.deadline = NOW + 60
        call.attempts = 0
        call.left = False
    sent = [
        call
        for batch in all_of(queue_of(*calls), BatchLimits(most, 1000, 1 << 20))
        for call in batch
    ]
    for key in "abc":
        for level in range(3):
            mine = [
                int(call.name)
                for call in sent
                if (call.key, call.priority) == (key, level)
            ]
            assert mine == sorted(mine)
    assert [call.priority for call in sent] == sorted(
        call.priority for call in calls
    )
