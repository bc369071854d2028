"""Pictures with masks: the layouts they come in, what their values mean, and what is wrong with
some.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from modelmill.data import formats
from modelmill.data.base import open_source
from modelmill.data.check import examine
from modelmill.data.formats import masks
from modelmill.errors import InvalidInput
from modelmill.tasks.base import task_named

from .conftest import make_folder, make_zip, pixel_print, png

SEGMENTATION = task_named("image-segmentation")
VALUES = [[0, 1, 2, 0, 0, 1], [0, 0, 1, 1, 2, 2], [0] * 6, [1] * 6, [2] * 6]


def mask(values=VALUES, kind="PNG", mode="L", dtype=np.uint8):
    """A mask of the size of `png()`: 6x5."""
    image = Image.fromarray(np.asarray(values, dtype))
    if mode == "P":
        image = image.convert("P")
        image = Image.fromarray(np.asarray(values, np.uint8)).convert("L")
        image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200] + [0] * 759)
    elif mode != "L":
        image = image.convert(mode)
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def read(path, **options):
    """All items at a path, and the classes; the format is detected."""
    with open_source(path) as source:
        assert formats.detect(source, SEGMENTATION) == "masks"
        return [
            item.read() for item in masks.read(source, options)
        ], masks.labels(source, options)


def read_files(tmp_path, files, **options):
    return read(make_folder(tmp_path / "set", files), **options)


def target(item):
    assert not item.problem
    return np.asarray(Image.open(io.BytesIO(item.target))).tolist()


FOLDERS = {
    "images/a.jpg": png(1, "JPEG"),
    "masks/a.png": mask(),
    "images/b.jpg": png(2, "JPEG"),
    "masks/b.png": mask(),
}
CAMVID = {
    "train/a.png": png(1),
    "trainannot/a.png": mask(),
    "val/b.png": png(2),
    "valannot/b.png": mask(),
    "test/c.png": png(3),
    "testannot/c.png": mask(),
    "original/d.png": png(4),
    "train.txt": b"/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png\n",
    "val.txt": b"CamVid/val/b.png CamVid/valannot/b.png\r\n\r\n",
    "test.txt": b"test/c.png testannot/c.png",
}
VOC = {
    "JPEGImages/2007_1.jpg": png(1, "JPEG"),
    "JPEGImages/2007_2.jpg": png(2, "JPEG"),
    "JPEGImages/2007_3.jpg": png(3, "JPEG"),
    "SegmentationClass/2007_1.png": mask(mode="P"),
    "SegmentationClass/2007_2.png": mask(mode="P"),
    "ImageSets/Segmentation/train.txt": b"2007_1\n",
    "ImageSets/Segmentation/val.txt": b"2007_2\n",
    "ImageSets/Segmentation/trainval.txt": b"2007_1\n2007_2\n",
    "ImageSets/Main/train.txt": b"2007_3 1\n",
}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (FOLDERS, [("images/a.jpg", None), ("images/b.jpg", None)]),
        (
            CAMVID,
            [
                ("train/a.png", "train"),
                ("val/b.png", "val"),
                ("test/c.png", "test"),
            ],
        ),
        (
            {
                n: d
                for n, d in CAMVID.items()
                if not n.endswith(".txt") and n[0] != "o"
            },
            [
                ("test/c.png", "test"),
                ("train/a.png", "train"),
                ("val/b.png", "val"),
            ],
        ),
        (
            VOC,
            [
                ("JPEGImages/2007_1.jpg", "train"),
                ("JPEGImages/2007_2.jpg", "val"),
            ],
        ),
        (
            {
                f"{split}/{name}": data
                for split in ("train", "valid")
                for name, data in FOLDERS.items()
            },
            [
                ("train/images/a.jpg", "train"),
                ("train/images/b.jpg", "train"),
                ("valid/images/a.jpg", "val"),
                ("valid/images/b.jpg", "val"),
            ],
        ),
        (
            {
                name.replace("/", "/training/"): data
                for name, data in FOLDERS.items()
            },
            [
                ("images/training/a.jpg", "train"),
                ("images/training/b.jpg", "train"),
            ],
        ),
        (
            {"images/a.jpg": png(1, "JPEG"), "labels/a_mask.png": mask()},
            [("images/a.jpg", None)],
        ),
        (
            {
                "Images/a b.jpg": png(1, "JPEG"),
                "Masks/a b.png": mask(),
                "train.txt": b"Images/a b.jpg Masks/a b.png",
            },
            [("Images/a b.jpg", "train")],
        ),
    ],
    ids=[
        "folders",
        "camvid",
        "camvid-without-lists",
        "voc",
        "splits-above",
        "splits-below",
        "suffix",
        "blanks",
    ],
)
def test_layouts(tmp_path, files, found):
    items, classes = read_files(tmp_path, files)
    assert [(item.name, item.split) for item in items] == found
    assert all(target(item) == VALUES for item in items)
    assert classes == ["class 0", "class 1", "class 2"]


def test_a_zip_reads_as_its_folder(tmp_path):
    items, _ = read(
        make_zip(
            tmp_path / "set.zip",
            {f"CamVid/{name}": data for name, data in CAMVID.items()},
        )
    )
    assert [item.name for item in items] == [
        "train/a.png",
        "val/b.png",
        "test/c.png",
    ]


@pytest.mark.parametrize("name", ["classes.txt", "labels.txt", "codes.txt"])
@pytest.mark.parametrize(
    "text",
    [
        "sky\nroad\ncar\n",
        "0 sky\n1 road\n2 car",
        "0: sky\r\n1: road\r\n2: car\r\n\r\n",
    ],
)
def test_classes_are_named_by_a_file(tmp_path, name, text):
    items, classes = read_files(tmp_path, FOLDERS | {name: text.encode()})
    assert classes == ["sky", "road", "car"]
    assert target(items[0]) == VALUES


def test_classes_are_named_by_an_option_and_void_ones_are_ignored(tmp_path):
    items, classes = read_files(tmp_path, FOLDERS, classes="sky, Void, car")
    assert classes == ["sky", "car"]
    assert target(items[0])[0] == [0, 255, 1, 0, 0, 255]


def test_a_class_without_names_is_called_after_its_value(tmp_path):
    items, classes = read_files(tmp_path, FOLDERS, ignore="0")
    assert classes == ["class 1", "class 2"]
    assert target(items[0])[0] == [255, 0, 1, 255, 255, 0]


def test_255_is_ignored_unless_it_is_said_to_be_a_class(tmp_path):
    values = [[0, 1, 255, 0, 0, 1], *VALUES[1:]]
    files = {"images/a.png": png(), "masks/a.png": mask(values)}
    items, classes = read_files(tmp_path, files)
    assert classes == ["class 0", "class 1", "class 2"]
    assert target(items[0]) == values


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["background", "foreground"]),
        ({"classes": "sea,ship"}, ["sea", "ship"]),
    ],
)
def test_black_and_white_masks_are_two_classes(tmp_path, options, names):
    files = {"images/a.png": png(), "masks/a.png": mask([[0, 255] * 3] * 5)}
    items, classes = read_files(tmp_path, files, **options)
    assert classes == names
    assert target(items[0]) == [[0, 1] * 3] * 5


@pytest.mark.parametrize(
    "data",
    [
        *(mask(mode=mode) for mode in ("P", "LA", "RGB")),
        *(mask(kind=kind) for kind in ("BMP", "TIFF")),
        mask(dtype=np.uint16),
        mask(dtype=np.int32, kind="TIFF"),
    ],
)
def test_masks_of_other_kinds_hold_the_same_numbers(tmp_path, data):
    items, _ = read_files(
        tmp_path, {"images/a.png": png(), "masks/a.png": data}
    )
    assert target(items[0]) == VALUES


def bomb(width, height):
    """A PNG of a few bytes that claims to be large."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + head
        + struct.pack(">I", zlib.crc32(head))
    )
    return start + struct.pack(">I", 9) + b"IDAT" + bytes(13)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (mask([[0, 1]]), "it is 2x1, the picture 6x5"),
        (
            mask([[0, 7, 9] * 2] * 5),
            "it holds the values 7, 9, which are no class",
        ),
        (mask(np.full((5, 6), 999), dtype=np.uint16), "values up to 999"),
        (png(), "it is coloured"),
        (png(kind="JPEG"), "JPEG would blur"),
        (mask()[:50], "it is damaged"),
        (bomb(60_000, 60_000), "it claims more than 50,000,000 pixels"),
        (bomb(8_000, 8_000), "it has 64,000,000 pixels; at most 50,000,000"),
        (b"", "no PNG"),
        (b"garbage", "no PNG"),
    ],
)
def test_a_wrong_mask_is_a_finding_and_the_others_are_kept(
    tmp_path, data, says
):
    items, _ = read_files(
        tmp_path, FOLDERS | {"masks/a.png": data}, classes="sky,road,car"
    )
    assert items[0].problem.startswith("its mask masks/a.png: ")
    assert says in items[0].problem
    assert target(items[1]) == VALUES


