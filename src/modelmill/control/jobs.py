"""The job queue: rows that nodes claim, and what their processes leave behind.

Two lanes keep jobs from fighting for cores: one training or evaluation at a time, and beside it one
import of data or of a model. A job that was running when its node died is found interrupted and
goes on from its checkpoint.
"""

import logging
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import delete, exists, select, update

from modelmill.artifacts import Artifacts
from modelmill.cluster.base import Cluster, Handle
from modelmill.control.datasets import Datasets
from modelmill.control.db import Database, Dataset, Job, bump, now
from modelmill.control.registry import Registry
from modelmill.errors import Conflict, MillError, NotFound
from modelmill.types import ENDED, RESULT, JobSpec, Json

log = logging.getLogger("modelmill.node")

FROM = "from"
"""Among the settings of a training: the version that it starts from. No setting can have the
name.
"""
LANES = (("train", "evaluate"), ("import", "register"))

# Big buffers come and go every step: keep their pages instead of giving them back to the system
# each time. Threads that wait for one another soon sleep: on a busy machine spinning ones slow
# everybody, and the job most.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "GOMP_SPINCOUNT": "10000",
}


class Jobs:
    """Rows of jobs, for the API."""

    def __init__(self, database: Database, home: Path) -> None:
        self._database, self.home = database, home

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
        with self._database.session() as session:
            return list(
                session.scalars(
                    select(Job).where(Job.project_id == project).order_by(Job.id.desc())
                )
            )

    def get(self, project: int, number: int) -> Job:
        """One by number; raises `NotFound`."""
        with self._database.session() as session:
            row = session.scalars(
                select(Job).where(Job.project_id == project, Job.id == number)
            ).first()
        if row is None:
            newest = next((job.id for job in self.all(project)), None)
            raise NotFound(
                f"unknown job {number}; "
                + (f"the newest is {newest}" if newest else "there are none yet")
            )
        return row

    def cancel(self, project: int, number: int) -> Job:
        """Stop a job now; one that has ended raises `Conflict`."""
        row = self.get(project, number)
        with self._database.session() as session:
            waiting = Job.state.in_(("queued", "interrupted"))
            ended = (
                update(Job)
                .where(Job.id == row.id, waiting)
                .values(state="cancelled", ended=now())
            )
            if row.kind == "import":
                unchecked = delete(Dataset).where(
                    Dataset.id == row.dataset_id, Dataset.state == "checking"
                )
                session.execute(
                    unchecked.where(exists().where(Job.id == row.id, waiting))
                )
            if not session.execute(ended).rowcount:  # type: ignore[attr-defined]
                asked = (
                    update(Job)
                    .where(Job.id == row.id, Job.state == "running")
                    .values(cancel=True)
                )
                if not session.execute(asked).rowcount:  # type: ignore[attr-defined]
                    raise Conflict(f"job {number} has already {row.state}")
            bump(session)
        return self.get(project, number)

    def resume(self, project: int, number: int) -> Job:
        """Queue a job again; it goes on from its last checkpoint. Raises `Conflict` unless it was
        stopped.
        """
        row = self.get(project, number)
        stopped = ("interrupted", "failed", "cancelled")
        with self._database.session() as session:
            query = update(Job).where(Job.id == row.id, Job.state.in_(stopped))
            again = query.values(state="queued", cancel=False, error="", ended=None)
            if not session.execute(again).rowcount:  # type: ignore[attr-defined]
                raise Conflict(
                    f"job {number} is {row.state}; only {', '.join(stopped)} jobs can be resumed"
                )
            bump(session)
        return self.get(project, number)

    def folder(self, number: int) -> Path:
        """Where a job keeps its log, events, checkpoint and pictures."""
        return self.home / "jobs" / str(number)


