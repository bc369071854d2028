"""The database: tables, sessions, migrations. Every row belongs to a project.

SQLite in the home by default, any SQLAlchemy URL otherwise. The schema is made by the migrations
alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Select,
    UniqueConstraint,
    create_engine,
    event,
    select,
    text,
    update,
)
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DatabaseError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    sessionmaker,
)
from sqlalchemy.types import TypeDecorator

from modelmill.errors import Conflict, MillError, StorageFull

if TYPE_CHECKING:
    from alembic.config import Config
from modelmill.types import Json

T = TypeVar("T")

MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "0004"
"""The newest migration, checked at start without loading the migration tool."""


NEVER_REUSED = {"sqlite_autoincrement": True}
"""Numbers of deleted rows are not reused: loops may still hold them."""


class Base(DeclarativeBase):
    """All tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        Json: JSON,
        list[str]: JSON,
        list[dict[str, Any]]: JSON,
    }


class Moment(TypeDecorator[datetime]):
    """A time in UTC, also in databases that do not store time zones."""

    impl = DateTime
    cache_ok = True

    def process_result_value(
        self, value: datetime | None, dialect: Any
    ) -> datetime | None:
        """Times from the database carry their zone."""
        return (
            value.replace(tzinfo=UTC)
            if value is not None and value.tzinfo is None
            else value
        )


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


class Project(Base):
    """A tenant. For now there is only `default`."""

    __tablename__ = "project"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Owned:
    """Columns of all other tables: a number and a project."""

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(
        ForeignKey("project.id"), index=True
    )


class ApiKey(Owned, Base):
    """A key, as a hash; `rate` in requests a second (0: no limit)."""

    __tablename__ = "api_key"
    __table_args__ = (
        UniqueConstraint("project_id", "name", name="uq_api_key_name"),
    )
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    rate: Mapped[float] = mapped_column(default=0.0)
    burst: Mapped[int] = mapped_column(default=0)
    created: Mapped[datetime] = mapped_column(Moment, default=now)


class Dataset(Owned, Base):
    """A data set: the digests of its archive and index, and the report of its check."""

    __tablename__ = "dataset"
    __table_args__ = (UniqueConstraint("project_id", "name"), NEVER_REUSED)
    name: Mapped[str]
    task: Mapped[str]
    format: Mapped[str]
    options: Mapped[Json]
    digest: Mapped[str]
    index_digest: Mapped[str] = mapped_column(default="")
    state: Mapped[str] = mapped_column(default="checking")
    strict: Mapped[bool] = mapped_column(default=False)
    report: Mapped[Json] = mapped_column(default=dict)
    created: Mapped[datetime] = mapped_column(Moment, default=now)


class Job(Owned, Base):
    """A training, an evaluation or an import: request, state and result."""

    __tablename__ = "job"
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(default="queued", index=True)
    cancel: Mapped[bool] = mapped_column(default=False)
    model: Mapped[str] = mapped_column(default="")
    version: Mapped[int | None]
    task: Mapped[str] = mapped_column(default="")
    recipe: Mapped[str] = mapped_column(default="")
    dataset_id: Mapped[int | None] = mapped_column(
        ForeignKey("dataset.id", ondelete="SET NULL")
    )
    dataset: Mapped[str] = mapped_column(default="")
    settings: Mapped[Json] = mapped_column(default=dict)
    result: Mapped[Json] = mapped_column(default=dict)
    error: Mapped[str] = mapped_column(default="")
    pid: Mapped[int | None]
    created: Mapped[datetime] = mapped_column(Moment, default=now)
    started: Mapped[datetime | None] = mapped_column(Moment)
    ended: Mapped[datetime | None] = mapped_column(Moment)


class Version(Owned, Base):
    """An immutable version of a model: its bundle by digest."""

    __tablename__ = "version"
    __table_args__ = (UniqueConstraint("project_id", "model", "number"),)
    model: Mapped[str] = mapped_column(index=True)
    number: Mapped[int]
    task: Mapped[str]
    digest: Mapped[str]
    manifest: Mapped[Json]
    job_id: Mapped[int | None] = mapped_column(
        ForeignKey("job.id"), unique=True
    )
    created: Mapped[datetime] = mapped_column(Moment, default=now)


class Alias(Owned, Base):
    """A name for a version that can move."""

    __tablename__ = "alias"
    __table_args__ = (UniqueConstraint("project_id", "model", "name"),)
    model: Mapped[str]
    name: Mapped[str]
    version: Mapped[int]


