"""The schema is what the migrations make, and the models agree with it."""

import sqlite3
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import select, text

from modelmill.control import db
from modelmill.control.db import ANY, Base, Database, Job, Project, Revision, bump, project_id
from modelmill.errors import MillError


def test_the_migrations_make_what_the_models_say(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_head_is_the_newest_migration():
    scripts = ScriptDirectory(str(db.MIGRATIONS))
    assert scripts.get_heads() == [db.HEAD]


def test_migrating_twice_is_the_same_as_once(database):
    database.migrate()
    database.migrate()
    with database.session() as session:
        assert session.scalars(select(Project.name)).all() == ["default"]
        assert session.scalars(select(Revision.value).where(Revision.id == ANY)).one() >= 1


def test_every_migration_can_be_taken_back(database):
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(db.MIGRATIONS))
    config.attributes["engine"] = database.engine
    command.downgrade(config, "base")
    with database.engine.connect() as connection:
        names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars().all()
    assert set(names) - {"sqlite_sequence"} == {"alembic_version"}
    database.migrate()


def test_a_database_of_a_newer_schema_is_refused_in_one_line(database):
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
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
    with pytest.raises(MillError, match="the database failed: no such table"), database.session() as session:
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
    with pytest.raises(Exception, match="FOREIGN KEY"), database.session() as session:
        session.add(Job(project_id=999, kind="train"))


def test_every_change_is_counted(database):
    with database.session() as session:
        before = session.scalars(select(Revision.value).where(Revision.id == ANY)).one()
        bump(session)
    with database.session() as session:
        assert session.scalars(select(Revision.value).where(Revision.id == ANY)).one() == before + 1
        assert project_id(session) == 1


def test_the_file_is_a_database_that_other_programs_can_read(database, tmp_path):
    with sqlite3.connect(tmp_path / "mill.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_keys_of_the_first_schema_stay_and_have_no_limit(database, project):
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(db.MIGRATIONS))
    config.attributes["engine"] = database.engine
    command.downgrade(config, "0001")
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO api_key (project_id, name, digest, role, created) "
                "VALUES (1, 'admin', 'abc', 'admin', '2026-01-01 00:00:00')"
            )
        )
    database.migrate()
    with database.session() as session:
        (row,) = session.scalars(select(db.ApiKey))
        assert (row.name, row.digest, row.role, row.rate, row.burst) == ("admin", "abc", "admin", 0, 0)
