"""The rows of deployments as last read, and the reconciler's changes to them until one transaction
writes them.

Users change rows while the reconciler decides over them: a change is written only where the
desired state that it was decided for still holds.
"""

from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import delete, select

from modelmill.control.db import (
    ROUTES,
    Database,
    Deployment,
    Project,
    Replica,
    bump,
)
from modelmill.control.reconciler.running import Running, Version


class Desired(NamedTuple):
    """The desired state of a deployment, which users may change while the reconciler decides."""

    version: Version
    loaded: bool
    asleep: bool


class PendingWrites:
    """The reconciler's copy of the rows of deployments; `changed` says that there is something to
    write.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.rows: list[Deployment] = []
        self.projects: dict[int, str] = {}
        self.changed = False
        self._updates: dict[int, dict[str, Any]] = {}
        self._dropped: dict[int, dict[Version, str]] = {}
        self._desired: dict[int, Desired] | None = None

    def name(self, row: Deployment) -> tuple[str, str]:
        """The project and the name of a deployment."""
        return self.projects[row.project_id], row.name

    def read(self) -> list[Deployment]:
        """Read all rows; returns those that a user has deployed or loaded since the last read."""
        with self.database.session() as session:
            self.rows = list(session.scalars(select(Deployment)))
            self.projects = {
                row.id: row.name for row in session.scalars(select(Project))
            }
        before = self._desired
        self._desired = {row.id: _desired_of(row) for row in self.rows}
        if before is None:
            return []
        fresh = {
            n
            for n, desired in self._desired.items()
            if before.get(n) != desired
        }
        self._drop_outdated(fresh)
        for row in self.rows:
            self._apply(row)
        changed = [row for row in self.rows if row.id in fresh]
        return [row for row in changed if row.loaded and not row.asleep]

    def _drop_outdated(self, fresh: set[int]) -> None:
        """A change that was decided for an older desired state is not written."""
        numbers = {row.id for row in self.rows}
        self._updates = {
            n: values
            for n, values in self._updates.items()
            if n in numbers - fresh
        }
        self._dropped = {
            n: versions for n, versions in self._dropped.items() if n in numbers
        }

    def _apply(self, row: Deployment) -> None:
        """Change a row that was just read as the changes that wait say."""
        for name, value in self._updates.get(row.id, {}).items():
            setattr(row, name, value)
        row.variants = _without(row.variants, self._dropped.get(row.id, {}))

    def note(self, row: Deployment, **values: Any) -> None:
        """Write these columns of a row at the next `write`."""
        self._updates.setdefault(row.id, {}).update(values)
        self.changed = True

    def drop(self, row: Deployment, version: Version, note: str) -> None:
        """Remove a canary or shadow at the next `write`, with a note that says why."""
        self._dropped.setdefault(row.id, {})[version] = note
        row.variants = _without(row.variants, [version])
        self.changed = True

    def write(self, workers: Iterable[Running]) -> None:
        """Write replicas and changed columns in one transaction, which also notifies the
        gateways.
        """
        with self.database.session() as session:
            session.execute(delete(Replica))  # first: it locks the database
            rows = {row.id: row for row in session.scalars(select(Deployment))}
            session.add_all(_replicas(workers, rows))
            written = self._write_updates(rows)
            for number in self._dropped.keys() & rows.keys():
                _remove_variants(rows[number], self._dropped[number])
            bump(session, ROUTES)
        if self._desired is not None:
            self._desired |= {
                number: _desired_of(rows[number]) for number in written
            }
        self.changed = False
        self._updates = {}
        self._dropped = {}

    def _write_updates(self, rows: dict[int, Deployment]) -> list[int]:
        """Change the rows whose desired state still holds; returns their numbers."""
        desired = self._desired or {}
        written = [
            number
            for number in self._updates
            if number in rows
            and _desired_of(rows[number]) == desired.get(number)
        ]
        for number in written:
            for name, value in self._updates[number].items():
                setattr(rows[number], name, value)
        return written


def versions_of(row: Deployment) -> set[Version]:
    """The canaries and shadows of a deployment."""
    return {(variant["model"], variant["version"]) for variant in row.variants}


def _desired_of(row: Deployment) -> Desired:
    return Desired((row.model, row.version), row.loaded, row.asleep)


def _remove_variants(row: Deployment, dropped: dict[Version, str]) -> None:
    for version in dropped.keys() & versions_of(row):
        row.note = dropped[version]
    row.variants = _without(row.variants, dropped)


def _without(
    variants: list[dict[str, Any]], versions: Container[Version]
) -> list[dict[str, Any]]:
    return [
        variant
        for variant in variants
        if (variant["model"], variant["version"]) not in versions
    ]


def _replicas(
    workers: Iterable[Running], rows: dict[int, Deployment]
) -> Iterator[Replica]:
    """The rows of workers that gateways may use."""
    for worker in workers:
        if worker.leaving is None and worker.deployment in rows:
            yield _replica(worker, rows[worker.deployment].project_id)


def _replica(worker: Running, project: int) -> Replica:
    return Replica(
        project_id=project,
        deployment_id=worker.deployment,
        model=worker.version[0],
        version=worker.version[1],
        socket=worker.spec.socket,
        pid=worker.handle.pid,
        ready=worker.ready,
        batch=worker.batch,
        alone=worker.alone,
        threads=worker.threads,
        memory=worker.memory,
    )
