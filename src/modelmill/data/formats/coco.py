"""COCO: JSON files of images, annotations and categories beside folders of pictures.

A bbox is x, y, width and height from 0, in coordinates of the upright picture (EXIF applied).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from modelmill.data.base import Box, Item, Source, check_options, split_of
from modelmill.data.formats._boxes import box_in, is_picture, main_label, size_of
from modelmill.data.names import shown
from modelmill.errors import InvalidInput, MillError

INPUT = "image"
TARGET = "boxes"
SUMMARY = "COCO: instances_train.json, instances_val.json and the like, beside folders of pictures"
OPTIONS = {"annotations": "which JSON files, as a part of their names, e.g. instances; otherwise all that hold boxes"}
RANK = 2

JSON_BYTES = 1 << 30
WORD = re.compile(r"[a-z]+")


class Image(msgspec.Struct):
    """A picture as a file describes it."""

    id: int | str
    file_name: str
    width: Any = None
    height: Any = None


class Annotation(msgspec.Struct):
    """An object of a picture; its outline is not read."""

    image_id: int | str
    category_id: int | str = ""
    bbox: Any = None
    iscrowd: Any = 0


class Category(msgspec.Struct):
    """A class; the ids may have gaps."""

    id: int | str
    name: str


class Document(msgspec.Struct):
    """What is read of a file."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


def detect(source: Source) -> bool:
    """Whether there is JSON beside pictures: `read` says what is wrong with it."""
    pictures = any(is_picture(name) for name in source.names)
    return pictures and any(name.lower().endswith(".json") for name in source.names)


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All pictures that a file lists, in its order, then those that none lists, with that as their problem.

    Raises `InvalidInput` when no JSON file holds boxes, or one is damaged.
    """
    check_options(options, OPTIONS)
    places = _Places(source)
    seen: set[str] = set()
    for name in _chosen(source, options.get("annotations", "")):
        document = _document(source, name)
        for number, item in enumerate(_items(source, places, name, document)):
            if item.name in seen:
                item = Item(f"{name}#{number}", "", b"", None, f"lists '{item.name}' a second time")
            seen.add(item.name)
            yield item
    for name in places.pictures:
        if name not in seen:
            yield Item(name, "", b"", None, "is in no JSON file")


def _chosen(source: Source, wanted: str) -> list[str]:
    """The files of boxes: those asked for, or named `instances`, or all."""
    every = [name for name in source.names if name.lower().endswith(".json") and wanted in name]
    if not every:
        asked = f" with '{shown(wanted, 40)}' in its name" if wanted else ""
        raise InvalidInput(f"'{source.title}' has no JSON file{asked}: put instances_train.json beside the pictures")
    usual = [name for name in every if "instances" in name.rpartition("/")[2]]
    return every if wanted else usual or every


def _document(source: Source, name: str) -> Document:
    """A file; raises `InvalidInput` when it is not COCO's."""
    try:
        return msgspec.json.decode(source.read(name, JSON_BYTES), type=Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(
            f"'{name}' is not COCO's JSON (an object of images, annotations and categories): {str(error)[:160]}"
        ) from error


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
            split = _split(json)
            near = [name for name in ends or found if split and split == _split(name.rpartition("/")[0])]
            found = near if len(near) == 1 else ends or found
        if len(found) != 1:
            said = f"several pictures are named so: {', '.join(found[:3])}" if found else "there is no such picture"
            raise InvalidInput(said)
        return found[0]


def _split(path: str) -> str | None:
    """The split that a word of a path names, such as instances_val2017.json; none where several do."""
    words = WORD.findall(path.lower().rpartition(".")[0] if path.lower().endswith(".json") else path.lower())
    found = {split for word in words if (split := split_of(word))}
    return found.pop() if len(found) == 1 else None


def _items(source: Source, places: _Places, json: str, document: Document) -> Iterator[Item]:
    names = {category.id: category.name for category in document.categories}
    objects: dict[int | str, list[Annotation]] = defaultdict(list)
    for one in document.annotations:
        objects[one.image_id].append(one)
    split = _split(json)
    for image in document.images:
        name = ""
        try:
            name = places.find(image.file_name, json)
            size = size_of(image.width, image.height)
            boxes = [_box(one, names, size) for one in objects.get(image.id, [])]
            yield Item(name, main_label(boxes), source.read(name), split, target=boxes)
        except MillError as error:
            yield Item(name or f"{json}:{image.file_name}", "", b"", split, error.message)


def _box(one: Annotation, names: dict[int | str, str], size: tuple[float, float] | None) -> Box:
    """Raises `InvalidInput` for a box that is none, or of no known class."""
    label = names.get(one.category_id, "")
    if not label:
        raise InvalidInput(f"has a box of the category {shown(str(one.category_id), 20)}, which is not listed")
    try:
        x, y, width, height = (float(value) for value in one.bbox)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"has an object '{shown(label, 40)}' without a bbox of four numbers") from error
    return box_in(label, (x, y, x + width, y + height), size, bool(one.iscrowd))
