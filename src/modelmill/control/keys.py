"""Access keys: shown once, stored as a hash."""

import hashlib
import math
import os
import secrets
from pathlib import Path

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from modelmill.control.db import KEYS, ApiKey, Database, bump, project_id
from modelmill.errors import Conflict, InvalidInput, unknown
from modelmill.types import check_name

FILE = "admin.key"
ADMIN = "admin"
"""Name and role of the key in the file."""


def digest_of(key: str) -> str:
    """The sha256 of a key, which is stored. Keys are 256 random bits: no salt is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A new random key."""
    return f"mm_{secrets.token_urlsafe(32)}"


class Keys:
    """The access keys of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, project: int, name: str, role: str, rate: float, burst: int
    ) -> tuple[ApiKey, str]:
        """A new key: its row, and the key itself, which is not stored. Raises `InvalidInput`,
        `Conflict`.

        `rate` is in requests a second (0: no limit); `burst` is how many may come at once (0: one
        second's worth).
        """
        _refuse(name, rate, burst)
        key = new_key()
        row = ApiKey(
            project_id=project, name=name, digest=digest_of(key), role=role
        )
        row.rate = rate
        row.burst = burst or math.ceil(rate)
        with self._database.session() as session:
            _refuse_taken(session, project, name)
            session.add(row)
            bump(session, KEYS)
        return row, key

    def all(self, project: int) -> list[ApiKey]:
        """All of a project, by name."""
        query = select(ApiKey).where(ApiKey.project_id == project)
        return self._database.all(query.order_by(ApiKey.name))

    def remove(self, project: int, name: str) -> None:
        """Revoke a key; raises `NotFound`, and `Conflict` for the last admin key."""
        rows = {row.name: row for row in self.all(project)}
        if name not in rows:
            raise unknown("key", name, rows)
        row = rows[name]
        with self._database.session() as session:
            session.execute(delete(ApiKey).where(ApiKey.id == row.id))
            # Counted after the deletion, which locks the database: two calls can't remove the last
            # two.
            if row.role == ADMIN and not _count_admins(session, project):
                raise Conflict(
                    f"'{name}' is the last admin key: add another one first"
                )
            bump(session, KEYS)


def _refuse_taken(session: Session, project: int, name: str) -> None:
    same = select(ApiKey.id).where(
        ApiKey.project_id == project, ApiKey.name == name
    )
    if session.scalar(same):
        raise Conflict(
            f"there is a key '{name}' already: choose another name, or remove it first"
        )


def _count_admins(session: Session, project: int) -> int:
    query = select(func.count()).where(
        ApiKey.project_id == project, ApiKey.role == ADMIN
    )
    return session.scalar(query) or 0


def ensure_admin_key(database: Database, home: Path) -> Path:
    """The file with the admin key: written with mode 600 on the first start, and again if it was
    lost.
    """
    path = home / FILE
    with database.session() as session:
        digests = set(
            session.scalars(select(ApiKey.digest).where(ApiKey.role == ADMIN))
        )
        if path.exists() and _digest_in(path) in digests:
            return path
        # A lost key must not be accepted any more.
        session.execute(delete(ApiKey).where(ApiKey.name == ADMIN))
        key = new_key()
        _write(path, key)
        row = ApiKey(
            project_id=project_id(session),
            name=ADMIN,
            digest=digest_of(key),
            role=ADMIN,
        )
        session.add(row)
        bump(session, KEYS)
    return path


def _digest_in(path: Path) -> str:
    """The digest of the key in a file."""
    return digest_of(path.read_text("utf-8", "replace").strip())


def _write(path: Path, key: str) -> None:
    """A new file that its owner alone can read."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")


def _refuse(name: str, rate: float, burst: int) -> None:
    """Raises `InvalidInput` or `Conflict` for what no key can have."""
    check_name("key", name)
    if burst and not rate:
        raise InvalidInput(
            "burst says how many requests may come at once under a rate: give a rate too"
        )
    if name == ADMIN:
        raise Conflict(
            f"'{ADMIN}' is the name of the key in {FILE}: choose another one"
        )
