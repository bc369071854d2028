"""The loop that turns wanted deployments into workers; owned by one node.

A new version is loaded beside the old one; the gateways are told of its workers only when all are
ready, and only then the old ones are asked to go. They stay until every gateway has let go of them.
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
from modelmill.control.scaling import Held, Scale, Signals, evict, scale, share
from modelmill.control.workers import Heard, Running, Version
from modelmill.errors import MillError
from modelmill.types import ServingOptions, Variant, WorkerSpec

log = logging.getLogger("modelmill.node")

BACKOFF = (0.0, 0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
KILL_SECONDS = 65
WEIGH_SECONDS = 2.0
CANARY_FAILURES = 3
FULL = 0.95
"""Share of the memory budget beyond which nothing is started that nobody has called."""

Place = tuple[str, str, str]
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
        tally: Callable[[Place], Tally] = lambda place: Tally(),
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
        self._numbered: dict[int, Deployment] = {}
        self._sleepers: dict[int, tuple[str, str]] = {}
        self._workers: list[Running] = []
        self._failures: dict[tuple[int, Version], tuple[int, float]] = {}
        self._writes = PendingWrites(database)
        self._insisted: set[int] = set()
        self._heard: dict[tuple[str, str], Heard] = {}
        self._scales: dict[int, Scale] = {}
        self._evicted: set[int] = set()
        self._judges = Judges()
        self._started = 0
        self._weighed = 0.0

    def recover(self) -> None:
        """At start: no worker of an earlier run exists any more; what slept sleeps on."""
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

    # ---- what gateways say

    def hear(
        self, gateway: str, project: str, deployment: str, signals: Signals
    ) -> None:
        """How a deployment's queue stands at a gateway."""
        self._heard.setdefault((project, deployment), Heard()).hear(
            gateway, signals, time.monotonic()
        )

    def end_hung(self, socket: str) -> None:
        """End a worker that no longer answers; it is replaced as one that crashed."""
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
        """See what workers and gateways say; when something follows from it, start and stop what is
        needed.

        What changed is kept in memory until one transaction has written it and told the gateways;
        should that fail, the next tick tries again.
        """
        now = time.monotonic()
        self._observe(now)
        if news or self._writes.changed:
            self._read()
        self._weigh(now)
        counts = {
            number: self._count(number, row, now)
            for number, row in self._numbered.items()
        }
        if not (news or self._writes.changed):
            return
        self._dismiss(
            [
                w
                for w in self._workers
                if w.deployment not in counts and w.leaving is None
            ]
        )
        threads = self._threads(counts)
        for row in self._rows:
            self._serve(row, counts[row.id], threads)
        self._judge(now)
        if self._writes.changed:
            self._writes.write(self._workers)
            self._notify_gateways()
        for worker in self._workers:
            if (
                worker.leaving and not worker.asked
            ):  # only now: the gateways have been told to let go
                worker.handle.terminate()
                worker.asked = True

    def stop(self) -> None:
        """Ask every worker to go (the gateways have let go of them by now)."""
        for worker in self._workers:
            worker.handle.terminate()
        patience = time.monotonic() + 5
        while (
            any(w.handle.exit_code() is None for w in self._workers)
            and time.monotonic() < patience
        ):
            time.sleep(0.02)
        for worker in self._workers:
            worker.handle.kill()

    def _read(self) -> None:
        for row in self._writes.read():
            self._insist(row)
        self._rows = self._writes.rows
        self._numbered = {row.id: row for row in self._rows}
        self._forget()
        self._sleepers = {
            row.id: self._name(row) for row in self._rows if self._sleeps(row)
        }

    def _insist(self, row: Deployment) -> None:
        """Somebody has just deployed or loaded it: it starts, and counts as called now."""
        self._insisted.add(row.id)
        self._evicted.discard(row.id)
        if row.id in self._scales:
            self._scales[row.id] = Scale(
                max(1, self._scales[row.id].wanted), time.monotonic()
            )

    def _forget(self) -> None:
        """Drop what is known of deployments and versions that are no longer wanted."""
        numbers = {row.id for row in self._rows}
        self._scales = {
            number: state for number, state in self._scales.items() if number in numbers
        }
        self._evicted &= numbers
        self._insisted &= {
            row.id for row in self._rows if row.loaded and not row.asleep
        }
        names = set(map(self._name, self._rows))
        self._heard = {
            name: heard for name, heard in self._heard.items() if name in names
        }
        beside = {
            (row.id, version) for row in self._rows for version in versions_of(row)
        }
        self._judges.keep(beside)
        known = beside | {(row.id, (row.model, row.version)) for row in self._rows}
        self._failures = {
            key: failed for key, failed in self._failures.items() if key in known
        }

    # ---- what workers do

    def _observe(self, now: float) -> None:
        for worker in list(self._workers):
            for message in worker.handle.messages():
                self._writes.changed = True
                worker.error = message.get("error", worker.error)
                if message.get("ready"):
                    worker.ready = True
                    # Whether the next may start depends on it
                    worker.memory = worker.handle.memory()
                    worker.batch = message.get("batch", 0)
                    worker.alone = message.get("alone", "")
                    worker.threads = message.get("threads", worker.threads)
                    self._failures.pop((worker.deployment, worker.version), None)
            if worker.handle.exit_code() is not None:
                self._bury(worker)
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

    def _bury(self, worker: Running) -> None:
        """A worker has ended: forget it, and remember an unwanted end."""
        self._workers.remove(worker)
        self._writes.changed = True
        if worker.leaving is not None:
            return
        message = (
            worker.error or f"its worker ended with status {worker.handle.exit_code()}"
        )
        log.warning("worker %s (pid %d): %s", worker.name, worker.handle.pid, message)
        self._failed(
            (worker.deployment, worker.version), message, count=not worker.ready
        )

    def _failed(
        self, key: tuple[int, Version], message: str, *, count: bool = True
    ) -> None:
        """Wait longer after each failure to start; a worker that was ready is replaced at once."""
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

    # ---- how many workers

    def _count(self, number: int, row: Deployment, now: float) -> int:
        """How many workers it should have now; hundreds may sleep, and cost nearly nothing."""
        if (name := self._sleepers.get(number)) is not None:
            heard = self._heard.get(name)
            if heard is None or not heard.waiting(now):
                return 0
        return self._wanted(row, now)

    def _sleeps(self, row: Deployment) -> bool:
        """Whether nothing but a call, or a change of its row, wakes a deployment."""
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

    def _wanted(self, row: Deployment, now: float) -> int:
        """How many workers the main version should have now; notes when that changes."""
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
        whole = (
            sum(w.ready for w in self._mine(row, (row.model, row.version)))
            >= before.wanted
        )
        after = self._scales[row.id] = scale(
            now, before, signals, options_of(row), whole
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
            if asleep:  # what sleeps is routed: the first call waits for its worker
                values |= {"serving_model": row.model, "serving": row.version}
            self._writes.note(row, **values)
        return count

    def _signals(self, row: Deployment, now: float) -> Signals:
        heard = self._heard.get(self._name(row))
        return (heard.signals(now) if heard else None) or Signals()

    def _weigh(self, now: float) -> None:
        """Now and then: put the least recently used to sleep when the workers hold more than the
        budget.
        """
        if now - self._weighed < WEIGH_SECONDS:
            return
        self._weighed = now
        for worker in self._workers:
            worker.memory = worker.handle.memory()
        if not self._budget:
            return
        held, rest = [], 0
        for row in self._rows:
            main = self._mine(row, but=versions_of(row))
            memory = sum(w.memory for w in main)
            if main and all(w.ready for w in main) and row.id not in self._evicted:
                seen = self._signals(row, now)
                idle = min(seen.idle_seconds, now - self._scales[row.id].changed)
                held.append(Held(row.id, memory, idle, bool(seen.waiting or seen.busy)))
            else:
                rest += memory
            rest += sum(w.memory for w in self._mine(row)) - memory
        for number in evict(held, self._budget - rest):
            log.info(
                "deployment %d sleeps: the workers hold more than %d bytes",
                number,
                self._budget,
            )
            self._evicted.add(number)
            self._writes.changed = True

    def _threads(self, counts: dict[int, int]) -> int:
        """Threads of a worker whose deployment leaves the choice to us.

        Planned for the most workers that a deployment may have: else each one more would roll all
        the others.
        """
        fixed = automatic = 0
        for row in self._rows:
            options = options_of(row)
            count = max(counts[row.id], options.max_replicas) if counts[row.id] else 0
            count += len(row.variants) if row.loaded else 0
            fixed += count * options.threads
            automatic += 0 if options.threads else count
        return share(self._cores, fixed, automatic)

    # ---- who serves

    def _serve(self, row: Deployment, count: int, threads: int) -> None:
        """Start what lacks; when the wanted version is whole, route to it and let the others go."""
        options = options_of(row)
        mine = self._mine(row)
        kept = self._serve_variants(row, threads) if row.loaded else []
        if not count:
            self._dismiss([w for w in mine if w not in kept])
            return
        main = (row.model, row.version)
        alike = [w for w in mine if w.version == main and _runs_as(w, options)]
        # How many threads a worker takes of its share is known when it is ready: a quick model
        # takes one.
        right = [
            w for w in alike if options.threads or not w.ready or w.threads <= threads
        ]
        for _ in range(count - len(right)):
            self._start(row, main, options, threads)
        self._dismiss(
            [w for w in mine if not w.ready and w not in alike and w not in kept]
        )
        if sum(w.ready for w in alike) >= count:
            self._arrived(row, main)
        ready = [w for w in right if w.ready]
        if len(ready) >= count:
            self._dismiss(
                [
                    w
                    for w in mine
                    if w.leaving is None and w not in ready and w not in kept
                ]
                + ready[count:]
            )

    def _arrived(self, row: Deployment, main: Version) -> None:
        """The wanted version is whole."""
        self._insisted.discard(row.id)
        if (row.serving_model, row.serving) != main or row.error:
            self._writes.note(
                row, serving_model=row.model, serving=row.version, error=""
            )

    def _mine(
        self, row: Deployment, only: Version | None = None, but: Iterable[Version] = ()
    ) -> list[Running]:
        """The workers of a deployment that are not leaving."""
        mine = [
            w
            for w in self._workers
            if w.deployment == row.id and w.leaving is None and w.version not in but
        ]
        return [w for w in mine if w.version == only] if only else mine

    def _serve_variants(self, row: Deployment, threads: int) -> list[Running]:
        """The workers of canaries and shadows, one each; starts those that lack. One that runs as
        options of before said stays until the new one is ready.
        """
        options, kept = options_of(row), []
        for version in versions_of(row):
            there = self._mine(row, version)
            right = [w for w in there if _runs_as(w, options)]
            if not right:
                self._start(row, version, options, threads)
            ready = [w for w in right if w.ready][:1]
            kept += ready or [w for w in there if w.ready][:1] + right[:1]
        return kept

    def _start(
        self, row: Deployment, version: Version, options: ServingOptions, threads: int
    ) -> None:
        key = (row.id, version)
        if self._failures.get(key, (0, 0.0))[1] > time.monotonic() or self._postponed(
            row
        ):
            return
        self._started += 1
        try:
            found = self._registry.get(row.project_id, f"{version[0]}:{version[1]}")
            spec = WorkerSpec(
                deployment=row.name,
                model=version[0],
                version=version[1],
                bundle=str(self._registry.folder(found)),
                socket=str(self._sockets / f"w{self._started}.sock"),
                threads=options.threads or threads,
                decoders=options.threads or threads,
                engine=options.engine,
                precision=options.precision,
                digest=found.digest,
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
            self._failed(key, str(error))
            return
        self._workers.append(Running(row, version, spec, handle, time.monotonic()))
        self._writes.changed = True

    def _postponed(self, row: Deployment) -> bool:
        """Whether a start must wait: too many start already, or the memory is full and nobody needs
        it now.

        What serves already may grow and change: it is no reason to put it to sleep.
        """
        if self._signals(row, time.monotonic()).waiting:
            return False
        if sum(not w.ready for w in self._workers) >= max(2, 2 * self._cores):
            return True
        if row.id in self._insisted or any(w.ready for w in self._mine(row)):
            return False
        if (
            not self._budget
            or sum(w.memory for w in self._workers) <= self._budget * FULL
        ):
            return False
        self._evicted.add(row.id)
        self._note_sleep(row, 0)
        return True

    def _dismiss(self, workers: list[Running]) -> None:
        """Workers that are to go: hidden from the gateways with the next write, then asked."""
        for worker in workers:
            worker.leaving = time.monotonic()
            self._writes.changed = True

    # ---- canaries

    def _judge(self, now: float) -> None:
        """Now and then: take away the canaries that have shown to be worse."""
        if not self._judges.due(now):
            return
        for row in self._rows:
            for one in row.variants:
                variant = msgspec.convert(one, Variant)
                if not variant.shadow and (why := self._worse(row, variant)):
                    self._roll_back(row, (variant.model, variant.version), why)

    def _worse(self, row: Deployment, variant: Variant) -> str:
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
