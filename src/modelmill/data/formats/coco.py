"""COCO: JSON files of images, annotations and categories beside folders of pictures.

A bbox is x, y, width and height from 0, in coordinates of the upright picture (EXIF applied).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from modelmill.data.base import Box, Item, Source, check_options
from modelmill.data.formats._boxes import box_in, is_picture, main_label, size_of
from modelmill.data.formats._coco import (
    Document,
    chosen,
    document,
    each_once,
    is_json,
    split_in,
)
from modelmill.data.names import shown
from modelmill.errors import InvalidInput, MillError

INPUT = "image"
TARGET = "boxes"
SUMMARY = "COCO: instances_train.json, instances_val.json and the like, beside folders of pictures"
OPTIONS = {
    "annotations": "which JSON files, as a part of their names, e.g. instances; otherwise all "
    "that hold boxes"
}
RANK = 2


class Annotation(msgspec.Struct):
    """An object of a picture; its outline is not read."""

    image_id: int | str
    category_id: int | str = ""
    bbox: Any = None
    iscrowd: Any = 0


def detect(source: Source) -> bool:
    """Whether there is JSON beside pictures: `read` says what is wrong with it."""
    pictures = any(is_picture(name) for name in source.names)
    return pictures and any(map(is_json, source.names))


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All pictures that a file lists, in its order, then those that none lists, with that as their
    problem.

    Raises `InvalidInput` when no JSON file holds boxes, or one is damaged.
    """
    check_options(options, OPTIONS)
    places = _Places(source)
    seen: set[str] = set()
    for name in chosen(source, options.get("annotations", "")):
        yield from each_once(
            name, _items(source, places, name, document(source, name, Annotation)), seen
        )
    for name in places.pictures:
        if name not in seen:
            yield Item(name, "", b"", None, "is in no JSON file")


class _Places:
    """The pictures of a source by their own name."""

    def __init__(self, source: Source) -> None:
        self.pictures = [name for name in source.names if is_picture(name)]
        self._known = frozenset(self.pictures)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for name in self.pictures:
            self._by_name[name.rpartition("/")[2]].append(name)

    def find(self, file_name: str, json: str) -> str:
        """The picture that a file means; raises `InvalidInput` when there is none, or several."""
        path = file_name.replace("\\", "/").removeprefix("./")
        beside = f"{json.rpartition('/')[0]}/{path}".lstrip("/")
        for exact in (beside, path):
            if exact in self._known:
                return exact
        found = self._by_name.get(path.rpartition("/")[2], [])
        if len(found) > 1:
            ends = [name for name in found if name.endswith(f"/{path}")]
            split = split_in(json)
            near = [
                name
                for name in ends or found
                if split and split == split_in(name.rpartition("/")[0])
            ]
            found = near if len(near) == 1 else ends or found
        if len(found) != 1:
            said = (
                f"several pictures are named so: {', '.join(found[:3])}"
                if found
                else "there is no such picture"
            )
            raise InvalidInput(said)
        return found[0]


def _items(
    source: Source, places: _Places, json: str, said: Document[Annotation]
) -> Iterator[Item]:
    names = {category.id: category.name for category in said.categories}
    objects = said.objects()
    split = split_in(json)
    for image in said.images:
        name = ""
        try:
            name = places.find(image.file_name, json)
            size = size_of(image.width, image.height)
            boxes = [_box(one, names, size) for one in objects.get(image.id, [])]
            yield source.item(name, main_label(boxes), split, boxes)
        except MillError as error:
            yield Item(
                name or f"{json}:{image.file_name}", "", b"", split, error.message
            )


def _box(
    one: Annotation, names: dict[int | str, str], size: tuple[float, float] | None
) -> Box:
    """Raises `InvalidInput` for a box that is none, or of no known class."""
    label = names.get(one.category_id, "")
    if not label:
        raise InvalidInput(
            f"has a box of the category {shown(str(one.category_id), 20)}, which is not listed"
        )
    try:
        x, y, width, height = (float(value) for value in one.bbox)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"has an object '{shown(label, 40)}' without a bbox of four numbers"
        ) from error
    return box_in(label, (x, y, x + width, y + height), size, bool(one.iscrowd))
