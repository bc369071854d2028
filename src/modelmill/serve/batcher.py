"""Which calls go now: a pure decision, so that it can be tested as a table."""

from collections import deque
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Waiting(Protocol):
    """What the batcher needs to know of a waiting call."""

    deadline: float
    size: int
    attempts: int

    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""


@dataclass(frozen=True)
class BatchLimits:
    """What fits in one batch."""

    calls: int = 64
    size: int = 64 << 20


T = TypeVar("T", bound=Waiting)


def take(queue: "deque[T]", now: float, limits: BatchLimits) -> tuple[list[T], list[T]]:
    """Remove the next batch from the queue, oldest first.

    Returns the calls to send and those whose deadline has passed; calls nobody waits for are dropped. A lone
    call never waits; one larger than the size limit, or already lost with a worker, goes alone.
    """
    batch: list[T] = []
    expired: list[T] = []
    size = 0
    while queue and len(batch) < limits.calls:
        call = queue[0]
        if batch and size + call.size > limits.size:
            break
        if batch and (call.attempts or batch[0].attempts):
            break  # a call whose worker was lost goes alone: it may be the one that ends workers
        queue.popleft()
        if call.gone():
            continue
        if call.deadline <= now:
            expired.append(call)
            continue
        batch.append(call)
        size += call.size
    return batch, expired
