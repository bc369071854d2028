"""VOC and COCO: the same boxes from either, and words for what is wrong."""

import json
import zipfile

import numpy as np
import pytest

from modelmill.data.base import Box, open_source
from modelmill.data.check import examine
from modelmill.data.formats import coco, detect, voc
from modelmill.errors import InvalidInput, MillError
from modelmill.tasks.base import task_named
from tests.helpers.datasets import voc_picture
from tests.helpers.pictures import png

TASK = task_named("object-detection")
FRAME = "<annotation><size><width>40</width><height>30</height></size>{}</annotation>"
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def picture(number=0):
    return png(
        np.random.default_rng(number).integers(0, 255, (30, 40, 3), np.uint8)
    )


def items_of(format, folder, **options):
    with open_source(folder) as source:
        return [item.read() for item in format.read(source, options)]


def write(root, name, data):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def a_voc(root, xml, name="1"):
    write(root, f"JPEGImages/{name}.png", picture())
    write(root, f"Annotations/{name}.xml", xml)
    return root


def a_coco(
    root,
    annotations=(),
    images=None,
    categories=None,
    name="instances_train.json",
):
    document = {
        "info": {},
        "images": [{"id": 1, "file_name": "1.png", "width": 40, "height": 30}]
        if images is None
        else images,
        "annotations": list(annotations),
        "categories": [{"id": 7, "name": "cup"}, {"id": 90, "name": "pot"}]
        if categories is None
        else categories,
    }
    write(root, "images/1.png", picture())
    write(root, name, json.dumps(document))
    return root


def an_object(bbox, category=7, image=1, **more):
    return {
        "id": 1,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": 1,
        "iscrowd": 0,
        **more,
    }


# ---- VOC


def test_voc_counts_from_one_and_includes_the_far_corner(tmp_path):
    (item,) = items_of(
        voc, a_voc(tmp_path, FRAME.format(OBJECT.format("cup", 1, 11, 40, 30)))
    )
    assert item.target == [Box("cup", 0, 10, 40, 30)]
    assert (item.name, item.label, item.split, item.problem) == (
        "JPEGImages/1.png",
        "cup",
        None,
        "",
    )
    assert item.data == picture()


def test_voc_cuts_at_the_border_and_keeps_pictures_without_objects(tmp_path):
    a_voc(tmp_path, FRAME.format(OBJECT.format("cup", 0, 0, 99, 20.5)), "1")
    a_voc(tmp_path, FRAME.format(""), "2")
    one, two = items_of(voc, tmp_path)
    assert one.target == [Box("cup", 0, 0, 40, 20.5)]
    assert (two.target, two.label, two.problem) == ([], "", "")


def test_voc_difficult_objects_are_ignored_unless_they_are_wanted(tmp_path):
    hard = OBJECT.format("cup", 1, 1, 9, 9).replace(
        "<bndbox>", "<difficult>1</difficult><bndbox>"
    )
    a_voc(tmp_path, FRAME.format(hard + OBJECT.format("pot", 1, 1, 9, 9)))
    (item,) = items_of(voc, tmp_path)
    assert [(box.label, box.ignored) for box in item.target] == [
        ("cup", True),
        ("pot", False),
    ]
    assert item.label == "pot"
    (item,) = items_of(voc, tmp_path, difficult="use")
    assert not any(box.ignored for box in item.target)
    with pytest.raises(
        InvalidInput, match="difficult is 'ignore' or 'use', not 'maybe'"
    ):
        items_of(voc, tmp_path, difficult="maybe")


