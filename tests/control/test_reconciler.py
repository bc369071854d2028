"""What is wanted becomes workers: new ones beside the old, and the old go only when all new are
ready.
"""

import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
from sqlalchemy import select

from modelmill.control.db import Database, Deployment, Replica
from modelmill.control.reconciler.scaling import Signals
from modelmill.errors import MillError, StorageFull
from tests.control.stage import CALLED, sleepy, with_canary

# ---- workers


def test_a_deployment_gets_its_workers_and_is_ready_when_all_are(stage):
    stage.deploy(replicas=2)
    stage.tick()
    one, two = stage.cluster.started
    assert one.spec["socket"] != two.spec["socket"]
    assert (one.spec["model"], one.spec["version"], one.entry) == (
        "digits",
        1,
        "worker:main",
    )
    assert not stage.route().ready
    stage.ready(one)
    assert not stage.route().ready
    stage.ready(two)
    route = stage.route()
    assert (route.ready, route.batch, route.version) == (True, 8, 1)
    assert sorted(route.sockets) == sorted(
        [one.spec["socket"], two.spec["socket"]]
    )


def test_when_nothing_changes_nothing_is_done(stage):
    stage.deploy()
    stage.ready()
    stage.hear(Signals(idle_seconds=3))
    before, revision = stage.wanted.snapshot(None), stage.database.revision()
    stage.tick(50, 0.05)
    assert stage.wanted.snapshot(before) is None
    assert stage.database.revision() == revision
    assert len(stage.cluster.started) == 1


def test_deploying_twice_is_the_same_as_once(stage):
    stage.deploy()
    stage.deploy()
    stage.ready()
    stage.deploy()
    assert len(stage.cluster.started) == 1


def test_a_new_version_comes_up_beside_the_old_one(stage):
    stage.deploy(replicas=2)
    old = stage.alive
    stage.ready()
    for handle in old:
        handle.obeys = False
    stage.deploy("digits:2")
    new = stage.cluster.started[2:]
    assert len(new) == 2
    stage.ready(new[0])
    assert (
        [one.asked for one in old],
        stage.route().version,
        len(stage.route().sockets),
    ) == ([0, 0], 1, 2)
    stage.ready(new[1])
    assert ([one.asked for one in old], stage.route().version) == ([1, 1], 2)
    assert sorted(stage.route().sockets) == sorted(
        one.spec["socket"] for one in new
    )
    for handle in old:
        handle.code = 0
    stage.tick()
    assert (stage.versions, stage.route().ready) == ([2, 2], True)


def test_gateways_get_the_new_snapshot_before_a_worker_gets_sigterm(
    stage, monkeypatch
):
    stage.deploy()
    stage.ready()
    (old,) = stage.alive
    seen = []
    monkeypatch.setattr(
        old, "terminate", lambda: seen.append(stage.route().sockets)
    )
    stage.deploy("digits:2")
    stage.ready()
    assert seen == [[stage.cluster.started[1].spec["socket"]]]


def test_a_version_that_was_wanted_for_a_moment_does_not_hold_memory(stage):
    stage.deploy()
    stage.ready()
    stage.deploy("digits:2")
    stage.deploy("digits:3")
    assert stage.versions == [1, 3]
    stage.ready()
    assert (stage.versions, stage.route().version) == ([3], 3)


def test_a_version_that_can_not_be_loaded_leaves_the_old_one_serving(stage):
    stage.deploy()
    stage.ready()
    stage.deploy("digits:2")
    bad = stage.cluster.started[1]
    bad.said.append(
        {"error": "model.onnx was changed", "code": "bundle_corrupt"}
    )
    bad.code = 1
    stage.tick()
    assert stage.row().error == "model.onnx was changed"
    assert (
        stage.route().version,
        stage.route().ready,
        len(stage.route().sockets),
    ) == (
        1,
        True,
        1,
    )
    stage.deploy("digits:1")
    assert (stage.row().error, stage.route().version, stage.versions[0]) == (
        "",
        1,
        1,
    )


def test_a_worker_that_fails_is_tried_again_ever_more_slowly(stage):
    stage.deploy()
    began = [stage.clock.now]
    for _ in range(600):
        stage.alive and setattr(stage.alive[-1], "code", 3)
        before = len(stage.cluster.started)
        stage.tick(seconds=0.25)
        if len(stage.cluster.started) > before:
            began.append(stage.clock.now)
    waits = [after - before for before, after in pairwise(began)]
    assert len(waits) >= 5
    assert waits == sorted(waits)
    assert waits[-1] >= 15
    assert "ended with status 3" in stage.route().error


