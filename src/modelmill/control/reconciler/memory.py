"""Which deployments sleep when the workers hold more memory than they may."""

import logging

from modelmill.control.db import Deployment
from modelmill.control.reconciler.autoscaler import Autoscaler
from modelmill.control.reconciler.pending_writes import (
    PendingWrites,
    versions_of,
)
from modelmill.control.reconciler.queues import Queues
from modelmill.control.reconciler.running import Running
from modelmill.control.reconciler.scaling import HeldMemory, evict
from modelmill.control.reconciler.workers import Workers

log = logging.getLogger("modelmill.node")

MEASURE_SECONDS = 2.0
"""Seconds between two measurements of memory."""
MEMORY_FULL = 0.95
"""Share of the memory budget beyond which only deployments with waiting calls are started."""


class MemoryBudget:
    """Keeps the workers within so many bytes; 0 for no limit."""

    def __init__(
        self,
        budget: int,
        writes: PendingWrites,
        workers: Workers,
        queues: Queues,
        autoscaler: Autoscaler,
    ) -> None:
        self._budget = budget
        self._writes = writes
        self._workers = workers
        self._queues = queues
        self._autoscaler = autoscaler
        self._measured = 0.0

    def full(self) -> bool:
        """Whether hardly anything is left."""
        if not self._budget:
            return False
        return self._workers.memory() > self._budget * MEMORY_FULL

    def evict(self, now: float) -> None:
        """Every `MEASURE_SECONDS`: evict the least recently used deployments when the workers hold
        more memory than the budget.
        """
        if now - self._measured < MEASURE_SECONDS:
            return
        self._measured = now
        self._workers.measure()
        if not self._budget:
            return
        held = self._held(now)
        others = self._of_deployments() - sum(each.memory for each in held)
        for number in evict(held, self._budget - others):
            log.info(
                "deployment %d sleeps: the workers hold more than %d bytes",
                number,
                self._budget,
            )
            self._autoscaler.evict(number)

    def _of_deployments(self) -> int:
        """The memory of all workers that are not leaving."""
        return sum(
            worker.memory
            for row in self._writes.rows
            for worker in self._workers.of(row)
        )

    def _held(self, now: float) -> list[HeldMemory]:
        """What each deployment that may sleep holds."""
        held = []
        for row in self._writes.rows:
            main = self._workers.of(row, without=versions_of(row))
            all_ready = all(worker.ready for worker in main)
            if main and all_ready and not self._autoscaler.is_evicted(row):
                held.append(self._held_by(row, main, now))
        return held

    def _held_by(
        self, row: Deployment, main: list[Running], now: float
    ) -> HeldMemory:
        signals = self._queues.signals(self._writes.name(row), now)
        return HeldMemory(
            row.id,
            sum(worker.memory for worker in main),
            self._autoscaler.idle_seconds(row, signals, now),
            bool(signals.waiting or signals.busy),
        )
