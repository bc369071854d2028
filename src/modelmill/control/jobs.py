"""The job queue: rows that nodes claim, and what their processes leave behind.

Lanes keep jobs from fighting for cores: one training or evaluation at a time, and beside it one
import of data or of a model. A job that was running when its node died is found interrupted and
goes on from its checkpoint. What a kind of jobs is about, its own module knows (`kinds.py`).
"""

import logging
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from modelmill.cluster.base import Cluster, Handle, terminate_all
from modelmill.control.db import Dataset, Job, bump, now
from modelmill.control.kinds import JobStores, Request, kind_named, kinds, lanes
from modelmill.errors import Conflict, MillError, NotFound
from modelmill.types import ENDED, RESULT, JobSpec, Json

log = logging.getLogger("modelmill.node")

# Big buffers come and go every step: keep their pages instead of giving them back to the system
# each time. Threads that wait for one another soon sleep: on a busy machine spinning ones slow
# everybody, and the job most.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "GOMP_SPINCOUNT": "10000",
}


STOPPED = ("interrupted", "failed", "cancelled")
"""States from which a job can be resumed."""
QUEUED_AGAIN: Json = {
    "state": "queued",
    "cancel": False,
    "error": "",
    "ended": None,
}


class Jobs:
    """Rows of jobs, for the API."""

    def __init__(self, stores: JobStores) -> None:
        self._stores = stores
        self._database = stores.database
        self.home = stores.home

    def check(self, project: int, kind: str, request: Request) -> None:
        """Refuse at once what can't be done, before a file is taken; raises `MillError`."""
        kind_named(kind).check(request, project, self._stores)

    def order(
        self,
        project: int,
        kind: str,
        request: Request,
        upload: Path | None = None,
    ) -> Job | None:
        """Put what is cancelled for in the queue; nothing where what it would make is there. Raises
        `MillError`.
        """
        order = kind_named(kind).order(request, project, self._stores, upload)
        if order is None:
            return None
        dataset = order.dataset
        return self.submit(
            project,
            kind,
            model=order.model,
            version=order.version,
            task=order.task,
            recipe=order.recipe,
            dataset_id=dataset.id if dataset else None,
            dataset=dataset.name if dataset else "",
            settings=order.settings,
        )

    def submit(self, project: int, kind: str, **values: Any) -> Job:
        """Put a job in the queue."""
        with self._database.session() as session:
            row = Job(project_id=project, kind=kind, **values)
            session.add(row)
            bump(session)
            session.flush()
            return row

    def all(self, project: int) -> list[Job]:
        """All of a project, newest first."""
        query = select(Job).where(Job.project_id == project)
        return self._database.all(query.order_by(Job.id.desc()))

    def get(self, project: int, number: int) -> Job:
        """One by number; raises `NotFound`."""
        query = select(Job).where(Job.project_id == project, Job.id == number)
        row = self._database.first(query)
        if row is None:
            newest = next((job.id for job in self.all(project)), None)
            there_is = (
                f"the newest is {newest}" if newest else "there are none yet"
            )
            raise NotFound(f"unknown job {number}; {there_is}")
        return row

    def cancel(self, project: int, number: int) -> Job:
        """Stop a job now; one that has ended raises `Conflict`."""
        row = self.get(project, number)
        with self._database.session() as session:
            waiting = Job.state.in_(("queued", "interrupted"))
            at_once = _changed(
                session, row, waiting, state="cancelled", ended=now()
            )
            if not at_once and not _changed(
                session, row, Job.state == "running", cancel=True
            ):
                raise Conflict(f"job {number} has already {row.state}")
            bump(session)
        if at_once:
            discard(row, self._stores)
        return self.get(project, number)

    def resume(self, project: int, number: int) -> Job:
        """Queue a job again; it goes on from its last checkpoint. Raises `Conflict` unless it was
        stopped.
        """
        row = self.get(project, number)
        with self._database.session() as session:
            if not _changed(
                session, row, Job.state.in_(STOPPED), **QUEUED_AGAIN
            ):
                raise Conflict(
                    f"job {number} is {row.state}; only {', '.join(STOPPED)} jobs can be resumed"
                )
            bump(session)
        return self.get(project, number)

    def folder(self, number: int) -> Path:
        """Where a job keeps its log, events, checkpoint and pictures."""
        return self._stores.folder(number)


