"""Pictures alone: any folders, split folders, and folders that options name."""

from pathlib import Path

import pytest

from modelmill import plugins
from modelmill.data.base import open_source
from modelmill.data.formats import images
from modelmill.errors import InvalidInput

from .conftest import make_folder, make_zip, png, read_with


def splits(path: Path, **options: str) -> dict[str, str | None]:
    """The split of each item, by name."""
    with open_source(path) as source:
        return {item.name: item.split for item in images.read(source, options)}


def test_pictures_of_any_folders_are_items_without_labels(tmp_path):
    path = make_zip(
        tmp_path / "set.zip",
        {"a.png": png(1), "x/b.jpg": png(2, "JPEG"), "x/y/c": png(3)},
    )
    items = read_with(path, images)
    assert [
        (item.name, item.label, item.split, item.problem) for item in items
    ] == [
        ("a.png", "", None, ""),
        ("x/b.jpg", "", None, ""),
        ("x/y/c", "", None, ""),
    ]
    assert items[0].data == png(1)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "dev", "testing"),
        ("DIV2K_train_HR", "DIV2K_valid_HR", "DIV2K_test"),
    ],
)
def test_folders_named_after_splits_are_splits(tmp_path, train, val, test):
    names = {
        f"{train}/1.png": "train",
        f"{val}/x/2.png": "val",
        f"{test}/3.png": "test",
        "4.png": None,
    }
    assert (
        splits(make_folder(tmp_path / "set", dict.fromkeys(names, png())))
        == names
    )


def test_one_folder_that_is_called_train_beside_others_is_no_split(tmp_path):
    names = ["Set5/1.png", "Train400/2.png"]
    assert splits(
        make_folder(tmp_path / "set", dict.fromkeys(names, png()))
    ) == dict.fromkeys(names)


NAMES = ["BSD68/1.png", "Set5/2.png", "Train400/3.png", "Train400/x/4.png"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"test": "BSD68"}, ["test", None, None, None]),
        ({"test": "BSD68, Set5/"}, ["test", "test", None, None]),
        ({"train": "Train400"}, ["test", "test", "train", "train"]),
        (
            {"train": "Train400", "val": "Set5"},
            ["test", "val", "train", "train"],
        ),
    ],
)
def test_options_name_the_folders_of_a_split(tmp_path, options, wanted):
    folder = make_folder(tmp_path / "set", dict.fromkeys(NAMES, png()))
    assert splits(folder, **options) == dict(zip(NAMES, wanted, strict=True))


def test_what_neither_train_nor_test_names_is_left_out(tmp_path):
    folder = make_folder(tmp_path / "set", dict.fromkeys(NAMES, png()))
    assert splits(folder, train="Train400/x", test="BSD68") == {
        "BSD68/1.png": "test",
        "Train400/x/4.png": "train",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"test": "BSD86"},
            "no pictures below 'BSD86'; its folders: BSD68, Set5, Train400",
        ),
        (
            {"test": "Set5", "train": "Set5"},
            "'Set5' can't be test and train at once",
        ),
        ({"tests": "Set5"}, "unknown setting 'tests'; did you mean 'test'"),
    ],
)
def test_folders_that_are_not_there_are_named(tmp_path, options, message):
    folder = make_folder(tmp_path / "set", dict.fromkeys(NAMES, png()))
    with pytest.raises(InvalidInput, match=message):
        splits(folder, **options)


def test_other_files_are_items_with_a_problem_and_none_at_all_are_refused(
    tmp_path,
):
    items = read_with(
        make_folder(tmp_path / "a", {"1.png": png(), "2.xml": b"x"}), images
    )
    assert [item.problem for item in items] == ["", "not a picture file"]
    with pytest.raises(InvalidInput, match="no picture files"):
        splits(make_folder(tmp_path / "b", {"1.csv": b"x"}))


def test_it_is_meant_before_folders_of_classes(tmp_path):
    with open_source(make_folder(tmp_path / "set", {"1.png": png()})) as source:
        assert images.detect(source)
    assert images.RANK > plugins.load("data.formats", "imagefolder").RANK


def test_the_restoration_sets_are_read_as_published(shared):
    found = splits(
        Path(shared("denoise_sr")), train="Train400_quarter", test="BSD68"
    )
    assert (len(found), list(found.values()).count("train")) == (168, 100)
