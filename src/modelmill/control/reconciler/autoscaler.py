"""How many workers each deployment should have: by its queue, and none while it sleeps."""

import logging
from typing import Any

from modelmill.control.db import Deployment
from modelmill.control.options import options_of
from modelmill.control.reconciler.pending_writes import PendingWrites
from modelmill.control.reconciler.queues import QueueName, Queues
from modelmill.control.reconciler.scaling import Scale, Signals, scale
from modelmill.control.reconciler.workers import Workers

log = logging.getLogger("modelmill.node")


class Autoscaler:
    """Decides the number of workers of the main version of each deployment."""

    def __init__(
        self, writes: PendingWrites, workers: Workers, queues: Queues
    ) -> None:
        self._writes = writes
        self._workers = workers
        self._queues = queues
        self._scales: dict[int, Scale] = {}
        self._evicted: set[int] = set()
        self._dormant: dict[int, QueueName] = {}

    def __len__(self) -> int:
        """The number of deployments whose state is known."""
        return len(self._scales)

    def count(self, number: int, row: Deployment, now: float) -> int:
        """The desired number of workers; that of a dormant deployment does not touch its row."""
        name = self._dormant.get(number)
        if name is not None and not self._queues.waiting(name, now):
            return 0
        return self._note_sleep(row, self._wanted(row, now))

    def request(self, row: Deployment, now: float) -> None:
        """A user has just deployed or loaded it: it starts, and counts as called now."""
        self._evicted.discard(row.id)
        if row.id in self._scales:
            self._scales[row.id] = Scale(
                max(1, self._scales[row.id].wanted), now
            )

    def evict(self, number: int) -> None:
        """End its workers until it is called."""
        self._evicted.add(number)
        self._writes.changed = True

    def is_evicted(self, row: Deployment) -> bool:
        """Whether it was put to sleep for memory, and not called since."""
        return row.id in self._evicted

    def send_to_sleep(self, row: Deployment) -> None:
        """Keep it from starting until it is called: there is no memory for it."""
        self._evicted.add(row.id)
        self._note_sleep(row, 0)

    def idle_seconds(
        self, row: Deployment, signals: Signals, now: float
    ) -> float:
        """Seconds since the last call; being loaded counts as one."""
        return min(signals.idle_seconds, now - self._scales[row.id].changed)

    def refresh(self) -> None:
        """After rows were read: drop what is known of those that are gone, and see which can only
        be woken by a call or a change of their row.
        """
        rows = self._writes.rows
        numbers = {row.id for row in rows}
        self._evicted &= numbers
        self._scales = {
            number: state
            for number, state in self._scales.items()
            if number in numbers
        }
        self._dormant = {
            row.id: self._writes.name(row)
            for row in rows
            if self._is_dormant(row)
        }

    def _is_dormant(self, row: Deployment) -> bool:
        state = self._scales.get(row.id)
        if state is None or not row.asleep or not row.loaded:
            return False
        if row.id in self._evicted:
            return True
        return not state.wanted and not options_of(row).min_replicas

    def _wanted(self, row: Deployment, now: float) -> int:
        if row.id not in self._scales:
            self._begin(row, now)
        if not row.loaded:
            return 0
        signals = self._queues.signals(self._writes.name(row), now)
        if row.id in self._evicted:
            if not signals.waiting:
                return 0
            self._evicted.discard(row.id)
        return self._scaled(row, signals, now)

    def _begin(self, row: Deployment, now: float) -> None:
        """A deployment that is new, or was there before this start of the platform."""
        if row.asleep:
            self._scales[row.id] = Scale(0, now)
            self._evicted.add(row.id)
        else:
            self._scales[row.id] = Scale(
                max(options_of(row).min_replicas, 1), now
            )

    def _scaled(self, row: Deployment, signals: Signals, now: float) -> int:
        """The number of workers by the queue; a change is written."""
        before = self._scales[row.id]
        main = self._workers.of(row, (row.model, row.version))
        complete = sum(worker.ready for worker in main) >= before.wanted
        after = scale(now, before, signals, options_of(row), complete)
        self._scales[row.id] = after
        if after.wanted != before.wanted:
            log.info(
                "%s: %d workers, was %d", row.name, after.wanted, before.wanted
            )
            self._writes.changed = True
        return after.wanted

    def _note_sleep(self, row: Deployment, count: int) -> int:
        """Write whether it sleeps; returns `count`."""
        asleep = count == 0 and row.loaded
        if row.asleep != asleep:
            row.asleep = asleep
            values: dict[str, Any] = {"asleep": asleep}
            if asleep:  # it stays routed: the first call waits for its worker
                values |= {"serving_model": row.model, "serving": row.version}
            self._writes.note(row, **values)
        return count
