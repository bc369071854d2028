"""The reconciler: the loop that starts and ends workers until they match the deployments.

A new version is loaded beside the old one. Gateways get its workers only when all are ready, and
only then the old ones are terminated; they stay until no gateway uses them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import delete, update

from modelmill.control.db import ROUTES, Database, Deployment, Replica, bump
from modelmill.control.reconciler.admission import Admission
from modelmill.control.reconciler.autoscaler import Autoscaler
from modelmill.control.reconciler.canary import Canaries, Tally, VersionKey
from modelmill.control.reconciler.failures import Failures
from modelmill.control.reconciler.health import Health
from modelmill.control.reconciler.launcher import Launcher
from modelmill.control.reconciler.memory import MemoryBudget
from modelmill.control.reconciler.pending_writes import (
    PendingWrites,
    versions_of,
)
from modelmill.control.reconciler.queues import Queues
from modelmill.control.reconciler.rollout import Rollout
from modelmill.control.reconciler.scaling import Signals
from modelmill.control.reconciler.threads import plan_threads
from modelmill.control.reconciler.workers import Workers

STOP_SECONDS = 5
"""Seconds after which workers that do not end are killed when the platform stops."""


@dataclass(frozen=True)
class NodeLimits:
    """What workers may take of a node: its cores, bytes of memory (0: no limit), and the seconds
    in which a model must be loaded.
    """

    cores: int
    memory_bytes: int
    load_seconds: float


class Reconciler:
    """Starts, replaces, scales and ends workers.

    `notify_gateways` is called when there is something new in the database for them; `tally` is
    what a version has answered so far, by which canaries are judged.
    """

    def __init__(
        self,
        database: Database,
        launcher: Launcher,
        limits: NodeLimits,
        *,
        notify_gateways: Callable[[], None] = lambda: None,
        tally: Callable[[VersionKey], Tally] = lambda place: Tally(),
    ) -> None:
        self._database = database
        self._cores = limits.cores
        self._notify_gateways = notify_gateways
        self._rows: dict[int, Deployment] = {}
        self._queues = queues = Queues()
        self._writes = writes = PendingWrites(database)
        self._workers = workers = Workers(writes)
        self._canaries = Canaries(writes, tally)
        self._failures = failures = Failures(writes, self._canaries)
        self._health = Health(workers, failures, writes, limits.load_seconds)
        self._autoscaler = scaler = Autoscaler(writes, workers, queues)
        self._memory = memory = MemoryBudget(
            limits.memory_bytes, writes, workers, queues, scaler
        )
        self._admission = Admission(
            limits.cores, writes, workers, queues, memory, scaler
        )
        self._rollout = Rollout(
            writes, workers, failures, self._admission, launcher
        )

    def recover(self) -> None:
        """At start: drop the workers of an earlier run; sleeping deployments stay asleep."""
        with self._database.session() as session:
            session.execute(delete(Replica))
            session.execute(
                update(Deployment).values(serving=None, serving_model=None)
            )
            asleep = update(Deployment).where(Deployment.asleep)
            session.execute(
                asleep.values(
                    serving=Deployment.version, serving_model=Deployment.model
                )
            )
            bump(session, ROUTES)

    def record_signals(
        self, gateway: str, project: str, deployment: str, signals: Signals
    ) -> None:
        """Record the state of a deployment's queue at a gateway."""
        name = (project, deployment)
        self._queues.record(gateway, name, signals, time.monotonic())

    def end_hung(self, socket: str) -> None:
        """Kill the worker at a socket because it hangs; it is replaced like a crashed one."""
        self._health.end_hung(socket)

    def tick(self, news: bool = True) -> None:
        """Observe workers and gateways, start and stop workers, write the changes.

        `news` says that rows may have changed since the last tick. Changes stay in memory until one
        transaction has written them; after a failure the next tick tries again.
        """
        now = time.monotonic()
        self._health.observe(now)
        if news or self._writes.changed:
            self._read(now)
        self._memory.evict(now)
        counts = {
            number: self._autoscaler.count(number, row, now)
            for number, row in self._rows.items()
        }
        if news or self._writes.changed:
            self._match(counts, now)
            self._write()

    def stop(self) -> None:
        """Terminate all workers, and kill those that are still there after `STOP_SECONDS`."""
        for worker in self._workers:
            worker.handle.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while not all(worker.ended for worker in self._workers):
            if time.monotonic() >= deadline:
                break
            time.sleep(0.02)
        for worker in self._workers:
            worker.handle.kill()

    def _read(self, now: float) -> None:
        """Read the rows of deployments; what users have asked for since is to start."""
        for row in self._writes.read():
            self._admission.request(row)
            self._autoscaler.request(row, now)
        self._rows = {row.id: row for row in self._writes.rows}
        self._autoscaler.refresh()
        self._admission.refresh()
        self._forget()

    def _forget(self) -> None:
        """Drop what is known of deployments, canaries and versions that are gone."""
        rows = self._writes.rows
        self._queues.keep({self._writes.name(row) for row in rows})
        variants = {
            (row.id, version) for row in rows for version in versions_of(row)
        }
        self._canaries.keep(variants)
        main = {(row.id, (row.model, row.version)) for row in rows}
        self._failures.keep(variants | main)

    def _match(self, counts: dict[int, int], now: float) -> None:
        """Start and let go workers, so that each deployment has as many as it should."""
        self._workers.let_go(self._workers.of_others(counts), now)
        rows = self._writes.rows
        threads = plan_threads(rows, counts, self._cores)
        for row in rows:
            self._rollout.serve(row, counts[row.id], threads, now)
        for canary in self._canaries.judge(now):
            self._failures.forget(canary)

    def _write(self) -> None:
        """Write what has changed; only then workers end that gateways may use before."""
        if self._writes.changed:
            self._writes.write(self._workers)
            self._notify_gateways()
        self._workers.terminate_leaving()
