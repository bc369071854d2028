"""Versions are numbered and never change; aliases move; projects do not see one another."""

import pytest

from modelmill.bundle import digest_of
from modelmill.control.registry import summary
from modelmill.errors import BundleCorrupt, Conflict, InvalidInput, NotFound
from tests.helpers.bundles import plain_bundle


@pytest.fixture
def made(tmp_path):
    """Bundles, no two the same."""
    count = [0]

    def bundle(**changed):
        count[0] += 1
        metrics = {"accuracy": count[0] / 100, "items": 1}
        return plain_bundle(
            tmp_path / f"bundle{count[0]}", **({"metrics": metrics} | changed)
        )

    return bundle


@pytest.fixture
def job(jobs, project):
    return lambda: jobs.submit(project, "train").id


def test_versions_are_numbered_from_one_for_each_model(registry, project, made):
    assert [
        registry.add(project, "digits", made(), None).number for _ in range(3)
    ] == [
        1,
        2,
        3,
    ]
    assert registry.add(project, "reviews", made(), None).number == 1
    assert [(v.model, v.number) for v in registry.all(project)] == [
        ("digits", 3),
        ("digits", 2),
        ("digits", 1),
        ("reviews", 1),
    ]


def test_a_version_is_kept_in_the_store_by_its_digest(registry, project, made):
    folder = made()
    digest = digest_of(folder)
    version = registry.add(project, "digits", folder, None)
    assert version.digest == digest
    assert not folder.exists()
    assert digest_of(registry.folder(version)) == digest
    assert version.manifest["labels"] == ["dark", "bright"]


def test_the_same_content_twice_is_two_versions_of_one_bundle(
    registry, project, made
):
    one, two = (
        registry.add(project, "digits", made(metrics={"accuracy": 1.0}), None)
        for _ in range(2)
    )
    assert (one.number, two.number) == (1, 2)
    assert registry.folder(one) == registry.folder(two)


def test_the_same_job_adds_once(registry, project, made, job):
    number = job()
    first = registry.add(project, "digits", made(), number)
    folder = made()
    again = registry.add(project, "digits", folder, number)
    assert (again.id, again.number, again.digest) == (first.id, 1, first.digest)
    assert not folder.exists()
    assert registry.add(project, "digits", made(), job()).number == 2


def test_a_changed_bundle_is_not_taken(registry, project, made):
    folder = made()
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleCorrupt):
        registry.add(project, "digits", folder, None)
    assert registry.all(project) == []


def test_a_model_keeps_its_task(registry, project, made):
    registry.add(project, "digits", made(), None)
    folder = made(task="text-classification")
    with pytest.raises(
        Conflict, match="model 'digits' is a image-classification model"
    ):
        registry.add(project, "digits", folder, None)
    assert folder.exists()
    assert len(registry.all(project)) == 1


@pytest.mark.parametrize(
    ("reference", "number"),
    [("digits", 3), ("digits:1", 1), ("digits:3", 3), ("digits@champion", 2)],
)
def test_a_version_is_found_by_every_reference(
    registry, project, made, reference, number
):
    for _ in range(3):
        registry.add(project, "digits", made(), None)
    registry.alias(project, "digits:2", "champion")
    assert registry.get(project, reference).number == number


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("digit", "unknown model 'digit'; did you mean 'digits'"),
        ("digits:9", "model 'digits' has no version 9; there are: 1, 2"),
        (
            "digits@champio",
            "unknown alias of 'digits' 'champio'; did you mean 'champion'",
        ),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(
    registry, project, made, reference, says
):
    for _ in range(2):
        registry.add(project, "digits", made(), None)
    registry.alias(project, "digits:2", "champion")
    with pytest.raises(NotFound, match=says):
        registry.get(project, reference)


def test_an_alias_moves(registry, project, made):
    for _ in range(2):
        registry.add(project, "digits", made(), None)
    registry.alias(project, "digits:1", "champion")
    registry.alias(project, "digits:2", "champion")
    registry.alias(project, "digits@champion", "stable")
    assert {(a.name, a.version) for a in registry.aliases(project)} == {
        ("champion", 2),
        ("stable", 2),
    }
    rows = [
        summary(version, registry.aliases(project))
        for version in registry.all(project)
    ]
    assert [sorted(row["aliases"]) for row in rows] == [
        ["champion", "stable"],
        [],
    ]


def test_another_project_sees_nothing(registry, project, other, made):
    registry.add(project, "digits", made(), None)
    registry.alias(project, "digits", "champion")
    assert registry.all(other) == []
    assert registry.aliases(other) == []
    for reference in ("digits", "digits:1", "digits@champion"):
        with pytest.raises(NotFound) as caught:
            registry.get(other, reference)
        assert "there are none yet" in caught.value.message
    with pytest.raises(NotFound):
        registry.alias(other, "digits:1", "mine")
    assert (
        registry.add(
            other, "digits", made(task="text-classification"), None
        ).number
        == 1
    )


def test_a_reference_that_is_none_is_refused(registry, project):
    with pytest.raises(InvalidInput):
        registry.get(project, "digits:one")