def turned(pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", exif=exif)
    return out.getvalue()


@pytest.mark.parametrize(
    ("orientation", "sound"), [(1, False), (3, False), (6, True), (8, True)]
)
def test_a_mask_follows_the_orientation_of_its_picture(
    tmp_path, orientation, sound
):
    # 5 wide, 6 high as stored; the mask is 6 wide, 5 high
    lying = np.zeros((6, 5, 3), np.uint8)
    files = FOLDERS | {"images/a.jpg": turned(lying, orientation)}
    items, _ = read_files(tmp_path, files)
    assert (not items[0].problem) == sound


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"images/c.jpg": png(3, "JPEG")}, "a picture without a mask"),
        ({"masks/c.png": mask()}, "a mask without a picture"),
        ({"images/a.png": png(3)}, "not clear which belong together"),
    ],
)
def test_items_without_a_partner_are_findings(tmp_path, files, says):
    items, _ = read_files(tmp_path, FOLDERS | files)
    assert any(says in item.problem for item in items)
    assert any(not item.problem for item in items)
    assert len({item.name for item in items}) == len(items)


def test_lines_that_name_nothing_or_something_twice_are_findings(tmp_path):
    lines = b"images/a.jpg masks/a.png\nimages/x.jpg masks/x.png\n../../etc/passwd masks/a.png\nimages/a.jpg masks/a.png\n"
    items, _ = read_files(
        tmp_path, FOLDERS | {"train.txt": lines, "test.txt": b"b\na\n"}
    )
    assert [(item.name, bool(item.problem)) for item in items] == [
        ("images/a.jpg", False),
        ("train.txt:2", True),
        ("train.txt:3", True),
        ("train.txt:4", True),
        ("images/b.jpg", False),
        ("test.txt:2", True),
    ]
    assert "is listed before, in train.txt" in items[3].problem


