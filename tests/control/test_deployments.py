"""What is wanted becomes workers: new ones beside the old, and the old go only when all new are ready."""

from itertools import pairwise

import pytest
from sqlalchemy import select

from modelmill.control import deployments as module
from modelmill.control.db import Replica
from modelmill.control.deployments import Deployments, Reconciler
from modelmill.control.keys import ensure_admin_key
from modelmill.errors import NotFound
from tests.control.fakes import FakeCluster
from tests.making import plain_bundle


class Clock:
    """Time as the test says."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def cluster():
    return FakeCluster()


@pytest.fixture
def wanted(database, registry, project, tmp_path):
    for number in (1, 2, 3):
        registry.add(project, "digits", plain_bundle(tmp_path / f"b{number}", metrics={"accuracy": number / 10}), None)
    return Deployments(database, registry)


@pytest.fixture
def loop(database, registry, cluster, tmp_path, clock):
    return Reconciler(database, registry, cluster, tmp_path / "logs", tmp_path / "run", "worker:main", 1)


@pytest.fixture
def route(wanted):
    return lambda name="digits": wanted.snapshot(-1).routes[f"default/{name}"]


def ready(loop, *handles):
    for handle in handles:
        handle.said.append({"ready": True})
    loop.tick()


def alive(cluster):
    return [(h.spec["version"], h.pid) for h in cluster.started if h.code is None]


def versions(cluster):
    return [version for version, _ in alive(cluster)]


def test_a_deployment_gets_its_workers_and_is_ready_when_all_are(loop, cluster, wanted, project, route):
    wanted.deploy(project, "digits:1", "", 2)
    loop.tick()
    loop.tick()
    one, two = cluster.started
    assert one.spec["socket"] != two.spec["socket"]
    assert (one.spec["model"], one.spec["version"], one.entry) == ("digits", 1, "worker:main")
    assert not route().ready
    ready(loop, one)
    assert not route().ready
    ready(loop, two)
    assert route().ready
    assert sorted(route().sockets) == sorted([one.spec["socket"], two.spec["socket"]])
    assert wanted.ready(project) == {wanted.get(project, "digits").id: 2}


def test_deploying_twice_is_the_same_as_once(loop, cluster, wanted, project):
    for _ in range(2):
        wanted.deploy(project, "digits:1", "", None)
        loop.tick()
    ready(loop, *cluster.started)
    wanted.deploy(project, "digits:1", "", None)
    loop.tick()
    assert len(cluster.started) == 1
    assert len(wanted.all(project)) == 1


def test_a_new_version_comes_up_beside_the_old_one(loop, cluster, wanted, project, route):
    wanted.deploy(project, "digits:1", "", 2)
    loop.tick()
    old = list(cluster.started)
    for handle in old:
        handle.obeys = False
    ready(loop, *old)
    wanted.deploy(project, "digits:2", "", None)
    loop.tick()
    new = cluster.started[2:]
    assert len(new) == 2
    assert [h.asked for h in old] == [0, 0]
    assert (route().version, len(route().sockets)) == (1, 2)
    ready(loop, new[0])
    assert [h.asked for h in old] == [0, 0]
    assert route().version == 1
    ready(loop, new[1])
    assert [h.asked for h in old] == [1, 1]
    assert route().version == 2
    assert sorted(route().sockets) == sorted(h.spec["socket"] for h in new)
    for handle in old:
        handle.code = 0
    loop.tick()
    assert versions(cluster) == [2, 2]
    assert route().ready


def test_a_version_that_can_not_be_loaded_leaves_the_old_one_serving(loop, cluster, wanted, project, route):
    wanted.deploy(project, "digits:1", "", None)
    loop.tick()
    ready(loop, *cluster.started)
    wanted.deploy(project, "digits:2", "", None)
    loop.tick()
    bad = cluster.started[1]
    bad.said.append({"error": "model.onnx was changed", "code": "bundle_corrupt"})
    bad.code = 1
    loop.tick()
    assert wanted.get(project, "digits").error == "model.onnx was changed"
    assert (route().version, route().ready, len(route().sockets)) == (1, True, 1)
    wanted.deploy(project, "digits:1", "", None)
    loop.tick()
    assert wanted.get(project, "digits").error == ""
    assert (route().version, route().ready, versions(cluster)[0]) == (1, True, 1)


def test_a_worker_that_fails_is_tried_again_ever_more_slowly(loop, cluster, wanted, project, clock, route):
    wanted.deploy(project, "digits:1", "", None)
    began = []
    for _ in range(600):
        before = len(cluster.started)
        loop.tick()
        if len(cluster.started) > before:
            began.append(clock.now)
            cluster.started[-1].code = 3
        clock.now += 0.25
    waits = [after - before for before, after in pairwise(began)]
    assert len(waits) >= 5
    assert waits == sorted(waits)
    assert waits[-1] >= 15
    assert "ended with status 3" in wanted.get(project, "digits").error
    assert "ended with status 3" in route().error


def test_a_worker_that_was_lost_is_replaced_at_once(loop, cluster, wanted, project, route):
    wanted.deploy(project, "digits:1", "", None)
    loop.tick()
    ready(loop, *cluster.started)
    cluster.started[0].code = -9
    loop.tick()
    assert len(cluster.started) == 2
    assert route().ready  # its calls wait for the next one
    assert route().sockets == []
    ready(loop, cluster.started[1])
    assert route().sockets == [cluster.started[1].spec["socket"]]
    assert wanted.get(project, "digits").error == ""


def test_more_and_fewer_workers(loop, cluster, wanted, project, route):
    for replicas in (1, 3, 2):
        wanted.deploy(project, "digits:1", "", replicas)
        loop.tick()
        ready(loop, *[h for h in cluster.started if h.code is None])
        loop.tick()
        assert len(alive(cluster)) == len(route().sockets) == replicas


def test_an_undeployed_model_loses_its_workers(loop, cluster, wanted, project, database):
    wanted.deploy(project, "digits:1", "", None)
    loop.tick()
    ready(loop, *cluster.started)
    wanted.undeploy(project, "digits")
    loop.tick()
    assert cluster.started[0].asked == 1
    loop.tick()
    assert alive(cluster) == []
    assert wanted.snapshot(-1).routes == {}
    with database.session() as session:
        assert session.scalars(select(Replica)).all() == []
    with pytest.raises(NotFound, match="unknown deployment 'digits'"):
        wanted.undeploy(project, "digits")


def test_a_worker_that_does_not_go_is_ended(loop, cluster, wanted, project, clock):
    wanted.deploy(project, "digits:1", "", None)
    loop.tick()
    ready(loop, *cluster.started)
    cluster.started[0].obeys = False
    wanted.undeploy(project, "digits")
    loop.tick()
    clock.now += 30
    loop.tick()
    assert not cluster.started[0].killed
    clock.now += 60
    loop.tick()
    assert cluster.started[0].killed


def test_a_worker_that_can_not_be_started_is_told(loop, cluster, wanted, project, route):
    cluster.failing = OSError(11, "no more processes")
    wanted.deploy(project, "digits:1", "", None)
    loop.tick()
    assert "no more processes" in wanted.get(project, "digits").error
    assert not route().ready


def test_a_bundle_that_is_gone_is_told(loop, cluster, wanted, project, registry, artifacts):
    import shutil

    shutil.rmtree(registry.folder(registry.get(project, "digits:1")))
    wanted.deploy(project, "digits:1", "", None)
    loop.tick()
    assert "is missing" in wanted.get(project, "digits").error
    assert cluster.started == []


def test_after_a_restart_nothing_is_ready_until_it_is(loop, cluster, wanted, project, route, database):
    wanted.deploy(project, "digits:1", "", None)
    loop.tick()
    ready(loop, *cluster.started)
    loop.recover()
    assert not route().ready
    assert route().sockets == []
    assert wanted.ready(project) == {}


def test_one_model_under_two_names(loop, cluster, wanted, project, route):
    wanted.deploy(project, "digits:1", "stable", None)
    wanted.deploy(project, "digits:2", "next", None)
    loop.tick()
    ready(loop, *cluster.started)
    assert (route("stable").version, route("next").version) == (1, 2)


def test_another_model_under_the_same_name(loop, cluster, wanted, project, registry, route, tmp_path):
    registry.add(project, "letters", plain_bundle(tmp_path / "l", labels=["a", "b", "c"]), None)
    wanted.deploy(project, "digits:1", "app", None)
    loop.tick()
    ready(loop, *cluster.started)
    wanted.deploy(project, "letters:1", "app", None)
    loop.tick()
    assert route("app").model == "digits"
    ready(loop, cluster.started[1])
    assert route("app").model == "letters"


def test_stopping_asks_every_worker_and_ends_those_that_stay(loop, cluster, wanted, project):
    wanted.deploy(project, "digits:1", "", 2)
    loop.tick()
    cluster.started[0].obeys = False
    loop.stop()
    assert [h.asked for h in cluster.started] == [1, 1]
    assert cluster.started[0].killed


def test_a_snapshot_is_made_only_when_something_changed(loop, cluster, wanted, project, database, tmp_path):
    key = ensure_admin_key(database, tmp_path).read_text().strip()
    wanted.deploy(project, "digits:1", "", None)
    first = wanted.snapshot(-1)
    assert wanted.snapshot(first.revision) is None
    assert [(info.project, info.role) for info in first.keys.values()] == [("default", "admin")]
    assert key not in first.keys
    loop.tick()
    ready(loop, *cluster.started)
    assert wanted.snapshot(first.revision).routes["default/digits"].ready
    revision = wanted.snapshot(-1).revision
    for _ in range(3):
        loop.tick()
    assert wanted.snapshot(revision) is None


def test_another_project_can_not_deploy_what_it_can_not_see(wanted, other):
    with pytest.raises(NotFound):
        wanted.deploy(other, "digits:1", "", None)
    assert wanted.all(other) == []