def test_voc_parts_of_an_object_are_not_objects(tmp_path):
    part = "<part><name>handle</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    a_voc(
        tmp_path,
        FRAME.format(
            OBJECT.format("cup", 1, 1, 9, 9).replace(
                "</object>", f"{part}</object>"
            )
        ),
    )
    (item,) = items_of(voc, tmp_path)
    assert item.target == [Box("cup", 0, 0, 9, 9)]


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        ("", "is no readable XML"),
        ("<annotation>", "is no readable XML"),
        ("\x00\x01", "is no readable XML"),
        (
            "<?xml version='1.0' encoding='no-such'?><annotation/>",
            "is no readable XML",
        ),
        (
            "<!DOCTYPE a [<!ENTITY x 'y'>]><annotation>&x;</annotation>",
            "declares entities",
        ),
        (
            "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><annotation>&x;</annotation>",
            "declares entities",
        ),
        (
            FRAME.format("<object><name>cup</name></object>"),
            "object 'cup' without a bndbox of four numbers",
        ),
        (
            FRAME.format(OBJECT.format("cup", "a", 1, 2, 2)),
            "object 'cup' without a bndbox of four numbers",
        ),
        (FRAME.format(OBJECT.format("", 1, 1, 2, 2)), "a box without a class"),
        (
            FRAME.format(OBJECT.format("cup", 9, 9, 2, 20)),
            "a box of 'cup' without area: 8, 8, 2, 20",
        ),
        (
            FRAME.format(OBJECT.format("cup", 50, 9, 60, 20)),
            "outside the picture of 40x30 pixels",
        ),
        (
            FRAME.format(OBJECT.format("cup", "nan", 9, 60, 20)),
            "no sensible numbers",
        ),
        (
            FRAME.format(OBJECT.format("cup", "-inf", 9, "1e400", 20)),
            "no sensible numbers",
        ),
        (
            FRAME.format("").replace("40", "-40"),
            "declares a senseless size: -40 x 30",
        ),
        (
            FRAME.format("").replace("40", "wide"),
            "declares a senseless size: wide x 30",
        ),
    ],
)
def test_voc_says_what_is_wrong_with_a_file(tmp_path, xml, said):
    for item in items_of(voc, a_voc(tmp_path, xml)):
        assert item.problem
        if said in item.problem:
            return
    pytest.fail(f"nothing says: {said}")


def test_voc_entities_can_not_fill_the_memory(tmp_path):
    levels = "".join(
        f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 12)
    )
    bomb = (
        "<!DOCTYPE a [<!ENTITY e0 "
        f"'ha'>{levels}]><annotation><filename>&e11;</filename></annotation>"
    )
    assert (
        "declares entities" in items_of(voc, a_voc(tmp_path, bomb))[0].problem
    )


def test_voc_deep_nesting_is_survived(tmp_path):
    deep = "<a>" * 200_000 + "</a>" * 200_000
    (item,) = items_of(voc, a_voc(tmp_path, f"<annotation>{deep}</annotation>"))
    assert item.target == []


def test_voc_lists_declare_splits(tmp_path):
    for name in "abcd":
        a_voc(tmp_path, FRAME.format(""), name)
    write(tmp_path, "ImageSets/Main/trainval.txt", "a\nb\nc\n")
    write(tmp_path, "ImageSets/Main/val.txt", "b\n")
    write(tmp_path, "ImageSets/Main/test.txt", "d.png\r\n\n")
    write(tmp_path, "ImageSets/Main/cup_test.txt", "a -1\nb 1\n")
    assert [item.split for item in items_of(voc, tmp_path)] == [
        "train",
        "val",
        "train",
        "test",
    ]


def test_voc_beside_the_pictures_in_folders_of_splits(tmp_path):
    for split in ("train", "valid"):
        write(tmp_path, f"{split}/1.png", picture())
        write(
            tmp_path,
            f"{split}/1.xml",
            FRAME.format(OBJECT.format("cup", 1, 1, 9, 9)),
        )
    items = items_of(voc, tmp_path)
    assert [(item.name, item.split) for item in items] == [
        ("train/1.png", "train"),
        ("valid/1.png", "val"),
    ]


def test_voc_finds_the_picture_by_the_name_in_the_file_and_misses_none_in_silence(
    tmp_path,
):
    write(tmp_path, "JPEGImages/photo.png", picture())
    write(tmp_path, "JPEGImages/lonely.png", picture(1))
    write(
        tmp_path,
        "Annotations/0001.xml",
        "<annotation><filename>photo.png</filename></annotation>",
    )
    write(
        tmp_path,
        "Annotations/0002.xml",
        "<annotation><filename>photo.png</filename></annotation>",
    )
    write(
        tmp_path,
        "Annotations/0003.xml",
        "<annotation><filename>gone.png</filename></annotation>",
    )
    found = {item.name: item.problem for item in items_of(voc, tmp_path)}
    assert found == {
        "JPEGImages/photo.png": "",
        "Annotations/0002.xml": "is a second annotation of 'JPEGImages/photo.png'",
        "Annotations/0003.xml": "Annotations/0003.xml has no picture of its name",
        "JPEGImages/lonely.png": "has no XML file",
    }


