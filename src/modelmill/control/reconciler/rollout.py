"""How a deployment gets to what it should run: the new beside the old, then in its place."""

from dataclasses import dataclass

from modelmill.control.db import Deployment
from modelmill.control.options import options_of
from modelmill.control.reconciler.admission import Admission
from modelmill.control.reconciler.failures import Failures
from modelmill.control.reconciler.launcher import Launcher
from modelmill.control.reconciler.pending_writes import (
    PendingWrites,
    versions_of,
)
from modelmill.control.reconciler.running import Running, Version
from modelmill.control.reconciler.workers import Workers
from modelmill.errors import MillError
from modelmill.types import ServingOptions


@dataclass(frozen=True)
class Target:
    """How the workers of a deployment should run at a moment; `threads` are for those whose
    options name no number.
    """

    row: Deployment
    options: ServingOptions
    threads: int
    now: float

    @property
    def main(self) -> Version:
        """The version that should answer."""
        return self.row.model, self.row.version

    def fits(self, worker: Running) -> bool:
        """Whether a worker with the right options has few enough threads: it chooses them when it
        is ready, and a fast model takes one.
        """
        if self.options.threads or not worker.ready:
            return True
        return worker.threads <= self.threads


class Rollout:
    """Starts what is missing, routes to what is complete, and lets go what is not needed."""

    def __init__(
        self,
        writes: PendingWrites,
        workers: Workers,
        failures: Failures,
        admission: Admission,
        launcher: Launcher,
    ) -> None:
        self._writes = writes
        self._workers = workers
        self._failures = failures
        self._admission = admission
        self._launcher = launcher

    def serve(
        self, row: Deployment, count: int, threads: int, now: float
    ) -> None:
        """Bring a deployment closer to `count` workers of its main version and one of each canary
        and shadow.
        """
        target = Target(row, options_of(row), threads, now)
        workers = self._workers.of(row)
        variants = self._serve_variants(target) if row.loaded else []
        workers = [worker for worker in workers if worker not in variants]
        if count:
            self._serve_main(target, count, workers)
        else:
            self._workers.let_go(workers, now)

    def _serve_main(
        self, target: Target, count: int, workers: list[Running]
    ) -> None:
        """Start missing workers; when the desired version is complete, route to it and end the
        others.
        """
        current = [
            worker
            for worker in workers
            if worker.version == target.main and worker.runs_as(target.options)
        ]
        fitting = [worker for worker in current if target.fits(worker)]
        for _ in range(count - len(fitting)):
            self._start(target, target.main)
        outdated = [w for w in workers if not w.ready and w not in current]
        self._workers.let_go(outdated, target.now)
        if len(_ready(current)) >= count:
            self._route_to(target.row)
        ready = _ready(fitting)
        if len(ready) >= count:
            self._leave_only(ready[:count], workers, target.now)

    def _leave_only(
        self, needed: list[Running], workers: list[Running], now: float
    ) -> None:
        """Let go all workers but those that are needed."""
        spare = [w for w in workers if w.leaving is None and w not in needed]
        self._workers.let_go(spare, now)

    def _route_to(self, row: Deployment) -> None:
        """All workers of the desired version are ready: gateways get it."""
        self._admission.served(row)
        serving = (row.serving_model, row.serving)
        if serving != (row.model, row.version) or row.error:
            self._writes.note(
                row, serving_model=row.model, serving=row.version, error=""
            )

    def _serve_variants(self, target: Target) -> list[Running]:
        """The workers of canaries and shadows, one each; missing ones are started. One with former
        options stays until the new one is ready.
        """
        variants: list[Running] = []
        for version in versions_of(target.row):
            running = self._workers.of(target.row, version)
            fitting = [w for w in running if w.runs_as(target.options)]
            if not fitting:
                self._start(target, version)
            ready = _ready(fitting)[:1]
            variants += ready or _ready(running)[:1] + fitting[:1]
        return variants

    def _start(self, target: Target, version: Version) -> None:
        """Start a worker, unless it has to wait."""
        row = target.row
        now = target.now
        key = (row.id, version)
        if self._failures.backing_off(key, now):
            return
        if not self._admission.may_start(row, now):
            return
        try:
            worker = self._launcher.start(
                row, version, target.options, target.threads, now
            )
        except (MillError, OSError) as error:
            self._failures.record(key, str(error), now)
        else:
            self._workers.add(worker)


def _ready(workers: list[Running]) -> list[Running]:
    return [worker for worker in workers if worker.ready]