class JobRunner:
    """The loop that claims jobs, starts their processes and takes in what they leave; owned by one
    node.
    """

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        datasets: Datasets,
        registry: Registry,
        cluster: Cluster,
        entries: dict[str, str],
        threads: int,
        artifacts: Artifacts,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._datasets = datasets
        self._registry = registry
        self._cluster = cluster
        self._entries = entries
        self._threads = threads
        self._artifacts = artifacts
        self._running: dict[int, Handle] = {}

    def recover(self) -> None:
        """At start: what had ended unseen is taken in; what was running is queued to go on from its
        checkpoint.
        """
        with self._database.session() as session:
            running = list(
                session.scalars(select(Job.id).where(Job.state == "running"))
            )
        for number in running:
            if (self._jobs.folder(number) / RESULT).exists():
                with suppress(MillError):  # else it is queued again below
                    self._take_in(number, 0)
        with self._database.session() as session:
            asked = update(Job).where(Job.state == "running", Job.cancel)
            session.execute(asked.values(state="cancelled", ended=now()))
            session.execute(
                update(Job).where(Job.state == "running").values(state="interrupted")
            )
            again = (
                update(Job)
                .where(Job.state == "interrupted")
                .values(state="queued", cancel=False)
            )
            session.execute(again)

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
            for lane in LANES:
                if not self._busy(lane):
                    self._start_next(lane)

    def stop(self, patience: float) -> None:
        """Ask running jobs to keep a checkpoint and go, until a time; they resume at the next
        start.
        """
        for handle in self._running.values():
            handle.terminate()
        while (
            any(h.exit_code() is None for h in self._running.values())
            and time.monotonic() < patience
        ):
            time.sleep(0.02)
        for number, handle in self._running.items():
            code = handle.exit_code()
            handle.kill()
            self._take_in(number, -signal.SIGKILL if code is None else code)
        self._running.clear()

    def _busy(self, lane: tuple[str, ...]) -> bool:
        with self._database.session() as session:
            query = (
                select(Job.id)
                .where(Job.id.in_(self._running), Job.kind.in_(lane))
                .limit(1)
            )
            return bool(self._running) and session.scalar(query) is not None

    def _start_next(self, lane: tuple[str, ...]) -> None:
        with self._database.session() as session:
            query = (
                select(Job)
                .where(Job.state == "queued", Job.kind.in_(lane))
                .order_by(Job.id)
                .limit(1)
            )
            row = session.scalars(query).first()
            if row is None:
                return
            claim = update(Job).where(Job.id == row.id, Job.state == "queued")
            claimed = session.execute(
                claim.values(state="running", started=now(), ended=None, error="")
            )
            if not claimed.rowcount:  # type: ignore[attr-defined]
                return
        try:
            self._launch(row)
        except (MillError, OSError) as error:
            self._finish(row.id, "failed", str(error))

    def _launch(self, row: Job) -> None:
        folder = self._jobs.folder(row.id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
        handle = self._cluster.start(
            self._entries[row.kind],
            self._spec(row, folder),
            title=f"modelmill: job {row.id}",
            log=folder / "log.txt",
            env={**ENVIRONMENT, "OMP_NUM_THREADS": str(self._threads)},
        )
        self._running[row.id] = handle
        with self._database.session() as session:
            session.execute(update(Job).where(Job.id == row.id).values(pid=handle.pid))

    def _spec(self, row: Job, folder: Path) -> JobSpec:
        with self._database.session() as session:
            dataset = session.get(Dataset, row.dataset_id) if row.dataset_id else None
        if dataset is None and row.kind != "register":
            raise MillError(f"data set '{row.dataset}' was removed")
        source, settings = "", row.settings
        if row.kind == "evaluate":
            source = str(
                self._registry.folder(
                    self._registry.get(row.project_id, f"{row.model}:{row.version}")
                )
            )
        elif row.kind == "train" and FROM in settings:
            source = str(
                self._registry.folder(
                    self._registry.get(row.project_id, settings[FROM])
                )
            )
            settings = {name: value for name, value in settings.items() if name != FROM}
        elif row.kind == "register":
            source = str(self._artifacts.path(row.settings["upload"]))
            if "model" in row.settings:  # whose vectors the upload holds
                base = self._registry.get(row.project_id, row.settings["model"])
                settings = {**settings, "source": str(self._registry.folder(base))}
        return JobSpec(
            job=row.id,
            kind=row.kind,  # type: ignore[arg-type]
            folder=str(folder),
            threads=self._threads,
            name=row.model,
            task=row.task,
            dataset=self._datasets.spec(dataset) if dataset else {},
            recipe=row.recipe,
            settings=settings,
            bundle=source,
            base=row.settings.get(FROM, "") if row.kind == "train" else "",
            split=row.settings.get("split", "test")
            if row.kind == "evaluate"
            else "test",
            cache=str(self._jobs.home / "cache"),
        )

    def _look_after(self, number: int, handle: Handle) -> bool:
        """Whether the job has ended, in which case what it left is taken in."""
        code = handle.exit_code()
        if code is None:
            return False
        handle.kill()  # whatever it started goes with it
        self._take_in(number, code)
        del self._running[number]  # only now: what could not be recorded is tried again
        return True

    def _cancel(self) -> None:
        with self._database.session() as session:
            asked = list(
                session.scalars(
                    select(Job.id).where(Job.state == "running", Job.cancel)
                )
            )
        for number in asked:
            if handle := self._running.get(number):
                handle.kill()
            self._finish(number, "cancelled", "")
            self._running.pop(number, None)

    def _take_in(self, number: int, code: int) -> None:
        """Record what an ended process left: a result, an error, or nothing (it was
        interrupted).
        """
        path = self._jobs.folder(number) / RESULT
        result: Json = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
        if "error" in result:
            return self._finish(number, "failed", result["error"])
        if not result:
            why = (
                f"its process was ended by signal {-code}"
                if code < 0
                else "it was stopped"
            )
            return self._finish(
                number,
                "interrupted",
                f"{why}; `resume {number}` goes on from its checkpoint",
            )
        try:
            self._keep(number, result)
        except (MillError, OSError) as error:
            return self._finish(number, "failed", str(error))
        return None

    def _keep(self, number: int, result: Json) -> None:
        with self._database.session() as session:
            row = session.get_one(Job, number)
        folder, version = self._jobs.folder(number), row.version
        if row.kind in ("train", "register"):
            version = self._registry.add(
                row.project_id, row.model, folder / "bundle", number, result["bundle"]
            ).number
            (folder / "checkpoint.pt").unlink(missing_ok=True)
            if row.kind == "register":
                self._artifacts.remove(row.settings["upload"])
        elif row.kind == "import" and row.dataset_id:
            if (
                folder / "index"
            ).exists():  # else it was taken in before, by a node that died
                self._artifacts.add_file(folder / "index")
            self._datasets.finish(row.dataset_id, result)
        values = {
            "state": "succeeded",
            "version": version,
            "result": result,
            "ended": now(),
            "error": "",
        }
        with self._database.session() as session:
            session.execute(update(Job).where(Job.id == number).values(**values))

    def _finish(self, number: int, state: str, error: str) -> None:
        with self._database.session() as session:
            values = {
                "state": state,
                "error": error,
                "ended": now() if state in ENDED else None,
                "pid": None,
            }
            session.execute(update(Job).where(Job.id == number).values(**values))
            row = session.get_one(Job, number)
        if row.kind == "import" and row.dataset_id and state in ENDED:
            self._datasets.fail(row.dataset_id)
        if state == "cancelled":
            for draft in self._jobs.folder(number).glob("*.draft"):
                shutil.rmtree(draft, ignore_errors=True)
