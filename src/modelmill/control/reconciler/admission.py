"""Whether a worker may start now: not too many at once, and none without memory for it."""

from modelmill.control.db import Deployment
from modelmill.control.reconciler.autoscaler import Autoscaler
from modelmill.control.reconciler.memory import MemoryBudget
from modelmill.control.reconciler.pending_writes import PendingWrites
from modelmill.control.reconciler.queues import Queues
from modelmill.control.reconciler.workers import Workers


class Admission:
    """Lets workers start. A deployment that a user has just asked for starts though memory is
    full.
    """

    def __init__(
        self,
        cores: int,
        writes: PendingWrites,
        workers: Workers,
        queues: Queues,
        memory: MemoryBudget,
        autoscaler: Autoscaler,
    ) -> None:
        self._most_starting = max(2, 2 * cores)
        self._writes = writes
        self._workers = workers
        self._queues = queues
        self._memory = memory
        self._autoscaler = autoscaler
        self._requested: set[int] = set()

    def request(self, row: Deployment) -> None:
        """A user has just deployed or loaded it."""
        self._requested.add(row.id)

    def served(self, row: Deployment) -> None:
        """What was asked for is there."""
        self._requested.discard(row.id)

    def refresh(self) -> None:
        """After rows were read: drop requests for what should not run any more."""
        self._requested &= {
            row.id for row in self._writes.rows if row.loaded and not row.asleep
        }

    def may_start(self, row: Deployment, now: float) -> bool:
        """Whether a worker of a deployment may start.

        It must wait where too many workers start already, or sleeps where the memory is full,
        unless a call waits for it. A deployment that serves already may scale and change.
        """
        if self._queues.signals(self._writes.name(row), now).waiting:
            return True
        if self._workers.starting() >= self._most_starting:
            return False
        if (
            row.id in self._requested
            or self._serves(row)
            or not self._memory.full()
        ):
            return True
        self._autoscaler.send_to_sleep(row)
        return False

    def _serves(self, row: Deployment) -> bool:
        return any(worker.ready for worker in self._workers.of(row))
