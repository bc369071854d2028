"""The registry: models, their immutable versions, and aliases."""

import shutil
from pathlib import Path

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from modelmill import bundle
from modelmill.artifacts import Artifacts
from modelmill.control.db import Alias, Database, Version
from modelmill.errors import Conflict, NotFound, unknown
from modelmill.types import Json, Reference, parse_reference


class Registry:
    """Versions and aliases of all models."""

    def __init__(self, database: Database, artifacts: Artifacts) -> None:
        self._database, self._artifacts = database, artifacts

    def add(
        self,
        project: int,
        model: str,
        folder: Path,
        job: int | None,
        digest: str = "",
    ) -> Version:
        """Add a sealed bundle as the model's next version; a job adds one version only.

        A node may have died after it moved `folder` to the store and before it wrote the version:
        then `digest` finds the bundle there. Raises `Conflict` for a model of another task.
        """
        if job is not None and (version := self._of_job(project, job)):
            shutil.rmtree(folder, ignore_errors=True)
            return version
        if digest and not folder.exists():
            folder = self._artifacts.path(digest)
        manifest = bundle.open_bundle(folder)
        digest = bundle.digest_of(folder)
        with self._database.session() as session:
            self.refuse_other_task(session, project, model, manifest.task)
            self._artifacts.add_folder(folder, digest)
            version = Version(
                project_id=project,
                model=model,
                number=self._next_number(session, project, model),
                task=manifest.task,
                digest=digest,
                manifest=msgspec.to_builtins(manifest),
                job_id=job,
            )
            session.add(version)
            return version

    def _of_job(self, project: int, job: int) -> Version | None:
        """The version that a job has added already."""
        query = select(Version).where(
            Version.project_id == project, Version.job_id == job
        )
        return self._database.first(query)

    @staticmethod
    def _next_number(session: Session, project: int, model: str) -> int:
        newest = select(func.max(Version.number)).where(
            Version.project_id == project, Version.model == model
        )
        return (session.scalar(newest) or 0) + 1

    @staticmethod
    def refuse_other_task(
        session: Session, project: int, model: str, task: str
    ) -> None:
        """Raises `Conflict` when the model's versions are of another task."""
        query = (
            select(Version.task)
            .where(Version.project_id == project, Version.model == model)
            .limit(1)
        )
        task_of_model = session.scalar(query)
        if task_of_model is not None and task_of_model != task:
            raise Conflict(
                f"model '{model}' is a {task_of_model} model; give this {task} model another name"
            )

    def all(self, project: int) -> list[Version]:
        """All versions, newest of each model first."""
        query = select(Version).where(Version.project_id == project)
        return self._database.all(
            query.order_by(Version.model, Version.number.desc())
        )

    def get(self, project: int, reference: str | Reference) -> Version:
        """The version of `NAME[:VERSION|@ALIAS]`, the newest by default; raises `NotFound`."""
        parsed = (
            parse_reference(reference)
            if isinstance(reference, str)
            else reference
        )
        with self._database.session() as session:
            number = parsed.version
            if parsed.alias:
                number = self._version_of_alias(
                    session, project, parsed.name, parsed.alias
                )
            version = self._find(session, project, parsed.name, number)
            if version is None:
                raise self._missing(session, project, parsed.name, number)
            return version

    @staticmethod
    def _find(
        session: Session, project: int, model: str, number: int | None
    ) -> Version | None:
        """A version by its number, or the newest."""
        query = select(Version).where(
            Version.project_id == project, Version.model == model
        )
        if number is not None:
            query = query.where(Version.number == number)
        newest = query.order_by(Version.number.desc()).limit(1)
        return session.scalars(newest).first()

    def tasks(self, project: int) -> dict[str, str]:
        """The task of every model, by its name."""
        query = (
            select(Version.model, Version.task)
            .where(Version.project_id == project)
            .distinct()
        )
        with self._database.session() as session:
            return {row.model: row.task for row in session.execute(query)}

    def aliases(self, project: int) -> list[Alias]:
        """All aliases."""
        return self._database.all(
            select(Alias).where(Alias.project_id == project)
        )

    def alias(self, project: int, reference: str, name: str) -> Version:
        """Point an alias at a version, in one step."""
        version = self.get(project, reference)
        query = select(Alias).where(
            Alias.project_id == project,
            Alias.model == version.model,
            Alias.name == name,
        )
        with self._database.session() as session:
            row = session.scalars(query).first()
            if row is None:
                row = Alias(project_id=project, model=version.model, name=name)
                session.add(row)
            row.version = version.number
        return version

    def folder(self, version: Version) -> Path:
        """The folder of a version's bundle."""
        return self._artifacts.path(version.digest)

    @staticmethod
    def _version_of_alias(
        session: Session, project: int, model: str, alias: str
    ) -> int:
        query = select(Alias).where(
            Alias.project_id == project, Alias.model == model
        )
        names = {row.name: row.version for row in session.scalars(query)}
        if alias not in names:
            raise unknown(f"alias of '{model}'", alias, names)
        return names[alias]

    @staticmethod
    def _missing(
        session: Session, project: int, model: str, number: int | None
    ) -> NotFound:
        names = set(
            session.scalars(
                select(Version.model).where(Version.project_id == project)
            )
        )
        if model not in names:
            return unknown("model", model, names)
        query = select(Version.number).where(
            Version.project_id == project, Version.model == model
        )
        numbers = ", ".join(str(n) for n in sorted(session.scalars(query)))
        return NotFound(
            f"model '{model}' has no version {number}; there are: {numbers}"
        )


def summary(version: Version, aliases: list[Alias]) -> Json:
    """A version as plain data, with its manifest's main parts on top."""
    manifest = version.manifest
    return {
        "name": version.model,
        "version": version.number,
        "task": version.task,
        "digest": version.digest,
        "aliases": [
            a.name
            for a in aliases
            if (a.model, a.version) == (version.model, version.number)
        ],
        "metrics": manifest["metrics"],
        "labels": manifest["labels"],
        "inputs": manifest["inputs"],
        "outputs": manifest["outputs"],
        "preprocessing": manifest["preprocessing"],
        "files": manifest["files"],
        "lineage": manifest["lineage"],
        "batches": manifest.get("batches", ""),
        "created": version.created,
    }