def _changed(
    session: Session, row: Job, where: ColumnElement[bool], **values: Any
) -> bool:
    """Change a row, if it is still as `where` says; whether it was."""
    query = update(Job).where(Job.id == row.id, where).values(**values)
    return bool(session.execute(query).rowcount)  # type: ignore[attr-defined]


def discard(row: Job, stores: JobStores) -> None:
    """Drop what was prepared for a job that has failed or was cancelled."""
    if row.kind in kinds():
        kind_named(row.kind).discard(row, stores)


class JobRunner:
    """The loop that claims jobs, starts their processes and takes in what they leave; owned by one
    node.
    """

    def __init__(
        self,
        stores: JobStores,
        cluster: Cluster,
        entry: str,
        threads: int,
    ) -> None:
        self._stores = stores
        self._database = stores.database
        self._cluster = cluster
        self._entry = entry
        self._threads = threads
        known = [Job.kind.in_(lane) for lane in lanes()]
        # Of a kind that is no longer installed: started, to fail in words.
        self._lanes = [*known, Job.kind.not_in(list(kinds()))]
        self._running: dict[int, Handle] = {}

    def recover(self) -> None:
        """At start: what had ended unseen is taken in; what was running is queued to go on from its
        checkpoint.
        """
        self._take_in_ended()
        interrupted = update(Job).where(Job.state == "running")
        cancelled = interrupted.where(Job.cancel)
        with self._database.session() as session:
            session.execute(cancelled.values(state="cancelled", ended=now()))
            session.execute(interrupted.values(state="interrupted"))
            again = update(Job).where(Job.state == "interrupted")
            session.execute(again.values(state="queued", cancel=False))

    def _take_in_ended(self) -> None:
        """Take in what jobs left whose end nobody saw."""
        running = select(Job.id).where(Job.state == "running")
        for number in self._database.all(running):
            if (self._stores.folder(number) / RESULT).exists():
                with suppress(MillError):  # else it is queued again
                    self._take_in(number, 0)

    def tick(self, news: bool = True) -> None:
        """Look after running jobs; when there is news, or one has ended, also cancel and start what
        should be.
        """
        for number, handle in list(self._running.items()):
            try:
                news |= self._look_after(number, handle)
            except MillError as error:
                # Such as a full disk: tried again; the other jobs go on.
                log.error("job %d can't be taken in: %s", number, error)
        if news:
            self._cancel()
            for lane in self._lanes:
                if not self._busy(lane):
                    self._start_next(lane)

    def stop(self, patience: float) -> None:
        """Ask running jobs to keep a checkpoint and go, until a time; they resume at the next
        start.
        """
        terminate_all(self._running.values(), patience)
        for number, handle in self._running.items():
            code = handle.exit_code()
            handle.kill()
            self._take_in(number, -signal.SIGKILL if code is None else code)
        self._running.clear()

    def _busy(self, lane: ColumnElement[bool]) -> bool:
        with self._database.session() as session:
            query = (
                select(Job.id).where(Job.id.in_(self._running), lane).limit(1)
            )
            return bool(self._running) and session.scalar(query) is not None

    def _start_next(self, lane: ColumnElement[bool]) -> None:
        row = self._claim_next(lane)
        if row is None:
            return
        try:
            self._launch(row)
        except (MillError, OSError) as error:
            self._finish(row.id, "failed", str(error))

    def _claim_next(self, lane: ColumnElement[bool]) -> Job | None:
        """The oldest job that waits in a lane, which is running from now on."""
        queued = Job.state == "queued"
        query = select(Job).where(queued, lane).order_by(Job.id).limit(1)
        with self._database.session() as session:
            row = session.scalars(query).first()
            if row is None or not _changed(
                session,
                row,
                queued,
                state="running",
                started=now(),
                ended=None,
                error="",
            ):
                return None
        return row

    def _launch(self, row: Job) -> None:
        folder = self._stores.folder(row.id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
        handle = self._cluster.start(
            self._entry,
            self._spec(row, folder),
            title=f"modelmill: job {row.id}",
            log=folder / "log.txt",
            env={**ENVIRONMENT, "OMP_NUM_THREADS": str(self._threads)},
        )
        self._running[row.id] = handle
        with self._database.session() as session:
            session.execute(
                update(Job).where(Job.id == row.id).values(pid=handle.pid)
            )

    def _spec(self, row: Job, folder: Path) -> JobSpec:
        draft = JobSpec(
            job=row.id,
            kind=row.kind,
            folder=str(folder),
            threads=self._threads,
            name=row.model,
            task=row.task,
            dataset=self._dataset(row),
            recipe=row.recipe,
            settings=row.settings,
            cache=str(self._stores.home / "cache"),
        )
        return kind_named(row.kind).spec(row, draft, self._stores)

    def _dataset(self, row: Job) -> Json:
        """The job's data set as its process gets it, if it has one."""
        with self._database.session() as session:
            dataset = (
                session.get(Dataset, row.dataset_id) if row.dataset_id else None
            )
        if dataset is not None:
            return self._stores.datasets.spec(dataset)
        if row.dataset:
            raise MillError(f"data set '{row.dataset}' was removed")
        return {}

    def _look_after(self, number: int, handle: Handle) -> bool:
        """Whether the job has ended, in which case what it left is taken in."""
        code = handle.exit_code()
        if code is None:
            return False
        handle.kill()  # whatever it started goes with it
        self._take_in(number, code)
        del self._running[
            number
        ]  # only now: what could not be recorded is tried again
        return True

    def _cancel(self) -> None:
        cancelled = select(Job.id).where(Job.state == "running", Job.cancel)
        for number in self._database.all(cancelled):
            if handle := self._running.get(number):
                handle.kill()
            self._finish(number, "cancelled", "")
            self._running.pop(number, None)

    def _take_in(self, number: int, code: int) -> None:
        """Record what an ended process left: a result, an error, or nothing (it was
        interrupted).
        """
        path = self._stores.folder(number) / RESULT
        result: Json = (
            msgspec.json.decode(path.read_bytes()) if path.exists() else {}
        )
        if "error" in result:
            self._finish(number, "failed", result["error"])
        elif result:
            try:
                self._keep(number, result)
            except (MillError, OSError) as error:
                self._finish(number, "failed", str(error))
        else:
            self._finish(number, "interrupted", _interruption(number, code))

    def _keep(self, number: int, result: Json) -> None:
        with self._database.session() as session:
            row = session.get_one(Job, number)
        version = kind_named(row.kind).keep(row, result, self._stores)
        values = {
            "state": "succeeded",
            "version": row.version if version is None else version,
            "result": result,
            "ended": now(),
            "error": "",
        }
        with self._database.session() as session:
            session.execute(
                update(Job).where(Job.id == number).values(**values)
            )

    def _finish(self, number: int, state: str, error: str) -> None:
        values = {
            "state": state,
            "error": error,
            "ended": now() if state in ENDED else None,
            "pid": None,
        }
        with self._database.session() as session:
            session.execute(
                update(Job).where(Job.id == number).values(**values)
            )
            row = session.get_one(Job, number)
        if state in ENDED:
            discard(row, self._stores)
        if state == "cancelled":
            for draft in self._stores.folder(number).glob("*.draft"):
                shutil.rmtree(draft, ignore_errors=True)


def _interruption(number: int, code: int) -> str:
    """Why a job that left nothing has ended, and how it goes on."""
    why = (
        f"its process was ended by signal {-code}"
        if code < 0
        else "it was stopped"
    )
    return f"{why}; `resume {number}` goes on from its checkpoint"
