"""Data sets: the same upload is the same set, and a job gets only what it can use."""

import pytest

from modelmill.errors import Conflict, InvalidInput, NotFound

TASK = "image-classification"
REPORT = {
    "splits": {"train": 8, "val": 1, "test": 1},
    "classes": {"cat": 5, "dog": 5},
    "items": 10,
}


@pytest.fixture
def upload(tmp_path):
    def file(content=b"archive"):
        path = tmp_path / "upload.zip"
        path.write_bytes(content)
        return path

    return file


@pytest.fixture
def add(datasets, project, upload):
    def one(
        name="pets",
        content=b"archive",
        *,
        task=TASK,
        format="",
        options=None,
        strict=False,
        where=None,
    ):
        return datasets.add(
            where or project,
            name,
            task,
            format,
            options or {},
            strict,
            upload(content),
        )

    return one


@pytest.fixture
def ready(datasets, add, project, artifacts, upload):
    def one(name="pets", report=REPORT):
        row, _ = add(name)
        index = artifacts.add_file(upload(b"index"))
        datasets.finish(
            row.id,
            {"format": "imagefolder", "report": report, "index_digest": index},
        )
        return datasets.get(project, name)

    return one


def test_a_new_set_must_be_checked(add, artifacts):
    row, check = add()
    assert check
    assert (row.name, row.state, row.task) == ("pets", "checking", TASK)
    assert artifacts.path(row.digest).read_bytes() == b"archive"


def test_the_same_upload_is_the_same_set(add, ready):
    first = ready()
    again, check = add()
    assert (again.id, check) == (first.id, False)
    again, check = add(format="imagefolder")
    assert (again.id, check) == (first.id, False)


@pytest.mark.parametrize(
    "changed",
    [
        {"content": b"other"},
        {"task": "text-classification"},
        {"format": "idx"},
        {"options": {"a": "b"}},
    ],
)
def test_another_upload_under_a_taken_name_is_refused(add, ready, changed):
    ready()
    with pytest.raises(Conflict, match="there is another data set 'pets'"):
        add(**changed)


def test_what_the_check_found_is_recorded(ready):
    row = ready()
    assert (row.state, row.format, row.report) == (
        "ready",
        "imagefolder",
        REPORT,
    )


def test_a_set_that_could_not_be_read_leaves_its_name_free(
    datasets, add, project
):
    row, _ = add()
    datasets.fail(row.id)
    assert datasets.all(project) == []
    assert add(content=b"other")[1]


def test_its_name_is_free_although_the_job_that_failed_remembers_it(
    datasets, add, project, jobs
):
    row, _ = add()
    number = jobs.submit(
        project, "import", dataset_id=row.id, dataset="pets"
    ).id
    datasets.fail(row.id)
    assert datasets.all(project) == []
    assert jobs.get(project, number).dataset == "pets"


def test_a_set_that_jobs_have_used_can_be_removed(
    datasets, ready, project, jobs
):
    row = ready()
    number = jobs.submit(project, "train", dataset_id=row.id, dataset="pets").id
    datasets.remove(project, "pets")
    assert datasets.all(project) == []
    assert jobs.get(project, number).dataset == "pets"


def test_a_removed_set_is_gone_and_its_content_stays(
    datasets, ready, project, artifacts
):
    row = ready()
    datasets.remove(project, "pets")
    with pytest.raises(NotFound, match="unknown data set 'pets'"):
        datasets.get(project, "pets")
    assert artifacts.path(row.digest).exists()


def test_a_result_for_a_set_that_was_removed_meanwhile_is_dropped(
    datasets, add, project
):
    row, _ = add()
    datasets.remove(project, "pets")
    datasets.finish(row.id, {"format": "x", "report": {}, "index_digest": ""})
    datasets.fail(row.id)
    assert datasets.all(project) == []


def test_a_late_failure_does_not_remove_a_sound_set(datasets, ready, project):
    datasets.fail(ready().id)
    assert datasets.get(project, "pets").state == "ready"


def test_an_unknown_set_suggests_the_near_one(datasets, ready, project):
    ready()
    with pytest.raises(NotFound, match="did you mean 'pets'"):
        datasets.get(project, "pet")


def test_another_project_has_its_own_names(datasets, add, project, other):
    mine, theirs = add()[0], add(content=b"other", where=other)[0]
    assert mine.id != theirs.id
    assert [row.id for row in datasets.all(other)] == [theirs.id]
    with pytest.raises(NotFound):
        datasets.remove(other, "nothing")


@pytest.mark.parametrize(
    ("report", "task", "split", "kind", "says"),
    [
        (
            REPORT,
            "text-classification",
            "test",
            InvalidInput,
            "was added for image-classification",
        ),
        (
            REPORT,
            TASK,
            "dev",
            InvalidInput,
            "has no dev split; it has: train, val, test",
        ),
        (
            {"splits": {"train": 9, "test": 0}},
            TASK,
            "test",
            InvalidInput,
            "has no test split; it has: train",
        ),
        ({}, TASK, "test", InvalidInput, "it has: nothing"),
    ],
)
def test_a_job_is_refused_a_set_that_it_can_not_use(
    datasets, ready, project, report, task, split, kind, says
):
    ready(report=report)
    with pytest.raises(kind, match=says):
        datasets.usable(project, "pets", task, split)


def test_a_set_that_is_being_checked_can_not_be_used_yet(
    datasets, add, project
):
    add()
    with pytest.raises(Conflict, match="still being checked"):
        datasets.usable(project, "pets", TASK, "test")


def test_training_needs_two_classes(datasets, ready, project):
    assert datasets.trainable(project, ready().name, TASK).name == "pets"
    ready("cats", {**REPORT, "classes": {"cat": 10}})
    with pytest.raises(InvalidInput, match="one class only"):
        datasets.trainable(project, "cats", TASK)


def test_a_class_without_items_is_no_class(datasets, ready, project):
    ready("cats", {**REPORT, "classes": {"cat": 10, "dog": 0}})
    with pytest.raises(InvalidInput, match="one class only"):
        datasets.trainable(project, "cats", TASK)


def test_a_job_gets_the_paths_of_all_it_needs(datasets, ready, artifacts):
    row = ready()
    spec = datasets.spec(row)
    assert spec["archive"] == str(artifacts.path(row.digest))
    assert spec["index"] == str(artifacts.path(row.index_digest))
    assert (spec["name"], spec["format"], spec["strict"]) == (
        "pets",
        "imagefolder",
        False,
    )
