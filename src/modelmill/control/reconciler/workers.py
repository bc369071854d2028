"""The workers of this node."""

from collections.abc import Iterable, Iterator

from modelmill.control.db import Deployment
from modelmill.control.reconciler.pending_writes import PendingWrites
from modelmill.control.reconciler.running import Running, Version


class Workers:
    """The workers of this node, in the order in which they were started; what changes them is to
    be written.
    """

    def __init__(self, writes: PendingWrites) -> None:
        self._writes = writes
        self._workers: list[Running] = []

    def __iter__(self) -> Iterator[Running]:
        """All of them, those that leave included."""
        return iter(list(self._workers))

    def add(self, worker: Running) -> None:
        """A worker that was started."""
        self._workers.append(worker)
        self._writes.changed = True

    def remove(self, worker: Running) -> None:
        """A worker that has ended."""
        self._workers.remove(worker)
        self._writes.changed = True

    def of(
        self,
        row: Deployment,
        version: Version | None = None,
        without: Iterable[Version] = (),
    ) -> list[Running]:
        """The workers of a deployment that are not leaving, of one version or of all but some."""
        number = row.id
        workers = [
            worker
            for worker in self._workers
            if worker.deployment == number
            and worker.leaving is None
            and worker.version not in without
        ]
        if version is None:
            return workers
        return [worker for worker in workers if worker.version == version]

    def of_others(self, numbers: Iterable[int]) -> list[Running]:
        """The workers that are not leaving of deployments other than these."""
        known = set(numbers)
        return [
            worker
            for worker in self._workers
            if worker.leaving is None and worker.deployment not in known
        ]

    def starting(self) -> int:
        """How many are not ready yet."""
        return sum(not worker.ready for worker in self._workers)

    def measure(self) -> None:
        """Measure the memory of each."""
        for worker in self._workers:
            worker.memory = worker.handle.memory()

    def memory(self) -> int:
        """The memory of all in bytes, as last measured."""
        return sum(worker.memory for worker in self._workers)

    def let_go(self, workers: Iterable[Running], now: float) -> None:
        """Let workers go: the next write removes them from the gateways, then they are
        terminated.
        """
        for worker in workers:
            worker.leaving = now
            self._writes.changed = True

    def terminate_leaving(self) -> None:
        """Terminate those that leave. The gateways have been told not to use them any more."""
        for worker in self._workers:
            if worker.leaving and not worker.terminated:
                worker.handle.terminate()
                worker.terminated = True
