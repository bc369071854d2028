"""The job queue: one job per lane, stopped when asked, found again after a crash, taken in once."""

import time
from pathlib import Path

import pytest

from modelmill.artifacts import sha256_of
from modelmill.control.db import Job
from modelmill.control.jobs import JobRunner
from modelmill.control.kinds import request_of
from modelmill.errors import Conflict, InvalidInput, MillError, NotFound
from tests.control.fakes import FakeCluster
from tests.helpers.bundles import plain_bundle

TASK = "image-classification"
ENTRY = "jobs:main"
REPORT = {"splits": {"train": 1}, "classes": {}}


@pytest.fixture
def cluster():
    return FakeCluster()


@pytest.fixture
def runner(stores, cluster):
    return JobRunner(stores, cluster, ENTRY, 2)


@pytest.fixture
def dataset(datasets, project, tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(b"archive")
    return datasets.add(project, "pets", TASK, "", {}, False, path)[0].id


@pytest.fixture
def submit(jobs, project, dataset):
    def one(kind="train", **values):
        values = {
            "model": "digits",
            "task": TASK,
            "recipe": "cnn",
            "dataset_id": dataset,
            "dataset": "pets",
        } | values
        return jobs.submit(project, kind, **values).id

    return one


@pytest.fixture
def state(jobs, project):
    return lambda number: jobs.get(project, number).state


def finish_training(handle, **changed):
    plain_bundle(
        Path(handle.spec["folder"]) / "bundle",
        metrics={"accuracy": 1.0, "job": handle.spec["job"]},
    )
    handle.leave({"metrics": {"accuracy": 1.0}, "bundle": "x", **changed})


def test_a_job_is_started_with_all_it_needs(
    runner, cluster, submit, jobs, project
):
    number = submit(settings={"epochs": "2"})
    runner.tick()
    (handle,) = cluster.started
    assert (handle.entry, handle.spec["kind"]) == (ENTRY, "train")
    assert handle.title == f"modelmill: job {number}"
    spec = handle.spec
    assert (spec["job"], spec["name"], spec["task"], spec["recipe"]) == (
        number,
        "digits",
        TASK,
        "cnn",
    )
    assert (spec["threads"], spec["settings"], spec["dataset"]["name"]) == (
        2,
        {"epochs": "2"},
        "pets",
    )
    assert Path(spec["dataset"]["archive"]).read_bytes() == b"archive"
    row = jobs.get(project, number)
    assert (row.state, row.pid) == ("running", handle.pid)


def test_one_job_at_a_time_runs_in_each_lane(runner, cluster, submit, state):
    train = submit()
    second = submit()
    imported = submit("import")
    third = submit("import")
    for _ in range(3):
        runner.tick()
    assert [handle.spec["job"] for handle in cluster.started] == [
        train,
        imported,
    ]
    assert [state(n) for n in (train, second, imported, third)] == [
        "running",
        "queued",
        "running",
        "queued",
    ]
    finish_training(cluster.started[0])
    runner.tick()
    assert (state(train), state(second), state(third)) == (
        "succeeded",
        "running",
        "queued",
    )


def test_a_result_becomes_a_version(
    runner, cluster, submit, jobs, project, registry
):
    number = submit()
    runner.tick()
    (Path(cluster.started[0].spec["folder"]) / "checkpoint.pt").write_bytes(
        b"x"
    )
    finish_training(cluster.started[0])
    runner.tick()
    row = jobs.get(project, number)
    assert (row.state, row.version, row.error) == ("succeeded", 1, "")
    assert row.result["metrics"] == {"accuracy": 1.0}
    assert row.ended is not None
    assert registry.get(project, "digits").job_id == number
    assert not (jobs.folder(number) / "checkpoint.pt").exists()
    assert cluster.started[0].killed  # nothing that it started is left


def test_a_result_is_taken_in_once(
    runner, cluster, submit, database, jobs, stores, registry, project
):
    number = submit()
    runner.tick()
    finish_training(cluster.started[0])
    runner.tick()
    # The node died after the version was added and before the job was written down as done.
    with database.session() as session:
        session.get_one(Job, number).state = "running"
    second = JobRunner(stores, cluster, ENTRY, 2)
    second.recover()
    assert [version.number for version in registry.all(project)] == [1]
    assert jobs.get(project, number).version == 1


def test_a_job_that_ended_while_nobody_looked_is_taken_in_at_the_next_start(
    runner, cluster, submit, jobs, stores, project
):
    number = submit()
    runner.tick()
    finish_training(cluster.started[0])
    later = JobRunner(stores, FakeCluster(), ENTRY, 2)
    later.recover()
    assert (
        jobs.get(project, number).state,
        jobs.get(project, number).version,
    ) == (
        "succeeded",
        1,
    )


def test_an_import_makes_its_data_set_ready(
    runner, cluster, submit, datasets, project, dataset
):
    submit("import", dataset_id=dataset)
    runner.tick()
    handle = cluster.started[0]
    (Path(handle.spec["folder"]) / "index").write_bytes(b"index")
    digest = sha256_of(Path(handle.spec["folder"]) / "index")
    handle.leave(
        {"format": "imagefolder", "report": REPORT, "index_digest": digest}
    )
    runner.tick()
    row = datasets.get(project, "pets")
    assert (row.state, row.format, row.report) == (
        "ready",
        "imagefolder",
        REPORT,
    )
    assert row.index_digest == digest


def test_an_import_taken_in_halfway_is_taken_in_whole_at_the_next_start(
    runner,
    cluster,
    submit,
    stores,
    datasets,
    artifacts,
    project,
    dataset,
    state,
):
    number = submit("import", dataset_id=dataset)
    runner.tick()
    handle = cluster.started[0]
    index = Path(handle.spec["folder"]) / "index"
    index.write_bytes(b"index")
    digest = artifacts.add_file(index)  # and then the node died
    handle.leave(
        {"format": "imagefolder", "report": REPORT, "index_digest": digest}
    )
    later = JobRunner(stores, FakeCluster(), ENTRY, 2)
    later.recover()
    assert (state(number), datasets.get(project, "pets").state) == (
        "succeeded",
        "ready",
    )


def test_a_cancelled_import_leaves_its_name_free(
    submit, jobs, datasets, project, dataset
):
    number = submit("import", dataset_id=dataset)
    jobs.cancel(project, number)
    assert datasets.all(project) == []


def test_an_import_that_failed_leaves_its_name_free(
    runner, cluster, submit, datasets, project, state, dataset, artifacts
):
    number = submit("import", dataset_id=dataset)
    archive = artifacts.path(datasets.get(project, "pets").digest)
    runner.tick()
    cluster.started[0].leave({"error": "none of the 3 items can be used"}, 1)
    runner.tick()
    assert state(number) == "failed"
    assert datasets.all(project) == []
    assert not archive.exists()


def test_what_went_wrong_is_shown(runner, cluster, submit, jobs, project):
    number = submit()
    runner.tick()
    cluster.started[0].leave({"error": "the disk is full"}, 1)
    runner.tick()
    row = jobs.get(project, number)
    assert (row.state, row.error) == ("failed", "the disk is full")
    assert row.ended is not None


def test_a_bundle_that_was_changed_fails_the_job(
    runner, cluster, submit, jobs, project
):
    number = submit()
    runner.tick()
    finish_training(cluster.started[0])
    (jobs.folder(number) / "bundle" / "model.onnx").write_bytes(b"other")
    runner.tick()
    row = jobs.get(project, number)
    assert row.state == "failed"
    assert "was changed" in row.error


@pytest.mark.parametrize(
    ("code", "says"), [(-9, "ended by signal 9"), (75, "it was stopped")]
)
def test_a_process_that_left_nothing_was_interrupted(
    runner, cluster, submit, jobs, project, code, says
):
    number = submit()
    runner.tick()
    cluster.started[0].code = code
    runner.tick()
    row = jobs.get(project, number)
    assert row.state == "interrupted"
    assert says in row.error
    assert f"resume {number}" in row.error
    assert row.ended is None


def test_a_result_of_an_earlier_run_is_not_taken_for_this_one(
    runner, cluster, submit, jobs, project, state
):
    number = submit()
    jobs.folder(number).mkdir(parents=True)
    (jobs.folder(number) / "result.json").write_text('{"error": "old"}')
    runner.tick()
    cluster.started[0].code = -9
    runner.tick()
    assert state(number) == "interrupted"


def test_a_queued_job_is_cancelled_at_once(
    runner, cluster, submit, jobs, project, state
):
    number = submit()
    assert jobs.cancel(project, number).state == "cancelled"
    runner.tick()
    assert cluster.started == []
    assert jobs.get(project, number).ended is not None
    with pytest.raises(Conflict, match="has already cancelled"):
        jobs.cancel(project, number)


def test_a_running_job_is_killed_and_what_it_drafted_removed(
    runner, cluster, submit, jobs, project, state
):
    number, following = submit(), submit()
    runner.tick()
    (jobs.folder(number) / "bundle.draft").mkdir()
    (jobs.folder(number) / "checkpoint.pt").write_bytes(b"x")
    jobs.cancel(project, number)
    runner.tick()
    assert cluster.started[0].killed
    assert state(number) == "cancelled"
    assert not (jobs.folder(number) / "bundle.draft").exists()
    assert (jobs.folder(number) / "checkpoint.pt").exists()
    assert state(following) == "running"


def test_a_job_that_was_stopped_can_be_resumed(
    runner, cluster, submit, jobs, project, state
):
    number = submit()
    runner.tick()
    jobs.cancel(project, number)
    runner.tick()
    assert jobs.resume(project, number).state == "queued"
    runner.tick()
    assert len(cluster.started) == 2
    assert (
        cluster.started[1].spec["folder"] == cluster.started[0].spec["folder"]
    )
    assert state(number) == "running"
    with pytest.raises(
        Conflict, match="is running; only interrupted, failed, cancelled"
    ):
        jobs.resume(project, number)


def test_after_a_crash_running_jobs_go_on(
    runner, cluster, submit, stores, state
):
    number, waiting = submit(), submit()
    runner.tick()
    later = JobRunner(stores, cluster, ENTRY, 2)
    later.recover()
    assert (state(number), state(waiting)) == ("queued", "queued")
    later.tick()
    assert [handle.spec["job"] for handle in cluster.started] == [
        number,
        number,
    ]


def test_a_job_stopped_before_a_crash_does_not_resume(
    runner, submit, jobs, project, state
):
    number = submit()
    runner.tick()
    jobs.cancel(project, number)
    runner.recover()
    assert state(number) == "cancelled"


def test_stopping_lets_jobs_write_a_checkpoint(runner, cluster, submit, state):
    number = submit()
    runner.tick()
    runner.stop(time.monotonic() + 5)
    assert cluster.started[0].asked == 1
    assert state(number) == "interrupted"


def test_a_job_that_does_not_stop_is_ended(
    runner, cluster, submit, jobs, project
):
    number = submit()
    runner.tick()
    cluster.started[0].obeys = False
    runner.stop(time.monotonic() + 0.05)
    assert cluster.started[0].killed
    assert "signal 9" in jobs.get(project, number).error


@pytest.mark.parametrize(
    "error", [OSError(11, "no more processes"), MillError("no room")]
)
def test_a_job_that_can_not_be_started_has_failed(
    runner, cluster, submit, state, error
):
    cluster.failing = error
    number = submit()
    runner.tick()
    assert state(number) == "failed"
    cluster.failing = None
    following = submit()
    runner.tick()
    assert state(following) == "running"


def test_a_job_whose_data_were_removed_has_failed_in_words(
    runner, cluster, submit, jobs, project
):
    number = submit(dataset_id=None)
    runner.tick()
    row = jobs.get(project, number)
    assert (row.state, row.error) == ("failed", "data set 'pets' was removed")
    assert cluster.started == []


def test_an_evaluation_gets_the_path_of_its_bundle(
    runner, cluster, submit, registry, project, tmp_path
):
    version = registry.add(
        project, "digits", plain_bundle(tmp_path / "b"), None
    )
    submit("evaluate", version=1, settings={"split": "val"})
    runner.tick()
    assert cluster.started[0].spec["bundle"] == str(registry.folder(version))
    assert cluster.started[0].spec["split"] == "val"


def test_another_project_sees_no_job(jobs, other, submit):
    number = submit()
    assert jobs.all(other) == []
    for verb in (jobs.get, jobs.cancel, jobs.resume):
        with pytest.raises(
            NotFound, match=f"unknown job {number}; there are none yet"
        ):
            verb(other, number)


# ---- kinds


def test_a_job_of_a_kind_that_is_not_installed_fails_in_words(
    runner, cluster, submit, jobs, project
):
    number, train = submit("optimise"), submit()
    runner.tick()
    row = jobs.get(project, number)
    assert row.state == "failed"
    assert row.error.startswith("unknown kind of jobs 'optimise'; there are: ")
    assert [handle.spec["job"] for handle in cluster.started] == [train]


def test_what_an_import_waited_for_is_dropped_with_it(
    submit, jobs, datasets, project, dataset, artifacts
):
    archive = artifacts.path(datasets.get(project, "pets").digest)
    jobs.cancel(project, submit("import", dataset_id=dataset))
    assert not archive.exists()


def test_a_training_says_what_it_starts_from(
    runner, cluster, submit, registry, project, tmp_path
):
    version = registry.add(
        project, "digits", plain_bundle(tmp_path / "b"), None
    )
    submit(settings={"epochs": "2", "from": "digits:1"})
    runner.tick()
    spec = cluster.started[0].spec
    assert (spec["bundle"], spec["base"]) == (
        str(registry.folder(version)),
        "digits:1",
    )
    assert spec["settings"] == {"epochs": "2"}


def test_a_model_is_registered_from_its_file_which_is_then_dropped(
    runner, cluster, jobs, project, artifacts, registry, tmp_path
):
    upload = tmp_path / "model"
    upload.write_bytes(b"onnx")
    asked = request_of("register", {"name": "digits", "labels": ["a", "b"]})
    row = jobs.order(project, "register", asked, upload)
    runner.tick()
    spec = cluster.started[0].spec
    assert Path(spec["bundle"]).read_bytes() == b"onnx"
    assert spec["settings"]["labels"] == ["a", "b"]
    finish_training(cluster.started[0])
    runner.tick()
    assert jobs.get(project, row.id).version == 1
    with pytest.raises(NotFound):
        artifacts.path(row.settings["upload"])


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "model: it is missing"),
        ({"model": "a"}, "data: it is missing"),
        ({"model": "a", "data": 3}, "data: expected `str`, got `int`"),
        ({"model": "a", "data": "b", "splitt": "c"}, "did you mean 'split'"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(document, says):
    with pytest.raises(InvalidInput, match=says):
        request_of("evaluate", document)


def test_fields_that_came_as_texts_are_read_as_what_they_are():
    asked = request_of(
        "import", {"name": "a", "task": "fill-mask", "strict": "true"}
    )
    assert asked.strict is True
