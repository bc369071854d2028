"""COCO's outlines become masks."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from modelmill.data import formats
from modelmill.data.base import open_source
from modelmill.data.formats import coco_masks
from modelmill.errors import InvalidInput
from modelmill.tasks.base import task_named

from .conftest import make_folder, png

SQUARE = [[1, 1, 3, 1, 3, 3, 1, 3]]
WHOLE = [[0, 0, 5, 0, 5, 4, 0, 4]]


def document(*objects, names=("a.png",), categories=((7, "cat"), (3, "dog"))):
    """A file of 6x5 pictures; objects are (picture, category, segmentation[, crowd])."""
    return json.dumps(
        {
            "images": [
                {"id": at, "file_name": name, "width": 6, "height": 5}
                for at, name in enumerate(names)
            ],
            "annotations": [
                {
                    "id": at,
                    "image_id": one[0],
                    "category_id": one[1],
                    "segmentation": one[2],
                    "iscrowd": one[3:] == (1,),
                }
                for at, one in enumerate(objects)
            ],
            "categories": [
                {"id": number, "name": name} for number, name in categories
            ],
        }
    ).encode()


def read_files(tmp_path, files, **options):
    with open_source(make_folder(tmp_path / "set", files)) as source:
        assert (
            formats.detect(source, task_named("image-segmentation"))
            == "coco-masks"
        )
        return [
            item.read() for item in coco_masks.read(source, options)
        ], coco_masks.labels(source, options)


def target(item):
    assert not item.problem
    return np.asarray(Image.open(io.BytesIO(item.target)))


def test_outlines_are_drawn_the_smaller_over_the_larger(tmp_path):
    files = {
        "images/a.png": png(),
        "instances.json": document((0, 3, SQUARE), (0, 7, WHOLE)),
    }
    items, labels = read_files(tmp_path, files)
    assert labels == ["background", "cat", "dog"]
    wanted = np.ones((5, 6), np.uint8)
    wanted[1:4, 1:4] = 2
    assert target(items[0]).tolist() == wanted.tolist()


def test_a_picture_without_objects_is_background(tmp_path):
    items, _ = read_files(
        tmp_path, {"a.png": png(), "instances.json": document()}
    )
    assert not target(items[0]).any()


def test_run_lengths_go_down_the_columns_and_crowds_are_ignored(tmp_path):
    runs = {"size": [5, 6], "counts": [5, 2, 23]}
    items, _ = read_files(
        tmp_path, {"a.png": png(), "instances.json": document((0, 7, runs, 1))}
    )
    wanted = np.zeros((5, 6), np.uint8)
    wanted[:2, 1] = 255
    assert target(items[0]).tolist() == wanted.tolist()


def test_splits_are_named_by_files_and_pictures_found_in_their_folders(
    tmp_path,
):
    files = {
        f"{split}/a.png": png(number)
        for number, split in enumerate(("train2017", "val2017"))
    }
    files |= {
        f"annotations/instances_{split}.json": document((0, 7, SQUARE))
        for split in ("train2017", "val2017")
    }
    items, _ = read_files(tmp_path, files)
    assert [(item.name, item.split) for item in items] == [
        ("train2017/a.png", "train"),
        ("val2017/a.png", "val"),
    ]


def test_an_outline_may_leave_its_picture_however_far(tmp_path):
    far = [[-1e300, 0, 1e300, 0, 1e300, 4, -1e300, 4]]
    items, _ = read_files(
        tmp_path, {"a.png": png(), "instances.json": document((0, 7, far))}
    )
    assert target(items[0]).all()


@pytest.mark.parametrize(
    ("outline", "says"),
    [
        ([], "without an outline"),
        (None, "without an outline"),
        ([[1, 2, 3]], "not a list of x, y"),
        ([["a", "b"]], "not a list of x, y"),
        ([[None, 1, 2, 3, 3, 3]], "not a list of x, y"),
        ([7], "not a list of x, y"),
        ({"counts": "abc", "size": [5, 6]}, "compressed"),
        ({"counts": [5, 2], "size": [5, 6]}, "not of 6x5"),
        ({"counts": [-1, 31], "size": [5, 6]}, "not of 6x5"),
        ({"counts": [30], "size": [6, 5]}, "not of 6x5"),
    ],
)
def test_a_malformed_outline_is_a_finding_and_other_pictures_are_kept(
    tmp_path, outline, says
):
    files = {
        "a.png": png(1),
        "b.png": png(2),
        "instances.json": document((0, 7, outline), names=("a.png", "b.png")),
    }
    items, _ = read_files(tmp_path, files)
    assert says in items[0].problem
    assert not items[1].problem


def test_wrong_names_are_refused(tmp_path):
    objects = document((0, 99, SQUARE), names=("a.png", "gone.png", "a.png"))
    items, _ = read_files(tmp_path, {"a.png": png(), "x.json": objects})
    assert [
        "99, which is not listed" in items[0].problem,
        "no such picture" in items[1].problem,
    ] == [True, True]
    assert "a second time" in items[2].problem
    assert len({item.name for item in items}) == 3


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (b"[]", {}, "not COCO's JSON"),
        (b"{", {}, "not COCO's JSON"),
        (b"[" * 100_000, {}, "not COCO's JSON"),
        (document(categories=()), {}, "0 categories"),
        (document(), {"annotations": "stuff"}, "no JSON file with 'stuff'"),
    ],
)
def test_a_file_that_is_not_cocos_is_refused(tmp_path, data, options, says):
    with pytest.raises(InvalidInput, match=says):
        read_files(
            tmp_path, {"a.png": png(), "instances.json": data}, **options
        )


def test_nuts_as_they_are_published(shared):
    with open_source(shared("nuts_coco")) as source:
        items = [item.read() for item in coco_masks.read(source, {})]
        assert coco_masks.labels(source, {}) == [
            "background",
            "date",
            "fig",
            "hazelnut",
        ]
    assert len(items) == 18
    assert all(
        {0} < set(np.unique(target(item))) <= {0, 1, 2, 3} for item in items
    )