@pytest.mark.parametrize(
    ("files", "options", "says"),
    [
        (
            {"images/a.jpg": png(1, "JPEG"), "masks/b.png": mask()},
            {},
            "no pictures with masks",
        ),
        (FOLDERS, {"classes": "sky"}, "holds 1 names"),
        (FOLDERS, {"classes": "sky,sky"}, "twice"),
        (FOLDERS, {"classes": "sky,,road"}, "empty name"),
        (FOLDERS, {"ignore": "many"}, "mask values from 0 to 255"),
        (FOLDERS, {"ignore": "256"}, "mask values from 0 to 255"),
        (FOLDERS, {"ignore": "0,1"}, "one class only"),
        (FOLDERS, {"ignore": "0,1,2"}, "no class only"),
        (FOLDERS, {"klasses": "a,b"}, "did you mean 'classes'"),
    ],
)
def test_a_set_that_is_wrong_as_a_whole_is_refused(
    tmp_path, files, options, says
):
    with pytest.raises(InvalidInput, match=says):
        read_files(tmp_path, files, **options)


def test_the_check_counts_the_masks_that_hold_each_class(tmp_path):
    files = FOLDERS | {"masks/b.png": mask([[0, 2] * 3] * 5)}
    with open_source(make_folder(tmp_path / "set", files)) as source:
        declared = masks.labels(source, {"classes": "sky,road,car,cat"})
        items = masks.read(source, {"classes": "sky,road,car,cat"})
        index, report = examine(
            items,
            pixel_print,
            lambda done: None,
            labelled=False,
            declared=declared,
        )
    assert index.labels == ["sky", "road", "car", "cat"]
    assert report.classes == {"sky": 2, "road": 1, "car": 2, "cat": 0}


def test_camvid_as_it_is_published(shared):
    items, classes = read(shared("camvid_half"), ignore="11")
    assert [
        sum(item.split == split for item in items)
        for split in ("train", "val", "test")
    ] == [120, 30, 45]
    assert len(classes) == 11
    assert not [item.problem for item in items if item.problem]