def test_voc_without_xml_or_pictures_is_refused(tmp_path):
    write(tmp_path, "JPEGImages/1.png", picture())
    with pytest.raises(InvalidInput, match="has no XML files: lay them out as"):
        items_of(voc, tmp_path)


# ---- COCO


def test_coco_gives_the_same_boxes_as_voc(tmp_path):
    (from_voc,) = items_of(
        voc,
        a_voc(
            tmp_path / "voc", FRAME.format(OBJECT.format("pot", 5, 6, 20, 25))
        ),
    )
    (from_coco,) = items_of(
        coco, a_coco(tmp_path / "coco", [an_object([4, 5, 16, 20], 90)])
    )
    assert from_coco.target == from_voc.target == [Box("pot", 4, 5, 20, 25)]
    assert (from_coco.name, from_coco.split, from_coco.label) == (
        "images/1.png",
        "train",
        "pot",
    )


def test_coco_crowds_are_ignored_and_boxes_cut_at_the_border(tmp_path):
    crowd = an_object(
        [30, 20, 100, 100],
        iscrowd=1,
        segmentation={"counts": [1, 2], "size": [30, 40]},
    )
    (item,) = items_of(
        coco, a_coco(tmp_path, [crowd, an_object([-3, 2.5, 10, 10], 90)])
    )
    assert item.target == [
        Box("cup", 30, 20, 40, 30, ignored=True),
        Box("pot", 0, 2.5, 7, 12.5),
    ]
    assert item.label == "pot"


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (an_object([1, 2, 3]), "object 'cup' without a bbox of four numbers"),
        (an_object("abcd"), "object 'cup' without a bbox of four numbers"),
        (an_object(None), "object 'cup' without a bbox of four numbers"),
        (an_object([1, 2, 0, 3]), "a box of 'cup' without area"),
        (an_object([1, 2, -5, 3]), "a box of 'cup' without area"),
        (an_object([100, 2, 5, 3]), "outside the picture of 40x30 pixels"),
        (an_object([1, 2, 1e300, 3]), "no sensible numbers"),
        (
            an_object([1, 2, 5, 3], 8),
            "a box of the category 8, which is not listed",
        ),
    ],
)
def test_coco_says_what_is_wrong_with_a_box(tmp_path, annotation, said):
    (item,) = items_of(coco, a_coco(tmp_path, [annotation]))
    assert said in item.problem


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"images": [], "annotations": 5, "categories": []}',
        "\xff",
        "[" * 9999,
    ],
)
def test_coco_json_of_another_shape_is_refused_by_name(tmp_path, text):
    a_coco(tmp_path, name="other.txt")
    write(tmp_path, "instances_train.json", text)
    with pytest.raises(
        InvalidInput, match=r"'instances_train.json' is not COCO's JSON"
    ):
        items_of(coco, tmp_path)


def test_coco_takes_instances_before_other_files_and_splits_from_names(
    tmp_path,
):
    for number, split in enumerate(("train2017", "val2017"), 1):
        write(tmp_path, f"{split}/1.png", picture(number))
        image = {"id": number, "file_name": "1.png", "width": 40, "height": 30}
        a_coco(
            tmp_path,
            [an_object([1, 1, 5, 5], image=number)],
            [image],
            name=f"annotations/instances_{split}.json",
        )
    write(tmp_path, "annotations/captions_train2017.json", '{"images": []}')
    (tmp_path / "images/1.png").unlink()
    items = items_of(coco, tmp_path)
    assert [(item.name, item.split, item.problem) for item in items] == [
        ("train2017/1.png", "train", ""),
        ("val2017/1.png", "val", ""),
    ]
    chosen = items_of(coco, tmp_path, annotations="instances_val")
    assert [item.problem for item in chosen] == ["", "is in no JSON file"]
    with pytest.raises(
        InvalidInput, match="no JSON file with 'nothing' in its name"
    ):
        items_of(coco, tmp_path, annotations="nothing")