class Deployment(Owned, Base):
    """A deployment: desired version, options and variants, and the observed state."""

    __tablename__ = "deployment"
    __table_args__ = (UniqueConstraint("project_id", "name"), NEVER_REUSED)
    name: Mapped[str]
    model: Mapped[str]
    version: Mapped[int]
    replicas: Mapped[int] = mapped_column(default=1)
    serving_model: Mapped[str | None]
    serving: Mapped[int | None]
    error: Mapped[str] = mapped_column(default="")
    created: Mapped[datetime] = mapped_column(Moment, default=now)
    options: Mapped[Json] = mapped_column(default=dict)
    variants: Mapped[list[dict[str, Any]]] = mapped_column(default=list)
    loaded: Mapped[bool] = mapped_column(default=True)
    asleep: Mapped[bool] = mapped_column(default=False)
    note: Mapped[str] = mapped_column(default="")


class Replica(Owned, Base):
    """A worker, as last observed."""

    __tablename__ = "replica"
    deployment_id: Mapped[int] = mapped_column(
        ForeignKey("deployment.id", ondelete="CASCADE"), index=True
    )
    model: Mapped[str]
    version: Mapped[int]
    socket: Mapped[str]
    pid: Mapped[int]
    ready: Mapped[bool] = mapped_column(default=False)
    batch: Mapped[int] = mapped_column(default=0)
    alone: Mapped[str] = mapped_column(default="")
    threads: Mapped[int] = mapped_column(default=1)
    memory: Mapped[int] = mapped_column(BigInteger, default=0)


ANY = 1
"""The row of `Revision` that counts all changes."""
ROUTES = 2
"""The row that counts changes of routes."""
KEYS = 3
"""The row that counts changes of keys."""


class Revision(Base):
    """Counters of changes, which loops and gateways poll."""

    __tablename__ = "revision"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


class Database:
    """Sessions of one database, whose errors are raised as `MillError`."""

    def __init__(self, url: str) -> None:
        self.url = url
        options = {"timeout": 15} if url.startswith("sqlite") else {}
        self.engine: Engine = create_engine(
            url, connect_args=options, pool_pre_ping=not options
        )
        if options:
            event.listen(self.engine, "connect", _tune_sqlite)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on an error.

        Raises `Conflict` for a violated constraint, `StorageFull`, `MillError`.
        """
        try:
            with self._sessions.begin() as session:
                yield session
        except IntegrityError as error:
            raise Conflict(
                f"something else changed the same at the same time; try again ({error.orig})"
            ) from error
        except DatabaseError as error:
            raise _failure(str(error.orig)) from error

    def all(self, query: Select[T]) -> list[T]:
        """What a query finds, in a transaction of its own."""
        with self.session() as session:
            return list(session.scalars(query))

    def first(self, query: Select[T]) -> T | None:
        """The first that a query finds, in a transaction of its own."""
        with self.session() as session:
            return session.scalars(query).first()

    def migrate(self) -> None:
        """Bring the schema to this version; raises `MillError` when it is of a newer one."""
        current = self._current()
        if current == HEAD:
            return
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        _refuse_newer(config, current)
        config.attributes["engine"] = self.engine
        try:
            command.upgrade(config, "head")
        except DatabaseError as error:
            raise MillError(
                f"the database at {self.engine.url!r} can't be used: {error.orig}"
            ) from error

    def _current(self) -> str | None:
        try:
            with self.engine.connect() as connection:
                return str(
                    connection.execute(
                        text("SELECT version_num FROM alembic_version")
                    ).scalar_one()
                )
        except SQLAlchemyError:
            return None

    def revision(self) -> int:
        """The counter of all changes."""
        with self.session() as session:
            return (
                session.scalar(select(Revision.value).where(Revision.id == ANY))
                or 0
            )

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _failure(message: str) -> MillError:
    """What to tell of a database that refused a statement."""
    if "full" in message:
        return StorageFull(
            f"the disk is full: the database could not be written ({message})"
        )
    return MillError(f"the database failed: {message}")


def _refuse_newer(config: "Config", current: str | None) -> None:
    """Raises `MillError` for a schema that no migration here knows."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(config).walk_revisions()
    if current is None or current in {script.revision for script in scripts}:
        return
    raise MillError(
        f"the database is of a newer modelmill (schema {current}; this one knows up to "
        f"{HEAD}): install that version, or name another home with --home"
    )


def _tune_sqlite(connection: Any, _record: Any) -> None:
    # Readers do not wait for the writer; a power cut loses at most the last transactions.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def bump(session: Session, *counters: int) -> None:
    """Increment the change counters: always `ANY`, and `ROUTES` or `KEYS` when gateways must
    reload.
    """
    session.execute(
        update(Revision)
        .where(Revision.id.in_((ANY, *counters)))
        .values(value=Revision.value + 1)
    )


def project_id(session: Session, name: str = "default") -> int:
    """The number of a project."""
    return session.scalars(select(Project.id).where(Project.name == name)).one()
