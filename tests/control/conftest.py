"""A real database in the test's folder."""

import shutil

import pytest

from modelmill.artifacts import Artifacts
from modelmill.control.datasets import Datasets
from modelmill.control.db import Database, Project, project_id
from modelmill.control.jobs import Jobs
from modelmill.control.kinds import JobStores
from modelmill.control.reconciler import loop
from modelmill.control.registry import Registry
from tests.control.stage import Clock, Stage
from tests.helpers.bundles import plain_bundle


@pytest.fixture(scope="session")
def empty(tmp_path_factory):
    """A database file as the migrations make it."""
    path = tmp_path_factory.mktemp("empty") / "mill.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture
def database(empty, tmp_path):
    path = tmp_path / "mill.db"
    shutil.copy(empty, path)
    database = Database(f"sqlite:///{path}")
    yield database
    database.close()


@pytest.fixture
def project(database):
    with database.session() as session:
        return project_id(session)


@pytest.fixture
def other(database):
    """Another project."""
    with database.session() as session:
        row = Project(name="other")
        session.add(row)
        session.flush()
        return row.id


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path / "artifacts")


@pytest.fixture
def registry(database, artifacts):
    return Registry(database, artifacts)


@pytest.fixture
def datasets(database, artifacts):
    return Datasets(database, artifacts)


@pytest.fixture
def stores(database, datasets, registry, artifacts, tmp_path):
    """What happens before a job and after it acts on these."""
    return JobStores(database, datasets, registry, artifacts, tmp_path)


@pytest.fixture
def jobs(stores):
    return Jobs(stores)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


@pytest.fixture
def make(database, registry, project, tmp_path, clock):
    for model in ("digits", "letters"):
        for number in (1, 2, 3):
            bundle = plain_bundle(
                tmp_path / f"{model}{number}", metrics={"accuracy": number / 10}
            )
            registry.add(project, model, bundle, None)

    def made(**how):
        stage = Stage(
            database, registry, project, tmp_path / "run", clock, **how
        )
        stage.told = []
        return stage

    return made


@pytest.fixture
def stage(make):
    return make()