def test_a_worker_that_was_lost_is_replaced_at_once(stage):
    stage.deploy()
    stage.ready()
    stage.cluster.started[0].code = -9
    stage.tick(2)
    assert len(stage.cluster.started) == 2
    assert (stage.route().ready, stage.route().sockets) == (
        True,
        [],
    )  # its calls wait for the next one
    stage.ready()
    assert stage.route().sockets == [stage.cluster.started[1].spec["socket"]]
    assert stage.row().error == ""


def test_a_worker_that_hangs_is_ended_and_replaced_at_once(stage):
    stage.deploy()
    stage.ready()
    (hung,) = stage.alive
    stage.loop.end_hung("another socket")
    assert not hung.killed
    stage.loop.end_hung(hung.spec["socket"])
    assert hung.killed
    stage.tick(2)
    assert len(stage.alive) == 1
    stage.loop.end_hung(hung.spec["socket"])  # told once more
    assert stage.alive[0].code is None


def test_more_and_fewer_workers(stage):
    for replicas in (1, 3, 2):
        stage.deploy(replicas=replicas)
        stage.ready()
        stage.ready()
        assert len(stage.staying) == len(stage.route().sockets) == replicas


def test_an_undeployed_model_loses_its_workers(stage, database):
    stage.deploy()
    stage.ready()
    stage.deploy("letters:1", "starting")  # it goes while it starts
    for name in ("digits", "starting"):
        stage.wanted.undeploy(stage.project, name)
    stage.tick(3)
    assert stage.alive == []
    assert stage.wanted.snapshot(None).routes == {}
    with database.session() as session:
        assert session.scalars(select(Replica)).all() == []


def test_a_worker_that_does_not_go_is_ended(stage):
    stage.deploy()
    stage.cluster.started[0].obeys = False
    stage.wanted.undeploy(stage.project, "digits")
    stage.tick()
    stage.tick(seconds=30)
    assert not stage.cluster.started[0].killed
    stage.tick(seconds=60)
    assert stage.cluster.started[0].killed


def test_a_process_that_can_not_be_started_is_an_error(stage):
    stage.cluster.failing = OSError(11, "no more processes")
    stage.deploy()
    assert "no more processes" in stage.row().error
    assert not stage.route().ready
    stage.cluster.failing = None
    stage.tick(seconds=5)
    stage.ready()
    assert (stage.row().error, stage.route().ready) == ("", True)


def test_a_missing_bundle_is_an_error_that_names_it(stage):
    shutil.rmtree(
        stage.registry.folder(stage.registry.get(stage.project, "digits:1"))
    )
    stage.deploy()
    assert "is missing" in stage.row().error
    assert stage.cluster.started == []


def test_one_model_under_two_names_and_another_under_the_same(stage):
    stage.deploy("digits:1", "stable")
    stage.deploy("digits:2", "next")
    stage.ready()
    assert (stage.route("stable").version, stage.route("next").version) == (
        1,
        2,
    )
    stage.deploy("letters:3", "next")
    assert stage.route("next").model == "digits"
    stage.ready()
    assert (stage.route("next").model, stage.route("next").version) == (
        "letters",
        3,
    )


def test_stopping_sends_sigterm_to_every_worker_and_kills_those_that_stay(
    stage,
):
    stage.deploy(replicas=2)
    stage.cluster.started[0].obeys = False
    stage.loop.stop()
    assert [one.asked for one in stage.cluster.started] == [1, 1]
    assert stage.cluster.started[0].killed


def test_after_a_restart_nothing_is_ready_until_it_is(stage):
    stage.deploy()
    stage.ready()
    stage.begin()
    assert (stage.route().ready, stage.route().sockets) == (False, [])
    stage.tick()
    stage.ready()
    assert stage.route().ready


# ---- how they run


def test_the_cores_are_shared_and_a_share_that_shrinks_rolls_the_workers(stage):
    stage.deploy()
    stage.ready()
    assert stage.staying == [("digits", 1, 8)]
    stage.deploy("letters:1")
    assert stage.staying == [
        ("digits", 1, 8),
        ("digits", 1, 4),
        ("letters", 1, 4),
    ]
    assert stage.route().ready
    stage.ready()
    assert stage.staying == [("digits", 1, 4), ("letters", 1, 4)]
    stage.wanted.undeploy(stage.project, "letters")
    stage.tick(3)
    assert stage.staying == [
        ("digits", 1, 4)
    ]  # a share that grows is no reason to roll


def test_a_worker_that_takes_one_thread_stays_whatever_its_share(stage):
    stage.deploy()
    stage.ready(threads=1)
    stage.deploy("letters:1")
    stage.ready(threads=1)
    assert stage.staying == [("digits", 1, 8), ("letters", 1, 4)]
    assert len(stage.cluster.started) == 2


