"""The schema is what the migrations make, and the models agree with it."""

import sqlite3
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import select, text

from modelmill.control import db
from modelmill.control.db import (
    Base,
    Database,
    Job,
    Project,
    Revision,
    bump,
    project_id,
)
from modelmill.control.options import options_of
from modelmill.errors import MillError
from modelmill.types import ServingOptions


def test_the_migrations_make_what_the_models_say(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True}
        )
        assert compare_metadata(context, Base.metadata) == []


def test_head_is_the_newest_migration():
    scripts = ScriptDirectory(str(db.MIGRATIONS))
    assert scripts.get_heads() == [db.HEAD]


def test_migrating_twice_is_the_same_as_once(database):
    database.migrate()
    database.migrate()
    with database.session() as session:
        assert session.scalars(select(Project.name)).all() == ["default"]
        assert sorted(session.scalars(select(Revision.id))) == [
            db.ANY,
            db.ROUTES,
            db.KEYS,
        ]


def to(database, revision):
    """Go back to an older schema."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(db.MIGRATIONS))
    config.attributes["engine"] = database.engine
    command.downgrade(config, revision)


def test_every_migration_can_be_taken_back(database):
    to(database, "base")
    with database.engine.connect() as connection:
        names = (
            connection.execute(
                text("SELECT name FROM sqlite_master WHERE type = 'table'")
            )
            .scalars()
            .all()
        )
    assert set(names) - {"sqlite_sequence"} == {"alembic_version"}
    database.migrate()


@pytest.fixture
def first(database):
    """A database of the first schema with a row of everything that later ones changed."""
    to(database, "0001")
    with database.engine.begin() as connection:
        for statement in (
            "UPDATE revision SET value = 41",
            "INSERT INTO api_key (project_id, name, digest, role, created) "
            "VALUES (1, 'admin', 'abc', 'admin', '2026-01-01 00:00:00')",
            "INSERT INTO deployment (id, project_id, name, model, version, replicas, "
            "serving_model, serving, error, "
            "created) VALUES (7, 1, 'app', 'digits', 3, 2, 'digits', 2, '', '2026-01-01 00:00:00')",
            "INSERT INTO replica (project_id, deployment_id, model, version, socket, pid, ready) "
            "VALUES (1, 7, 'digits', 2, '/run/w1.sock', 123, 1)",
        ):
            connection.execute(text(statement))
    return database


def test_rows_of_the_first_schema_stay_and_are_served_as_before(first):
    first.migrate()
    with first.session() as session:
        (key,) = session.scalars(select(db.ApiKey))
        (row,) = session.scalars(select(db.Deployment))
        (replica,) = session.scalars(select(db.Replica))
        counts = {
            one.id: one.value for one in session.scalars(select(Revision))
        }
    assert (key.name, key.digest, key.role, key.rate, key.burst) == (
        "admin",
        "abc",
        "admin",
        0,
        0,
    )
    assert (
        row.id,
        row.name,
        row.model,
        row.version,
        row.serving,
        row.replicas,
    ) == (
        7,
        "app",
        "digits",
        3,
        2,
        2,
    )
    assert (row.options, row.variants, row.loaded, row.asleep, row.note) == (
        {},
        [],
        True,
        False,
        "",
    )
    assert options_of(row) == ServingOptions(min_replicas=2, max_replicas=2)
    assert (
        replica.socket,
        replica.ready,
        replica.batch,
        replica.threads,
        replica.memory,
    ) == (
        "/run/w1.sock",
        True,
        0,
        1,
        0,
    )
    assert counts == {db.ANY: 41, db.ROUTES: 1, db.KEYS: 1}
    with first.session() as session:
        bump(session, db.ROUTES)
    with first.session() as session:
        assert {
            one.id: one.value for one in session.scalars(select(Revision))
        } == {
            1: 42,
            2: 2,
            3: 1,
        }


def test_rows_stay_when_migrations_are_taken_back(first):
    first.migrate()
    with first.session() as session:
        row = session.scalars(select(db.Deployment)).one()
        row.options = {"threads": 2}
        row.note = "rolled back"
        row.asleep = True
        session.add(
            db.Replica(
                project_id=1,
                deployment_id=7,
                model="m",
                version=1,
                socket="s",
                pid=1,
                memory=1 << 40,
            )
        )
    for revision in ("0002", "0001"):
        to(first, revision)
        with first.engine.connect() as connection:
            found = connection.execute(
                text(
                    "SELECT id, name, model, version, replicas, serving FROM deployment"
                )
            ).all()
            assert found == [(7, "app", "digits", 3, 2, 2)]
            assert (
                connection.execute(
                    text("SELECT count(*) FROM replica")
                ).scalar()
                == 2
            )
            assert connection.execute(
                text("SELECT id, value FROM revision")
            ).all() == [(1, 41)]
            assert connection.execute(
                text("SELECT name FROM api_key")
            ).scalars().all() == ["admin"]
    first.migrate()
    with first.session() as session:
        assert session.scalars(select(db.Deployment)).one().options == {}


def test_a_deployment_that_goes_takes_its_workers_along_after_all_migrations(
    first,
):
    first.migrate()
    with first.session() as session:
        session.execute(text("DELETE FROM deployment"))
    with first.session() as session:
        assert session.scalars(select(db.Replica)).all() == []


def test_a_database_of_a_newer_schema_is_refused_in_one_line(database):
    with database.engine.begin() as connection:
        connection.execute(
            text("UPDATE alembic_version SET version_num = '9999'")
        )
    with pytest.raises(MillError, match="newer modelmill") as caught:
        database.migrate()
    assert "schema 9999" in caught.value.message


def test_a_file_that_is_no_database_is_refused_in_words(tmp_path):
    path = tmp_path / "mill.db"
    path.write_bytes(b"this is a letter to my aunt" * 100)
    database = Database(f"sqlite:///{path}")
    try:
        with pytest.raises(MillError):
            database.migrate()
    finally:
        database.close()
    assert path.read_bytes().startswith(b"this is a letter")


def test_a_failed_transaction_leaves_nothing(database, project):
    def fail():
        with database.session() as session:
            session.add(Job(project_id=project, kind="train"))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.session() as session:
        assert session.scalars(select(Job)).all() == []


def test_a_failure_of_the_database_is_said_in_our_words(database):
    with (
        pytest.raises(MillError, match="the database failed: no such table"),
        database.session() as session,
    ):
        session.execute(text("SELECT * FROM absent"))


def test_a_reader_does_not_wait_for_a_writer(database, project):
    with database.session() as writer:
        writer.add(Job(project_id=project, kind="train"))
        writer.flush()
        seen = []

        def read():
            with database.session() as reader:
                seen.extend(reader.scalars(select(Project.name)))

        thread = threading.Thread(target=read)
        thread.start()
        thread.join(5)
        assert seen == ["default"]


def test_times_come_back_with_their_zone(database, project):
    with database.session() as session:
        session.add(Job(project_id=project, kind="train"))
    with database.session() as session:
        created = session.scalars(select(Job.created)).one()
    assert created.tzinfo is not None
    assert abs((db.now() - created).total_seconds()) < 60


def test_rows_belong_to_a_project_that_exists(database):
    with (
        pytest.raises(Exception, match="FOREIGN KEY"),
        database.session() as session,
    ):
        session.add(Job(project_id=999, kind="train"))


def test_every_change_is_counted_and_reported_to_its_listeners(database):
    def counts():
        with database.session() as session:
            return [
                one.value
                for one in session.scalars(
                    select(Revision).order_by(Revision.id)
                )
            ]

    before = counts()
    for also in ((), (db.ROUTES,), (db.KEYS,)):
        with database.session() as session:
            bump(session, *also)
    assert counts() == [before[0] + 3, before[1] + 1, before[2] + 1]
    assert database.revision() == before[0] + 3
    with database.session() as session:
        assert project_id(session) == 1


def test_the_file_is_a_database_that_other_programs_can_read(
    database, tmp_path
):
    with sqlite3.connect(tmp_path / "mill.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == (
            "ok",
        )
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
