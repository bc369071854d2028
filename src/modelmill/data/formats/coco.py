"""COCO: JSON files of images, annotations and categories beside folders of pictures.

A bbox is x, y, width and height from 0, in coordinates of the upright picture (EXIF applied).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from modelmill.data.base import Box, Item, Source, check_options
from modelmill.data.formats._boxes import (
    Corners,
    clipped_box,
    is_picture,
    main_label,
    size_of,
)
from modelmill.data.formats._coco import (
    Document,
    Picture,
    annotation_files,
    is_json,
    places_of,
    read_document,
    split_in,
    unique_items,
)
from modelmill.data.names import base_of, folder_of, shown
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
    """All pictures that a file lists, in its order, then those that no file lists, as problems.

    Raises `InvalidInput` when no JSON file holds boxes, or one is damaged.
    """
    check_options(options, OPTIONS)
    pictures = _Pictures(source)
    seen: set[str] = set()
    for name in annotation_files(source, options.get("annotations", "")):
        yield from unique_items(
            name,
            _items(
                source, pictures, name, read_document(source, name, Annotation)
            ),
            seen,
        )
    for name in pictures.pictures:
        if name not in seen:
            yield Item(name, "", b"", None, "is in no JSON file")


class _Pictures:
    """The pictures of a source, found by path or name."""

    def __init__(self, source: Source) -> None:
        self.pictures = [name for name in source.names if is_picture(name)]
        self._names = frozenset(self.pictures)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for name in self.pictures:
            self._by_name[base_of(name)].append(name)

    def find(self, file_name: str, json: str) -> str:
        """The picture that a file name stands for; raises `InvalidInput` for none or several."""
        places = places_of(file_name, json)
        for exact in places:
            if exact in self._names:
                return exact
        path = places[-1]
        candidates = self._by_name.get(base_of(path), [])
        if not candidates:
            raise InvalidInput("there is no such picture")
        return _only(_nearest(candidates, path, split_in(json)))


def _nearest(candidates: list[str], path: str, split: str | None) -> list[str]:
    """The pictures of one name whose path ends like that of a file, or the only one of these in its
    split.
    """
    if len(candidates) == 1:
        return candidates
    by_path = [name for name in candidates if name.endswith(f"/{path}")]
    nearest = by_path or candidates
    in_split = [name for name in nearest if split_in(folder_of(name)) == split]
    return in_split if split and len(in_split) == 1 else nearest


def _only(candidates: list[str]) -> str:
    if len(candidates) > 1:
        raise InvalidInput(
            f"several pictures are named so: {', '.join(candidates[:3])}"
        )
    return candidates[0]


def _items(
    source: Source,
    pictures: _Pictures,
    json: str,
    document: Document[Annotation],
) -> Iterator[Item]:
    names = {category.id: category.name for category in document.categories}
    objects = document.objects()
    split = split_in(json)
    for image in document.images:
        name = ""
        try:
            name = pictures.find(image.file_name, json)
            boxes = _boxes(image, objects.get(image.id, []), names)
            yield source.item(name, main_label(boxes), split, boxes)
        except MillError as error:
            item_name = name or f"{json}:{image.file_name}"
            yield Item(item_name, "", b"", split, error.message)


def _boxes(
    picture: Picture, objects: list[Annotation], names: dict[int | str, str]
) -> list[Box]:
    size = size_of(picture.width, picture.height)
    return [_box(annotation, names, size) for annotation in objects]


def _box(
    annotation: Annotation,
    names: dict[int | str, str],
    size: tuple[float, float] | None,
) -> Box:
    """Raises `InvalidInput` for a malformed box, or one of an unlisted category."""
    label = names.get(annotation.category_id, "")
    if not label:
        raise InvalidInput(
            f"has a box of the category {shown(str(annotation.category_id), 20)}, "
            "which is not listed"
        )
    corners = _corners(label, annotation.bbox)
    return clipped_box(label, corners, size, bool(annotation.iscrowd))


def _corners(label: str, bbox: Any) -> Corners:
    """The corners of a box that is given by one corner, width and height."""
    try:
        x, y, width, height = map(float, bbox)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"has an object '{shown(label, 40)}' without a bbox of four numbers"
        ) from error
    return x, y, x + width, y + height
