"""Data sets: what was uploaded, what the check found, and whether it can be trained on."""

from pathlib import Path
from typing import Any

from sqlalchemy import delete, select

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
        """Take an uploaded archive into the store; returns the row and whether it still must be
        checked.

        The same archive under the same name is the same data set; another one raises `Conflict`.
        """
        digest = sha256_of(upload)
        with self._database.session() as session:
            query = select(Dataset).where(
                Dataset.project_id == project, Dataset.name == name
            )
            row = session.scalars(query).first()
            if row is None:
                row = Dataset(project_id=project, name=name)
                session.add(row)
            else:
                if row.state != "ready":
                    raise Conflict(
                        f"data set '{name}' is being checked right now; see `modelmill jobs`"
                    )
                same = (row.digest, row.task, row.options) == (digest, task, options)
                if same and strict and row.report.get("findings"):
                    raise InvalidInput(
                        f"refused because of --strict: data set '{name}' is there, and has findings"
                    )
                if not same or format not in ("", row.format):
                    raise Conflict(
                        f"there is another data set '{name}'; choose another name or remove it "
                        "first"
                    )
                return row, False
            self._artifacts.add_file(upload, digest)
            row.task = task
            row.format = format
            row.options = options
            row.strict = strict
            row.digest = digest
            row.state = "checking"
            row.report = {}
            return row, True

    def all(self, project: int) -> list[Dataset]:
        """All of a project, by name."""
        with self._database.session() as session:
            query = (
                select(Dataset)
                .where(Dataset.project_id == project)
                .order_by(Dataset.name)
            )
            return list(session.scalars(query))

    def get(self, project: int, name: str) -> Dataset:
        """One by name; raises `NotFound` naming those that exist."""
        rows = {row.name: row for row in self.all(project)}
        if name not in rows:
            raise unknown("data set", name, rows)
        return rows[name]

    def remove(self, project: int, name: str) -> None:
        """Forget a data set; its content stays for the versions that came from it."""
        row = self.get(project, name)
        with self._database.session() as session:
            session.delete(session.merge(row))

    def recover(self) -> None:
        """At start: forget what was uploaded without a job to check it."""
        with self._database.session() as session:
            checking = select(Job.dataset_id).where(
                Job.dataset_id.is_not(None), Job.state == "queued"
            )
            lost = delete(Dataset).where(
                Dataset.state == "checking", Dataset.id.not_in(checking)
            )
            session.execute(lost.execution_options(synchronize_session=False))

    def finish(self, dataset: int, result: Json) -> None:
        """Record what the check found."""
        with self._database.session() as session:
            row = session.get(Dataset, dataset)
            if row is None:
                return
            row.state, row.format = "ready", result["format"]
            row.report, row.index_digest = result["report"], result["index_digest"]

    def fail(self, dataset: int) -> None:
        """A data set that could not be read does not exist: its name is free again."""
        with self._database.session() as session:
            row = session.get(Dataset, dataset)
            if row is None or row.state != "checking":
                return
            session.delete(row)
            used = set(
                session.scalars(select(Dataset.digest).where(Dataset.id != dataset))
            )
            used |= {
                manifest["lineage"]["data_digest"]
                for manifest in session.scalars(select(Version.manifest))
            }
        if row.digest not in used:
            self._artifacts.remove(row.digest)

    def usable(self, project: int, name: str, task: str, split: str) -> Dataset:
        """A data set that a job of this task can read; raises `NotFound`, `Conflict` or
        `InvalidInput`.
        """
        row = self.get(project, name)
        if row.state != "ready":
            raise Conflict(
                f"data set '{name}' is still being checked; see `modelmill jobs`"
            )
        if row.task != task and not _serves(row, task):
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
        """A data set with as many classes as the task needs, and splits to train on and to test
        on.
        """
        row = self.usable(project, name, task, "test")
        for split in ("train", "val"):
            self.usable(project, name, task, split)
        classes = [
            label for label, count in row.report.get("classes", {}).items() if count
        ]
        if len(classes) < (least := task_named(task).CLASSES):
            raise InvalidInput(
                f"data set '{name}' has {few(classes)}; {task} needs at least {least}"
            )
        return row

    def spec(self, row: Dataset) -> dict[str, Any]:
        """What a job is told of a data set."""
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


def _serves(row: Dataset, task: str) -> bool:
    """Whether a set that was added for one task is read the same way for another."""
    other = task_named(task)
    return (
        fits(plugins.load(KIND, row.format), other)
        and other.SPLIT == task_named(row.task).SPLIT
    )