def test_what_is_still_starting_is_not_replaced_for_its_threads(stage):
    for number, name in enumerate("abcdefgh", 1):
        stage.deploy("digits:1", name)
        assert len(stage.cluster.started) == number
    stage.ready(threads=1)
    assert len(stage.cluster.started) == 8


def test_a_deployment_is_served_while_its_threads_are_rolled(stage):
    stage.deploy("digits:1")
    stage.deploy("letters:1")
    stage.ready()  # digits started with all cores
    assert stage.route().ready
    stage.ready()
    assert stage.staying == [("letters", 1, 4), ("digits", 1, 4)]


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 3},
        {"engine": "openvino"},
        {"precision": "bf16"},
        {"batch": 1},
    ],
)
def test_other_options_roll_the_workers(stage, options):
    stage.deploy()
    stage.ready()
    stage.deploy(**options)
    new = stage.cluster.started[1]
    assert {name: new.spec[name] for name in options} == options
    assert stage.route().sockets == [stage.cluster.started[0].spec["socket"]]
    stage.ready()
    assert stage.route().sockets == [new.spec["socket"]]
    stage.tick(5)
    assert len(stage.cluster.started) == 2


def test_options_that_do_not_work_leave_the_old_workers_serving(stage):
    stage.deploy()
    stage.ready()
    stage.deploy(precision="bf16")
    bad = stage.cluster.started[1]
    bad.said.append(
        {
            "error": "the engine 'onnx' has no precision 'bf16'",
            "code": "invalid_input",
        }
    )
    bad.code = 1
    stage.tick()
    assert "no precision" in stage.row().error
    stage.tick()
    assert "no precision" in stage.row().error  # until it works or is changed
    assert stage.route().ready


# ---- a database that fails


class Failing:
    """A database whose writes fail while told to."""

    def __init__(self, database: Database) -> None:
        self._database, self.full = database, False

    def session(self):
        return self._broken() if self.full else self._database.session()

    def _broken(self):
        raise StorageFull("the disk is full")

    def __getattr__(self, name):
        return getattr(self._database, name)


def test_a_write_that_fails_is_tried_again(stage, database, monkeypatch):
    stage.deploy()
    (one,) = stage.alive
    failing, write = Failing(database), stage.loop._writes.write
    monkeypatch.setattr(stage.loop._writes, "database", failing)

    def broken(workers):
        failing.full = True
        try:
            write(workers)
        finally:
            failing.full = False

    monkeypatch.setattr(stage.loop._writes, "write", broken)
    one.said.append({"ready": True})
    for _ in range(3):
        with pytest.raises(MillError):
            stage.tick(news=False)
    stage.deploying = stage.wanted.deploy(stage.project, "digits:2", "")
    with pytest.raises(MillError):
        stage.tick()
    assert (stage.route().ready, one.asked) == (False, 0)
    monkeypatch.setattr(stage.loop._writes, "write", write)
    stage.tick(2, news=False)
    assert len(stage.cluster.started) == 2
    stage.ready(stage.cluster.started[1])
    assert (stage.route().version, stage.route().ready, stage.versions) == (
        2,
        True,
        [2],
    )


def test_a_decision_to_sleep_survives_a_write_that_fails(
    stage, database, monkeypatch
):
    sleepy(stage)
    stage.clock.now += 100
    stage.hear(Signals(idle_seconds=100))
    failing = Failing(database)
    monkeypatch.setattr(stage.loop._writes, "database", failing)
    failing.full = True
    with pytest.raises(MillError):
        stage.tick(news=False)
    failing.full = False
    stage.tick(2, news=False)
    assert (stage.row().asleep, stage.staying) == (True, [])
    assert len(stage.cluster.started) == 1


def test_rows_that_go_between_reading_and_writing_do_not_stop_the_loop(stage):
    stage.deploy()
    stage.deploy("letters:1")
    write = stage.loop._writes.write

    def undeploy_first(workers):
        stage.loop._writes.write = write
        stage.wanted.undeploy(stage.project, "digits")
        write(workers)

    stage.loop._writes.write = undeploy_first
    stage.ready()
    stage.tick(3)
    assert [model for model, *_ in stage.staying] == ["letters"]
    assert stage.route("letters").ready


def test_what_nobody_wants_any_more_is_forgotten(stage, database):
    for number in range(3):
        with_canary(stage)
        stage.ready()
        stage.hear(replace(CALLED, busy=number))
        stage.tick(2, 1)
        stage.wanted.undeploy(stage.project, "digits")
        stage.tick(3, 1)
    loop = stage.loop
    assert not any(
        (
            len(loop._autoscaler),
            len(loop._queues),
            len(loop._failures),
            len(loop._canaries),
            list(loop._workers),
            loop._writes._updates,
        )
    )
    with database.session() as session:
        assert session.scalars(select(Deployment)).all() == []
