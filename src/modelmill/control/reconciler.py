"""The reconciler: the loop that starts and ends workers until they match the deployments.

A new version is loaded beside the old one. Gateways get its workers only when all are ready, and
only then the old ones are terminated; they stay until no gateway uses them.
"""

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import delete, update

from modelmill.cluster.base import Cluster
from modelmill.control.canary import Judges, Tally
from modelmill.control.db import ROUTES, Database, Deployment, Replica, bump
from modelmill.control.deployments import options_of
from modelmill.control.pending_writes import PendingWrites, versions_of
from modelmill.control.registry import Registry
from modelmill.control.scaling import HeldMemory, Scale, Signals, evict, scale, share
from modelmill.control.workers import QueueSignals, Running, Version
from modelmill.errors import MillError
from modelmill.types import ServingOptions, Variant, WorkerSpec

log = logging.getLogger("modelmill.node")

BACKOFF = (0.0, 0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds before the next start, by the number of failed ones."""
KILL_SECONDS = 65
"""Seconds after which a worker that drains is killed."""
MEASURE_SECONDS = 2.0
"""Seconds between two measurements of memory."""
CANARY_FAILURES = 3
"""Failed starts after which a canary is rolled back."""
MEMORY_FULL = 0.95
"""Share of the memory budget beyond which only deployments with waiting calls are started."""

VersionKey = tuple[str, str, str]
"""Project, deployment, and a version as text."""


class Reconciler:
    """Starts, replaces, scales and ends workers.

    `notify_gateways` is called when there is something new in the database for them; `tally` is
    what a version has answered so far, by which canaries are judged.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        cluster: Cluster,
        logs: Path,
        sockets: Path,
        entry: str,
        cores: int,
        memory_bytes: int,
        load_seconds: float,
        *,
        notify_gateways: Callable[[], None] = lambda: None,
        tally: Callable[[VersionKey], Tally] = lambda place: Tally(),
    ) -> None:
        self._database, self._registry = database, registry
        self._cluster = cluster
        self._logs = logs
        self._sockets = sockets
        self._entry = entry
        self._cores, self._budget = cores, memory_bytes
        self._load_seconds = load_seconds
        self._notify_gateways = notify_gateways
        self._tally = tally
        self._rows: list[Deployment] = []
        self._rows_by_id: dict[int, Deployment] = {}
        self._asleep: dict[int, tuple[str, str]] = {}
        self._workers: list[Running] = []
        self._failures: dict[tuple[int, Version], tuple[int, float]] = {}
        self._writes = PendingWrites(database)
        self._requested: set[int] = set()
        self._queues: dict[tuple[str, str], QueueSignals] = {}
        self._scales: dict[int, Scale] = {}
        self._evicted: set[int] = set()
        self._judges = Judges()
        self._started = 0
        self._measured = 0.0

    def recover(self) -> None:
        """At start: drop the workers of an earlier run; sleeping deployments stay asleep."""
        with self._database.session() as session:
            session.execute(delete(Replica))
            session.execute(update(Deployment).values(serving=None, serving_model=None))
            asleep = update(Deployment).where(Deployment.asleep)
            session.execute(
                asleep.values(
                    serving=Deployment.version, serving_model=Deployment.model
                )
            )
            bump(session, ROUTES)

    # ---- signals of gateways

    def record_signals(
        self, gateway: str, project: str, deployment: str, signals: Signals
    ) -> None:
        """Record the state of a deployment's queue at a gateway."""
        self._queues.setdefault((project, deployment), QueueSignals()).record(
            gateway, signals, time.monotonic()
        )

    def end_hung(self, socket: str) -> None:
        """Kill the worker at a socket because it hangs; it is replaced like a crashed one."""
        for worker in self._workers:
            if worker.spec.socket == socket and worker.handle.exit_code() is None:
                log.error(
                    "worker %s (pid %d) hangs: it is ended",
                    worker.name,
                    worker.handle.pid,
                )
                worker.handle.kill()

    # ---- the loop

    def tick(self, news: bool = True) -> None:
        """Observe workers and gateways, start and stop workers, write the changes.

        `news` says that rows may have changed since the last tick. Changes stay in memory until one
        transaction has written them; after a failure the next tick tries again.
        """
        now = time.monotonic()
        self._observe(now)
        if news or self._writes.changed:
            self._read()
        self._evict_for_memory(now)
        counts = {
            number: self._count(number, row, now)
            for number, row in self._rows_by_id.items()
        }
        if not (news or self._writes.changed):
            return
        self._let_go(
            [
                w
                for w in self._workers
                if w.deployment not in counts and w.leaving is None
            ]
        )
        threads = self._threads(counts)
        for row in self._rows:
            self._serve(row, counts[row.id], threads)
        self._judge_canaries(now)
        if self._writes.changed:
            self._writes.write(self._workers)
            self._notify_gateways()
        for worker in self._workers:
            # Only after the write: the gateways have been told not to use it any more.
            if worker.leaving and not worker.terminated:
                worker.handle.terminate()
                worker.terminated = True

    def stop(self) -> None:
        """Terminate all workers, and kill those that are still there after 5 seconds."""
        for worker in self._workers:
            worker.handle.terminate()
        deadline = time.monotonic() + 5
        while (
            any(w.handle.exit_code() is None for w in self._workers)
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        for worker in self._workers:
            worker.handle.kill()

    def _read(self) -> None:
        for row in self._writes.read():
            self._request(row)
        self._rows = self._writes.rows
        self._rows_by_id = {row.id: row for row in self._rows}
        self._forget()
        self._asleep = {
            row.id: self._name(row) for row in self._rows if self._is_asleep(row)
        }

    def _request(self, row: Deployment) -> None:
        """A user has just deployed or loaded it: it starts, and counts as called now."""
        self._requested.add(row.id)
        self._evicted.discard(row.id)
        if row.id in self._scales:
            self._scales[row.id] = Scale(
                max(1, self._scales[row.id].wanted), time.monotonic()
            )

    def _forget(self) -> None:
        """Drop the state of deployments and versions that are gone."""
        numbers = {row.id for row in self._rows}
        self._scales = {
            number: state for number, state in self._scales.items() if number in numbers
        }
        self._evicted &= numbers
        self._requested &= {
            row.id for row in self._rows if row.loaded and not row.asleep
        }
        names = set(map(self._name, self._rows))
        self._queues = {
            name: queue for name, queue in self._queues.items() if name in names
        }
        variant_keys = {
            (row.id, version) for row in self._rows for version in versions_of(row)
        }
        self._judges.keep(variant_keys)
        current_keys = variant_keys | {
            (row.id, (row.model, row.version)) for row in self._rows
        }
        self._failures = {
            key: failed for key, failed in self._failures.items() if key in current_keys
        }

    # ---- workers

    def _observe(self, now: float) -> None:
        for worker in list(self._workers):
            for message in worker.handle.messages():
                self._writes.changed = True
                worker.error = message.get("error", worker.error)
                if message.get("ready"):
                    worker.ready = True
                    # Measured now: whether the next worker may start depends on it.
                    worker.memory = worker.handle.memory()
                    worker.batch = message.get("batch", 0)
                    worker.alone = message.get("alone", "")
                    worker.threads = message.get("threads", worker.threads)
                    self._failures.pop((worker.deployment, worker.version), None)
            if worker.handle.exit_code() is not None:
                self._remove_ended(worker)
            elif worker.leaving and now - worker.leaving > KILL_SECONDS:
                worker.handle.kill()
            elif not worker.ready and now - worker.started > self._load_seconds:
                self._end_loading(worker)

    def _end_loading(self, worker: Running) -> None:
        """A model whose loading does not end fails as one that can't be loaded."""
        worker.error = (
            f"it was not loaded within {self._load_seconds:g} seconds "
            "(limits.load_seconds)"
        )
        worker.handle.kill()

    def _remove_ended(self, worker: Running) -> None:
        """Drop a worker that has ended; record a failure unless it was terminated."""
        self._workers.remove(worker)
        self._writes.changed = True
        if worker.leaving is not None:
            return
        message = (
            worker.error or f"its worker ended with status {worker.handle.exit_code()}"
        )
        log.warning("worker %s (pid %d): %s", worker.name, worker.handle.pid, message)
        self._record_failure(
            (worker.deployment, worker.version), message, count=not worker.ready
        )

    def _record_failure(
        self, key: tuple[int, Version], message: str, *, count: bool = True
    ) -> None:
        """Wait longer after each failed start; a worker that was ready is replaced at once."""
        failures = self._failures.get(key, (0, 0.0))[0] + count
        self._failures[key] = (
            failures,
            time.monotonic() + BACKOFF[min(failures, len(BACKOFF) - 1)],
        )
        row = next((row for row in self._rows if row.id == key[0]), None)
        self._writes.changed = True
        if not count or row is None:
            return
        if (row.model, row.version) == key[1]:
            self._writes.note(row, error=message)
        elif failures >= CANARY_FAILURES and key[1] in versions_of(row):
            self._roll_back(row, key[1], message)

    # ---- number of workers

    def _count(self, number: int, row: Deployment, now: float) -> int:
        """The desired number of workers; sleeping deployments are decided without a query."""
        if (name := self._asleep.get(number)) is not None:
            queue = self._queues.get(name)
            if queue is None or not queue.waiting(now):
                return 0
        return self._desired(row, now)

    def _is_asleep(self, row: Deployment) -> bool:
        """Whether only a call or a change of its row can wake a deployment."""
        if (
            not row.asleep
            or not row.loaded
            or (state := self._scales.get(row.id)) is None
        ):
            return False
        return row.id in self._evicted or (
            not state.wanted and not options_of(row).min_replicas
        )

    def _name(self, row: Deployment) -> tuple[str, str]:
        return self._writes.projects[row.project_id], row.name

    def _desired(self, row: Deployment, now: float) -> int:
        """The desired number of workers of the main version; a change is written."""
        if row.id not in self._scales:
            self._scales[row.id] = Scale(
                0 if row.asleep else max(options_of(row).min_replicas, 1), now
            )
            if row.asleep:
                self._evicted.add(row.id)
        if not row.loaded:
            return self._note_sleep(row, 0)
        signals = self._signals(row, now)
        if row.id in self._evicted:
            if not signals.waiting:
                return self._note_sleep(row, 0)
            self._evicted.discard(row.id)
        before = self._scales[row.id]
        complete = (
            sum(w.ready for w in self._workers_of(row, (row.model, row.version)))
            >= before.wanted
        )
        after = self._scales[row.id] = scale(
            now, before, signals, options_of(row), complete
        )
        if after.wanted != before.wanted:
            log.info("%s: %d workers, was %d", row.name, after.wanted, before.wanted)
            self._writes.changed = True
        return self._note_sleep(row, after.wanted)

    def _note_sleep(self, row: Deployment, count: int) -> int:
        asleep = count == 0 and row.loaded
        if row.asleep != asleep:
            row.asleep = asleep
            values: dict[str, Any] = {"asleep": asleep}
            if asleep:  # it stays routed: the first call waits for its worker
                values |= {"serving_model": row.model, "serving": row.version}
            self._writes.note(row, **values)
        return count

    def _signals(self, row: Deployment, now: float) -> Signals:
        queue = self._queues.get(self._name(row))
        return (queue.signals(now) if queue else None) or Signals()

    def _evict_for_memory(self, now: float) -> None:
        """Every `MEASURE_SECONDS`: evict the least recently used deployments when the workers hold
        more memory than the budget.
        """
        if now - self._measured < MEASURE_SECONDS:
            return
        self._measured = now
        for worker in self._workers:
            worker.memory = worker.handle.memory()
        if not self._budget:
            return
        held, others = [], 0
        for row in self._rows:
            main = self._workers_of(row, without=versions_of(row))
            memory = sum(w.memory for w in main)
            if main and all(w.ready for w in main) and row.id not in self._evicted:
                signals = self._signals(row, now)
                idle = min(signals.idle_seconds, now - self._scales[row.id].changed)
                held.append(
                    HeldMemory(
                        row.id, memory, idle, bool(signals.waiting or signals.busy)
                    )
                )
            else:
                others += memory
            others += sum(w.memory for w in self._workers_of(row)) - memory
        for number in evict(held, self._budget - others):
            log.info(
                "deployment %d sleeps: the workers hold more than %d bytes",
                number,
                self._budget,
            )
            self._evicted.add(number)
            self._writes.changed = True

    def _threads(self, counts: dict[int, int]) -> int:
        """Threads of each worker without a fixed number.

        Planned for the most workers of each deployment: else each new worker would replace all
        others.
        """
        fixed = automatic = 0
        for row in self._rows:
            options = options_of(row)
            count = max(counts[row.id], options.max_replicas) if counts[row.id] else 0
            count += len(row.variants) if row.loaded else 0
            fixed += count * options.threads
            automatic += 0 if options.threads else count
        return share(self._cores, fixed, automatic)

    # ---- serving

    def _serve(self, row: Deployment, count: int, threads: int) -> None:
        """Start missing workers; when the desired version is complete, route to it and end the
        others.
        """
        options = options_of(row)
        workers = self._workers_of(row)
        variants = self._serve_variants(row, threads) if row.loaded else []
        if not count:
            self._let_go([w for w in workers if w not in variants])
            return
        main = (row.model, row.version)
        current = [w for w in workers if w.version == main and _runs_as(w, options)]
        # A worker chooses its threads when it is ready: a fast model takes one.
        fitting = [
            w for w in current if options.threads or not w.ready or w.threads <= threads
        ]
        for _ in range(count - len(fitting)):
            self._start(row, main, options, threads)
        self._let_go(
            [
                w
                for w in workers
                if not w.ready and w not in current and w not in variants
            ]
        )
        if sum(w.ready for w in current) >= count:
            self._route_to(row, main)
        ready = [w for w in fitting if w.ready]
        if len(ready) >= count:
            self._let_go(
                [
                    w
                    for w in workers
                    if w.leaving is None and w not in ready and w not in variants
                ]
                + ready[count:]
            )

    def _route_to(self, row: Deployment, main: Version) -> None:
        """All workers of the desired version are ready: gateways get it."""
        self._requested.discard(row.id)
        if (row.serving_model, row.serving) != main or row.error:
            self._writes.note(
                row, serving_model=row.model, serving=row.version, error=""
            )

    def _workers_of(
        self,
        row: Deployment,
        version: Version | None = None,
        without: Iterable[Version] = (),
    ) -> list[Running]:
        """The workers of a deployment that are not leaving."""
        workers = [
            w
            for w in self._workers
            if w.deployment == row.id and w.leaving is None and w.version not in without
        ]
        return [w for w in workers if w.version == version] if version else workers

    def _serve_variants(self, row: Deployment, threads: int) -> list[Running]:
        """The workers of canaries and shadows, one each; missing ones are started. One with former
        options stays until the new one is ready.
        """
        options = options_of(row)
        variants: list[Running] = []
        for version in versions_of(row):
            running = self._workers_of(row, version)
            fitting = [w for w in running if _runs_as(w, options)]
            if not fitting:
                self._start(row, version, options, threads)
            ready = [w for w in fitting if w.ready][:1]
            variants += ready or [w for w in running if w.ready][:1] + fitting[:1]
        return variants

    def _start(
        self, row: Deployment, version: Version, options: ServingOptions, threads: int
    ) -> None:
        key = (row.id, version)
        if self._failures.get(key, (0, 0.0))[1] > time.monotonic() or self._must_wait(
            row
        ):
            return
        self._started += 1
        try:
            registered = self._registry.get(
                row.project_id, f"{version[0]}:{version[1]}"
            )
            spec = WorkerSpec(
                deployment=row.name,
                model=version[0],
                version=version[1],
                bundle=str(self._registry.folder(registered)),
                socket=str(self._sockets / f"w{self._started}.sock"),
                threads=options.threads or threads,
                decoders=options.threads or threads,
                engine=options.engine,
                precision=options.precision,
                digest=registered.digest,
                batch=options.batch,
            )
            handle = self._cluster.start(
                self._entry,
                spec,
                title=f"modelmill: worker {row.name}",
                log=self._logs / "workers.log",
                env={"OMP_NUM_THREADS": str(spec.threads)},
            )
        except (MillError, OSError) as error:
            self._record_failure(key, str(error))
            return
        self._workers.append(Running(row, version, spec, handle, time.monotonic()))
        self._writes.changed = True

    def _must_wait(self, row: Deployment) -> bool:
        """Whether a start must wait: too many workers start already, or the memory is full and no
        call waits. A deployment that serves already may scale and change.
        """
        if self._signals(row, time.monotonic()).waiting:
            return False
        if sum(not w.ready for w in self._workers) >= max(2, 2 * self._cores):
            return True
        if row.id in self._requested or any(w.ready for w in self._workers_of(row)):
            return False
        if (
            not self._budget
            or sum(w.memory for w in self._workers) <= self._budget * MEMORY_FULL
        ):
            return False
        self._evicted.add(row.id)
        self._note_sleep(row, 0)
        return True

    def _let_go(self, workers: list[Running]) -> None:
        """Let workers go: the next write removes them from the gateways, then they are
        terminated.
        """
        for worker in workers:
            worker.leaving = time.monotonic()
            self._writes.changed = True

    # ---- canaries

    def _judge_canaries(self, now: float) -> None:
        """Roll back canaries that are worse than the main version."""
        if not self._judges.due(now):
            return
        for row in self._rows:
            for fields in row.variants:
                variant = msgspec.convert(fields, Variant)
                if not variant.shadow and (why := self._verdict(row, variant)):
                    self._roll_back(row, (variant.model, variant.version), why)

    def _verdict(self, row: Deployment, variant: Variant) -> str:
        def tally(version: Version) -> Tally:
            return self._tally((*self._name(row), f"{version[0]}:{version[1]}"))

        main = (row.serving_model or row.model, row.serving or row.version)
        return self._judges.verdict(row.id, variant, main, tally)

    def _roll_back(self, row: Deployment, version: Version, why: str) -> None:
        note = f"{version[0]}:{version[1]} was rolled back: {why}"
        log.error("%s: %s", row.name, note)
        self._failures.pop((row.id, version), None)
        self._writes.drop(row, version, note)


def _runs_as(worker: Running, options: ServingOptions) -> bool:
    """Whether a worker was started as the options say."""
    spec = worker.spec
    same = (spec.engine, spec.precision, spec.batch) == (
        options.engine,
        options.precision,
        options.batch,
    )
    return same and options.threads in (0, spec.threads)