def test_coco_pictures_that_are_missing_repeated_or_unlisted_are_findings(
    tmp_path,
):
    images = [
        {"id": number, "file_name": name}
        for number, name in enumerate(["1.png", "gone.png", "1.png"])
    ]
    a_coco(tmp_path, images=images)
    write(tmp_path, "images/extra.png", picture(5))
    problems = {item.name: item.problem for item in items_of(coco, tmp_path)}
    assert problems == {
        "images/1.png": "",
        "instances_train.json:gone.png": "there is no such picture",
        "instances_train.json#2": "lists 'images/1.png' a second time",
        "images/extra.png": "is in no JSON file",
    }


def test_coco_never_leaves_the_folder(tmp_path):
    write(tmp_path, "secret.png", picture())
    images = [
        {"id": 1, "file_name": "../secret.png"},
        {"id": 2, "file_name": "/etc/passwd"},
    ]
    items = items_of(coco, a_coco(tmp_path / "data", images=images))
    assert [item.problem for item in items] == [
        "there is no such picture"
    ] * 2 + ["is in no JSON file"]


# ---- both


def test_a_zip_with_both_is_read_as_voc_and_as_coco_when_that_is_said(tmp_path):
    root = tmp_path / "set"
    voc_picture(root, "1", picture(), (40, 30), [("cup", 1, 1, 9, 9)])
    a_coco(root / "coco", [an_object([1, 1, 8, 8])])
    (root / "coco/images/1.png").unlink()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in root.rglob("*.*"):
            archive.write(path, f"set/{path.relative_to(root)}")
    with open_source(tmp_path / "set.zip") as source:
        assert detect(source, TASK) == "voc"
    one, two = (
        items_of(format, tmp_path / "set.zip")[0] for format in (voc, coco)
    )
    assert (
        (one.name, one.target)
        == (two.name, two.target)
        == ("JPEGImages/1.png", [Box("cup", 1, 1, 9, 9)])
    )


def test_the_check_counts_boxes_by_class(tmp_path):
    for number in range(12):
        a_voc(
            tmp_path,
            FRAME.format(OBJECT.format("cup", 1, 1, 9, 9) * 2),
            str(number),
        )
        write(tmp_path, f"JPEGImages/{number}.png", picture(number))
    with open_source(tmp_path) as source:
        items = voc.read(source, {})
        index, report = examine(
            items,
            lambda item: TASK.fingerprint(item.data),
            lambda _: None,
            labelled=False,
        )
    assert index.labels == ["cup"]
    assert report.classes == {"cup": 24}
    assert report.splits == {"train": 10, "val": 1, "test": 1}
    assert not report.findings


@pytest.mark.parametrize("format", [voc, coco])
def test_nothing_but_pictures_is_refused_in_words(tmp_path, format):
    write(tmp_path, "1.png", picture())
    with open_source(tmp_path) as source:
        assert not format.detect(source)
        with pytest.raises(MillError):
            list(format.read(source, {}))


def test_raccoons_have_the_same_boxes_in_both_formats_but_for_where_counting_begins(
    shared,
):
    path = shared("raccoon_voc")
    with open_source(path) as source:
        assert detect(source, TASK) == "voc"
    one, two = (
        {item.name: item for item in items_of(format, path)}
        for format in (voc, coco)
    )
    assert one.keys() == two.keys()
    assert sum(item.split == "train" for item in one.values()) == 160
    assert sum(len(item.target) for item in one.values()) == 217
    assert not any(item.problem for item in (*one.values(), *two.values()))
    for name, item in one.items():
        assert item.split == two[name].split
        for mine, other in zip(item.target, two[name].target, strict=True):
            assert (mine.xmax, mine.ymax) == (other.xmax, other.ymax)
            assert mine.xmin == max(
                0, other.xmin - 1
            )  # the JSON was converted without the step from 1 to 0


def test_nuts_have_boxes_of_three_kinds(shared):
    items = items_of(coco, shared("nuts_coco"))
    assert len(items) == 18
    assert {box.label for item in items for box in item.target} == {
        "date",
        "fig",
        "hazelnut",
    }
    assert not any(item.problem or item.split for item in items)
