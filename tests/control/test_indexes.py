"""Indexes belong to a project, are of one version of a model, and outlive the process."""

from types import SimpleNamespace

import pytest

from modelmill.control.indexes import Indexes
from modelmill.control.vector_index import NewItem
from modelmill.errors import Conflict, InvalidInput, MillError, NotFound


def version(task="image-feature-extraction", name="embedding", shape=(-1, 4)):
    manifest = {
        "outputs": [{"name": name, "datatype": "FP32", "shape": list(shape)}]
    }
    return SimpleNamespace(
        model="faces", number=3, task=task, manifest=manifest
    )


@pytest.fixture
def indexes(tmp_path):
    return Indexes(tmp_path / "indexes")


def test_an_index_is_of_one_version_and_is_found_after_a_restart(
    indexes, tmp_path
):
    made = indexes.create(1, "people", version())
    indexes.get(1, "people")[1].add([NewItem([1, 0, 0, 0], "ada")])
    told, index = Indexes(tmp_path / "indexes").get(1, "people")
    assert told == made
    assert (told.model, told.version, told.dimensions) == ("faces", 3, 4)
    assert index.labels() == {"ada": 1}


def test_projects_do_not_see_each_other(indexes):
    for project, label in ((1, "ada"), (2, "bob")):
        indexes.create(project, "people", version())
        indexes.get(project, "people")[1].add([NewItem([1, 0, 0, 0], label)])
    indexes.create(2, "things", version())
    assert [told.name for told in indexes.all(1)] == ["people"]
    assert indexes.get(1, "people")[1].labels() == {"ada": 1}
    with pytest.raises(
        NotFound, match=r"unknown index 'things'.*there are: people"
    ):
        indexes.get(1, "things")
    indexes.delete(2, "people")
    assert indexes.get(1, "people")[1].labels() == {"ada": 1}


def test_one_that_was_deleted_is_gone_for_all_and_its_name_is_free(
    indexes, tmp_path
):
    other = Indexes(tmp_path / "indexes")
    indexes.create(1, "people", version())
    held = other.get(1, "people")[1]
    held.add([NewItem([1, 0, 0, 0], "ada")])
    indexes.delete(1, "people")
    with pytest.raises(NotFound):
        held.search([1, 0, 0, 0], 1)
    with pytest.raises(NotFound):
        other.get(1, "people")
    indexes.create(1, "people", version(shape=(-1, 8)))
    assert other.get(1, "people")[1].labels() == {}
    with pytest.raises(Conflict, match="there is an index 'people' already"):
        other.create(1, "people", version())


@pytest.mark.parametrize("name", ["", "../people", ".hidden", "a/b", "x" * 65])
def test_a_name_is_a_safe_one(indexes, name):
    for act in (
        lambda: indexes.create(1, name, version()),
        lambda: indexes.get(1, name),
    ):
        with pytest.raises(InvalidInput):
            act()


def test_only_a_model_that_answers_vectors_will_do(indexes):
    with pytest.raises(
        InvalidInput, match="'faces' is for image-classification"
    ):
        indexes.create(1, "people", version("image-classification", "scores"))
    with pytest.raises(InvalidInput, match="'faces' has no task"):
        indexes.create(1, "people", version(""))


def test_a_description_that_is_damaged_is_said(indexes, tmp_path):
    indexes.create(1, "people", version())
    (tmp_path / "indexes" / "1" / "people" / "index.json").write_text("{")
    with pytest.raises(MillError, match="can't be read"):
        indexes.get(1, "people")
