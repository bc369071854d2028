"""Access keys: made once, shown once, kept as a hash."""

import hashlib
import os
import secrets
from pathlib import Path

from sqlalchemy import delete, select

from modelmill.control.db import ApiKey, Database, bump, project_id

FILE = "admin.key"


def digest_of(key: str) -> str:
    """What is stored of a key. Keys are 256 random bits, so a plain sha256 can't be guessed back."""
    return hashlib.sha256(key.encode()).hexdigest()


def ensure_admin_key(database: Database, home: Path) -> Path:
    """The file with the admin key: written with mode 600 on the first start, and again if it was lost."""
    path = home / FILE
    with database.session() as session:
        known = set(session.scalars(select(ApiKey.digest).where(ApiKey.role == "admin")))
        if path.exists() and digest_of(path.read_text("utf-8", "replace").strip()) in known:
            return path
        session.execute(delete(ApiKey).where(ApiKey.name == "admin"))  # a lost key must not open anything
        key = f"mm_{secrets.token_urlsafe(32)}"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key + "\n")
        row = ApiKey(project_id=project_id(session), name="admin", digest=digest_of(key), role="admin")
        session.add(row)
        bump(session)
    return path
