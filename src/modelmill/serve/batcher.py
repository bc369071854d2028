"""Which calls go now: a pure decision over the queue of a deployment, so that it can be tested as a
table.

Calls of a smaller priority number go first. Among equals the keys take turns, one call each, so
that a caller with a thousand calls waiting delays another's single one by one call and not by a
thousand.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar


class Waiting(Protocol):
    """What the batcher needs to know of a waiting call; `rows` and `size` (bytes) fill a batch."""

    key: str
    priority: int
    arrived: float
    deadline: float
    rows: int
    size: int
    attempts: int

    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""


@dataclass(frozen=True)
class BatchLimits:
    """What fits in one batch, and how many seconds the oldest call may wait for it to fill."""

    calls: int = 64
    rows: int = 64
    size: int = 64 << 20
    max_wait: float = 0.0


T = TypeVar("T", bound=Waiting)


class Lanes(Generic[T]):
    """The queue: a lane for each key within each priority, and those to be tried again before all
    others.
    """

    def __init__(self) -> None:
        self.again: deque[T] = deque()
        self.levels: dict[int, dict[str, deque[T]]] = {}
        self.count = 0
        self.size = 0

    def add(self, call: T) -> None:
        """At the end of its lane."""
        lanes = self.levels.get(call.priority)
        if lanes is None:
            lanes = self.levels[call.priority] = {}
            self.levels = dict(sorted(self.levels.items()))
        lane = lanes.get(call.key)
        if lane is None:
            lane = lanes[call.key] = deque()
        lane.append(call)
        self.count += 1
        self.size += call.size

    def put_back(self, call: T) -> None:
        """Before all others: it has waited once, and its worker was lost."""
        self.again.appendleft(call)
        self.count += 1
        self.size += call.size

    def next(self) -> T | None:
        """The call whose turn it is, left where it is."""
        if self.again:
            return self.again[0]
        return self._turn()[2][0] if self.count else None

    def _turn(self) -> tuple[int, str, deque[T]]:
        """The lane whose turn it is, when any has a call."""
        for level, lanes in self.levels.items():
            for key, lane in lanes.items():
                if lane:
                    return level, key, lane
        raise IndexError("nothing waits")

    def pop(self) -> T:
        """Take the call whose turn it is; its key goes to the end of the round."""
        if self.again:
            call = self.again.popleft()
        else:
            level, key, lane = self._turn()
            call = lane.popleft()
            lanes = self.levels[level]
            if len(lanes) > 1:
                del lanes[key]
                if lane:
                    lanes[key] = lane
            elif (
                not lane and len(self.levels) > 1
            ):  # the last lane stays: most queues have one only
                del self.levels[level]
        self.count -= 1
        self.size -= call.size
        return call

    def keys(self) -> int:
        """How many keys wait (at least one)."""
        return max(
            1,
            len(
                {
                    key
                    for lanes in self.levels.values()
                    for key, lane in lanes.items()
                    if lane
                }
            ),
        )

    def waiting(self, key: str) -> int:
        """How many calls of a key wait."""
        return sum(
            len(lanes[key]) for lanes in self.levels.values() if key in lanes
        )

    def __iter__(self) -> Iterator[T]:
        yield from self.again
        for lanes in self.levels.values():
            for lane in lanes.values():
                yield from lane

    def purge(self) -> None:
        """Forget the calls that nobody waits for."""
        again = [call for call in self.again if not call.gone()]
        rest = [
            call
            for lanes in self.levels.values()
            for lane in lanes.values()
            for call in lane
            if not call.gone()
        ]
        self.again = deque()
        self.levels = {}
        self.count = 0
        self.size = 0
        for call in rest:
            self.add(call)
        for call in reversed(again):
            self.put_back(call)


class Taken(NamedTuple, Generic[T]):
    """What goes now, what came too late, and how many seconds to wait when nothing goes yet."""

    batch: list[T]
    expired: list[T]
    wait: float


def take(
    lanes: Lanes[T], now: float, limits: BatchLimits, *, idle: bool = True
) -> Taken[T]:
    """Remove the next batch from the queue.

    Calls nobody waits for are dropped. A call larger than the limits goes alone, and so does one
    that was already lost with a worker, which only an idle worker may get: it may be what ends
    workers. With `max_wait`, a batch that is not full stays until its oldest call has waited that
    long.
    """
    batch: list[T] = []
    expired: list[T] = []
    if (
        limits.max_wait
        and not lanes.again
        and (wait := _wait(lanes, now, limits)) > 0
    ):
        return Taken(batch, expired, wait)
    size = rows = 0
    while len(batch) < limits.calls and (call := lanes.next()) is not None:
        if batch and (
            size + call.size > limits.size or rows + call.rows > limits.rows
        ):
            break
        if call.attempts and (batch or not idle) and not call.gone():
            break
        lanes.pop()
        if call.gone():
            continue
        if call.deadline <= now:
            expired.append(call)
            continue
        batch.append(call)
        size += call.size
        rows += call.rows
        if call.attempts:
            break
    return Taken(batch, expired, 0.0)


def _wait(lanes: Lanes[T], now: float, limits: BatchLimits) -> float:
    """Seconds until a batch must go though it is not full; none when it is full or nothing waits.

    A call whose time is short waits for others no longer than half of it: the rest is for its
    answer.
    """
    calls = [call for call in lanes if not call.gone()]
    if (
        not calls
        or len(calls) >= limits.calls
        or sum(call.rows for call in calls) >= limits.rows
    ):
        return 0.0
    if sum(call.size for call in calls) >= limits.size:
        return 0.0
    return (
        min(
            call.arrived
            + min(limits.max_wait, (call.deadline - call.arrived) / 2)
            for call in calls
        )
        - now
    )


def admit(lanes: Lanes[T], key: str, limit: int) -> bool:
    """Whether one more call of a key may wait: always below the limit, beyond it up to the key's
    fair share.
    """
    return lanes.count < limit or lanes.waiting(key) < limit // (
        lanes.keys() + (lanes.waiting(key) == 0)
    )
