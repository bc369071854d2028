"""Which workers live: what they report, which have ended, and which are killed."""

import logging
from typing import Any

from modelmill.control.reconciler.failures import Failures
from modelmill.control.reconciler.pending_writes import PendingWrites
from modelmill.control.reconciler.running import Running
from modelmill.control.reconciler.workers import Workers

log = logging.getLogger("modelmill.node")

KILL_SECONDS = 65
"""Seconds after which a worker that drains is killed."""


class Health:
    """Observes the workers; a model that is not loaded within `load_seconds` has failed."""

    def __init__(
        self,
        workers: Workers,
        failures: Failures,
        writes: PendingWrites,
        load_seconds: float,
    ) -> None:
        self._workers = workers
        self._failures = failures
        self._writes = writes
        self._load_seconds = load_seconds

    def observe(self, now: float) -> None:
        """Take in what the workers report; drop those that have ended, kill those that hang."""
        for worker in self._workers:
            for message in worker.handle.messages():
                self._take_in(worker, message)
            if worker.ended:
                self._remove_ended(worker, now)
            elif worker.leaving and now - worker.leaving > KILL_SECONDS:
                worker.handle.kill()
            elif not worker.ready and now - worker.started > self._load_seconds:
                self._end_loading(worker)

    def end_hung(self, socket: str) -> None:
        """Kill the worker at a socket because it hangs; it is replaced like a crashed one."""
        for worker in self._workers:
            if worker.spec.socket == socket and not worker.ended:
                pid = worker.handle.pid
                log.error(
                    "worker %s (pid %d) hangs: it is ended", worker.name, pid
                )
                worker.handle.kill()

    def _take_in(self, worker: Running, message: dict[str, Any]) -> None:
        self._writes.changed = True
        worker.error = message.get("error", worker.error)
        if not message.get("ready"):
            return
        worker.ready = True
        # Measured now: whether the next worker may start depends on it.
        worker.memory = worker.handle.memory()
        worker.batch = message.get("batch", 0)
        worker.alone = message.get("alone", "")
        worker.threads = message.get("threads", worker.threads)
        self._failures.forget(worker.key)

    def _end_loading(self, worker: Running) -> None:
        """A model whose loading does not end fails as one that can't be loaded."""
        worker.error = (
            f"it was not loaded within {self._load_seconds:g} seconds "
            "(limits.load_seconds)"
        )
        worker.handle.kill()

    def _remove_ended(self, worker: Running, now: float) -> None:
        """Drop a worker that has ended; record a failure unless it was let go."""
        self._workers.remove(worker)
        if worker.leaving is not None:
            return
        status = worker.handle.exit_code()
        message = worker.error or f"its worker ended with status {status}"
        log.warning(
            "worker %s (pid %d): %s", worker.name, worker.handle.pid, message
        )
        self._failures.record(worker.key, message, now, count=not worker.ready)
