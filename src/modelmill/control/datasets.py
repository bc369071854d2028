"""Data sets: uploads, the results of their check, and whether a job can use them."""

from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from modelmill import plugins
from modelmill.artifacts import Artifacts, sha256_of
from modelmill.control.db import Database, Dataset, Job, Version
from modelmill.data.formats import KIND, fits
from modelmill.data.report import few
from modelmill.errors import Conflict, InvalidInput, unknown
from modelmill.tasks.base import task_named
from modelmill.types import Json


class Datasets:
    """The data sets of all projects."""

    def __init__(self, database: Database, artifacts: Artifacts) -> None:
        self._database, self._artifacts = database, artifacts

    def add(
        self,
        project: int,
        name: str,
        task: str,
        format: str,
        options: dict[str, str],
        strict: bool,
        upload: Path,
    ) -> tuple[Dataset, bool]:
        """Add an uploaded archive to the store; returns the row and whether it must be checked.

        The same archive under the same name is the same data set; another one raises `Conflict`.
        """
        digest = sha256_of(upload)
        query = select(Dataset).where(
            Dataset.project_id == project, Dataset.name == name
        )
        with self._database.session() as session:
            row = session.scalars(query).first()
            if row is not None:
                same = (row.digest, row.task, row.options) == (
                    digest,
                    task,
                    options,
                )
                _refuse_other(row, same, format, strict)
                return row, False
            self._artifacts.add_file(upload, digest)
            row = Dataset(
                project_id=project,
                name=name,
                task=task,
                format=format,
                options=options,
                strict=strict,
                digest=digest,
                state="checking",
                report={},
            )
            session.add(row)
            return row, True

    def all(self, project: int) -> list[Dataset]:
        """All of a project, by name."""
        query = select(Dataset).where(Dataset.project_id == project)
        return self._database.all(query.order_by(Dataset.name))

    def get(self, project: int, name: str) -> Dataset:
        """One by name; raises `NotFound` naming those that exist."""
        rows = {row.name: row for row in self.all(project)}
        if name not in rows:
            raise unknown("data set", name, rows)
        return rows[name]

    def remove(self, project: int, name: str) -> None:
        """Remove a data set; its content stays for versions trained on it."""
        row = self.get(project, name)
        with self._database.session() as session:
            session.delete(session.merge(row))

    def recover(self) -> None:
        """At start: remove uploads without a job that checks them."""
        with self._database.session() as session:
            checking = select(Job.dataset_id).where(
                Job.dataset_id.is_not(None), Job.state == "queued"
            )
            abandoned = delete(Dataset).where(
                Dataset.state == "checking", Dataset.id.not_in(checking)
            )
            session.execute(
                abandoned.execution_options(synchronize_session=False)
            )

    def finish(self, dataset: int, result: Json) -> None:
        """Record the result of the check."""
        with self._database.session() as session:
            row = session.get(Dataset, dataset)
            if row is None:
                return
            row.state, row.format = "ready", result["format"]
            row.report, row.index_digest = (
                result["report"],
                result["index_digest"],
            )

    def fail(self, dataset: int) -> None:
        """Remove a data set whose check failed; its name is free again."""
        with self._database.session() as session:
            row = session.get(Dataset, dataset)
            if row is None or row.state != "checking":
                return
            session.delete(row)
            referenced = _referenced(session, dataset)
        if row.digest not in referenced:
            self._artifacts.remove(row.digest)

    def usable(self, project: int, name: str, task: str, split: str) -> Dataset:
        """A data set whose split a job of this task can read; raises `NotFound`, `Conflict` while
        it is checked, or `InvalidInput`.
        """
        row = self.get(project, name)
        if row.state != "ready":
            raise Conflict(
                f"data set '{name}' is still being checked; see `modelmill jobs`"
            )
        if row.task != task and not _fits_task(row, task):
            raise InvalidInput(
                f"data set '{name}' was added for {row.task}, not for {task}"
            )
        splits = {
            split: count
            for split, count in row.report.get("splits", {}).items()
            if count
        }
        if split not in splits:
            raise InvalidInput(
                f"data set '{name}' has no {split} split; it has: "
                f"{', '.join(splits) or 'nothing'}. Add a folder "
                f"named '{split}', or add the set without split folders: it is then split 80/10/10"
            )
        return row

    def trainable(self, project: int, name: str, task: str) -> Dataset:
        """A data set with all splits and enough classes for the task; raises as `usable`."""
        row = self.usable(project, name, task, "test")
        for split in ("train", "val"):
            self.usable(project, name, task, split)
        classes = [
            label
            for label, count in row.report.get("classes", {}).items()
            if count
        ]
        if len(classes) < (classes_needed := task_named(task).CLASSES):
            raise InvalidInput(
                f"data set '{name}' has {few(classes)}; {task} needs at least {classes_needed}"
            )
        return row

    def spec(self, row: Dataset) -> dict[str, Any]:
        """The specification of a data set for a job."""
        return {
            "name": row.name,
            "format": row.format,
            "options": row.options,
            "digest": row.digest,
            "archive": str(self._artifacts.path(row.digest)),
            "index": str(self._artifacts.path(row.index_digest))
            if row.index_digest
            else "",
            "strict": row.strict,
        }


def _refuse_other(row: Dataset, same: bool, format: str, strict: bool) -> None:
    """Raises `Conflict` for a name that is taken, `InvalidInput` for findings with strict."""
    if row.state != "ready":
        raise Conflict(
            f"data set '{row.name}' is being checked right now; see `modelmill jobs`"
        )
    if same and strict and row.report.get("findings"):
        raise InvalidInput(
            f"refused because of --strict: data set '{row.name}' is there, and has findings"
        )
    if not same or format not in ("", row.format):
        raise Conflict(
            f"there is another data set '{row.name}'; choose another name or remove it first"
        )


def _referenced(session: Session, dataset: int) -> set[str]:
    """The digests of archives that other data sets and versions refer to."""
    digests = set(
        session.scalars(select(Dataset.digest).where(Dataset.id != dataset))
    )
    return digests | {
        manifest["lineage"]["data_digest"]
        for manifest in session.scalars(select(Version.manifest))
    }


def _fits_task(row: Dataset, task: str) -> bool:
    """Whether a set that was added for one task can be used for another."""
    wanted = task_named(task)
    return (
        fits(plugins.load(KIND, row.format), wanted)
        and wanted.SPLIT == task_named(row.task).SPLIT
    )
