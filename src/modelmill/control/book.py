"""What people want, as last read, and what follows from it until one transaction has written it.

People change rows while the loop decides over them: a decision is written only where what it was
made for still holds.
"""

from collections.abc import Container, Iterable
from typing import Any, NamedTuple

from sqlalchemy import delete, select

from modelmill.control.db import ROUTES, Database, Deployment, Project, Replica, bump
from modelmill.control.workers import Running, Version


class Wish(NamedTuple):
    """What people may change of a deployment while we decide over it."""

    version: Version
    loaded: bool
    asleep: bool


class Book:
    """The rows of deployments for the one who serves them; `changed` says that there is something
    to write.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.rows: list[Deployment] = []
        self.projects: dict[int, str] = {}
        self.changed = False
        self._updates: dict[int, dict[str, Any]] = {}
        self._dropped: dict[int, dict[Version, str]] = {}
        self._wishes: dict[int, Wish] | None = None

    def read(self) -> list[Deployment]:
        """Read all rows; returns those that somebody has deployed or loaded since the last time."""
        with self.database.session() as session:
            self.rows = list(session.scalars(select(Deployment)))
            self.projects = {
                row.id: row.name for row in session.scalars(select(Project))
            }
        before = self._wishes
        self._wishes = {row.id: _wish_of(row) for row in self.rows}
        if before is None:
            return []
        fresh = {
            row.id for row in self.rows if before.get(row.id) != self._wishes[row.id]
        }
        numbers = {row.id for row in self.rows}
        # What was decided over something that is no longer wanted is not written.
        self._updates = {
            n: values for n, values in self._updates.items() if n in numbers - fresh
        }
        self._dropped = {
            n: versions for n, versions in self._dropped.items() if n in numbers
        }
        for row in self.rows:
            for name, value in self._updates.get(row.id, {}).items():  # not written yet
                setattr(row, name, value)
            row.variants = _without(row.variants, self._dropped.get(row.id, {}))
        return [
            row
            for row in self.rows
            if row.id in fresh and row.loaded and not row.asleep
        ]

    def note(self, row: Deployment, **values: Any) -> None:
        """Have columns of a row written."""
        self._updates.setdefault(row.id, {}).update(values)
        self.changed = True

    def drop(self, row: Deployment, version: Version, note: str) -> None:
        """Take a canary or shadow away, and have it noted."""
        self._dropped.setdefault(row.id, {})[version] = note
        row.variants = _without(row.variants, [version])
        self.changed = True

    def write(self, workers: Iterable[Running]) -> None:
        """Workers, what is served and what failed, in one transaction that also tells the
        gateways.
        """
        wishes = self._wishes or {}
        with self.database.session() as session:
            session.execute(delete(Replica))  # first: from here on nobody else writes
            rows = {row.id: row for row in session.scalars(select(Deployment))}
            for worker in workers:
                if worker.leaving is None and worker.deployment in rows:
                    session.add(_replica(worker, rows[worker.deployment].project_id))
            written = [
                one
                for one in self._updates
                if one in rows and _wish_of(rows[one]) == wishes.get(one)
            ]
            for number in written:
                for name, value in self._updates[number].items():
                    setattr(rows[number], name, value)
            for number in self._dropped.keys() & rows.keys():
                _take_away(rows[number], self._dropped[number])
            bump(session, ROUTES)
        for number in written:
            wishes[number] = _wish_of(rows[number])
        self.changed = False
        self._updates = {}
        self._dropped = {}


def versions_of(row: Deployment) -> set[Version]:
    """The canaries and shadows of a deployment."""
    return {(one["model"], one["version"]) for one in row.variants}


def _wish_of(row: Deployment) -> Wish:
    return Wish((row.model, row.version), row.loaded, row.asleep)


def _take_away(row: Deployment, dropped: dict[Version, str]) -> None:
    for version in dropped.keys() & versions_of(row):
        row.note = dropped[version]
    row.variants = _without(row.variants, dropped)


def _without(
    variants: list[dict[str, Any]], versions: Container[Version]
) -> list[dict[str, Any]]:
    return [one for one in variants if (one["model"], one["version"]) not in versions]


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
        threads=worker.threads,
        memory=worker.memory,
    )
