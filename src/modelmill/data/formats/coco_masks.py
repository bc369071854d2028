"""COCO's outlines as masks: each pixel has the class of the smallest object that covers it, or is
background.

Polygons are drawn in coordinates of the upright picture (EXIF applied). Crowds are
ignored; compressed run lengths are refused.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from PIL import Image, ImageDraw

from modelmill.data import mask_values
from modelmill.data.base import Content, Item, Source, check_options
from modelmill.data.formats import masks
from modelmill.data.formats._coco import (
    Document,
    annotation_files,
    is_json,
    places_of,
    read_document,
    split_in,
    unique_items,
)
from modelmill.data.magic import kind_of_name
from modelmill.data.names import base_of, folder_of, shown
from modelmill.errors import InvalidInput, MillError

INPUT = "image"
TARGET = "mask"
SUMMARY = "COCO: instances_train.json and the like with outlines, beside folders of pictures"
OPTIONS = {
    "annotations": "which JSON files, as a part of their names, e.g. instances; otherwise all "
    "that hold outlines"
}
RANK = 1

BACKGROUND = "background"
MAX_COORDINATE = float(1 << 20)
"""Coordinates of outlines are clipped to this many pixels."""
Size = tuple[int, int]


class Outline(msgspec.Struct):
    """An object of a picture; its outline is parsed when it is drawn."""

    image_id: int | str
    category_id: int | str
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    iscrowd: Any = 0


def detect(source: Source) -> bool:
    """Whether there is JSON beside pictures, and no folder of masks."""
    pictures = any(kind_of_name(name) for name in source.names)
    return (
        pictures
        and any(map(is_json, source.names))
        and not masks.detect(source)
    )


def labels(source: Source, options: Mapping[str, str]) -> list[str]:
    """Background, then the categories in the order of the files."""
    return _classes(list(_documents(source, options).values()))


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All pictures that a file lists, with their masks as PNG; raises `InvalidInput` for a file
    that is not COCO's.
    """
    documents = _documents(source, options)
    classes = _classes(list(documents.values()))
    by_path_end = _by_path_end(source)
    seen: set[str] = set()
    for file, document in documents.items():
        yield from unique_items(
            file, _items(source, by_path_end, file, document, classes), seen
        )


def _documents(
    source: Source, options: Mapping[str, str]
) -> dict[str, Document[Outline]]:
    check_options(options, OPTIONS)
    return {
        name: read_document(source, name, Outline)
        for name in annotation_files(source, options.get("annotations", ""))
    }


def _classes(documents: list[Document[Outline]]) -> list[str]:
    names = dict.fromkeys(
        [
            BACKGROUND,
            *(
                category.name
                for file in documents
                for category in file.categories
            ),
        ]
    )
    if not 2 <= len(names) <= mask_values.IGNORED:
        raise InvalidInput(
            f"the files list {len(names) - 1} categories; "
            f"1 to {mask_values.IGNORED - 1} are possible"
        )
    return list(names)


def _by_path_end(source: Source) -> dict[str, list[str]]:
    """The pictures of a source by each end of their path."""
    result: dict[str, list[str]] = defaultdict(list)
    for name in source.names:
        if kind_of_name(name):
            parts = name.split("/")
            for at in range(len(parts)):
                result["/".join(parts[at:])].append(name)
    return result


def _picture_of(
    by_path_end: Mapping[str, list[str]], file: str, path: str
) -> str:
    """The picture that a file name stands for; raises `InvalidInput` for none or several."""
    beside, path = places_of(path, file)
    for end in (beside, path, base_of(path)):
        pictures = by_path_end.get(end, [])
        if end in pictures:
            return end
        if pictures:
            return _only(pictures, split_in(file))
    raise InvalidInput("there is no such picture")


def _only(pictures: list[str], split: str | None) -> str:
    """The only picture, or the only one in a folder of a split."""
    if len(pictures) == 1:
        return pictures[0]
    near = [name for name in pictures if split_in(folder_of(name)) == split]
    if len(near) != 1:
        raise InvalidInput(
            f"several pictures are named so: {', '.join(map(shown, pictures[:3]))}"
        )
    return near[0]


def _items(
    source: Source,
    by_path_end: Mapping[str, list[str]],
    file: str,
    document: Document[Outline],
    classes: list[str],
) -> Iterator[Item]:
    number = {
        category.id: classes.index(category.name)
        for category in document.categories
    }
    objects = document.objects()
    split = split_in(file)
    for picture in document.images:
        try:
            name = _picture_of(by_path_end, file, picture.file_name)
        except MillError as error:
            item_name = f"{file}:{picture.file_name}"
            yield Item(item_name, "", b"", split, error.message)
            continue
        outlines = objects.get(picture.id, [])
        read = functools.partial(_content, source, name, outlines, number)
        yield Item.later(name, "", split, read)


def _content(
    source: Source,
    name: str,
    objects: list[Outline],
    number: Mapping[int | str, int],
) -> Content:
    data = source.read(name)
    size = mask_values.upright_size(data)
    return Content(data, _draw_mask(objects, number, size) if size else b"")


def _draw_mask(
    objects: list[Outline], number: Mapping[int | str, int], size: Size
) -> bytes:
    """A mask of these objects as a PNG, large ones first; raises `InvalidInput` for a malformed
    outline.
    """
    if size[0] * size[1] > mask_values.MAX_PIXELS:
        raise InvalidInput(
            f"it has {size[0] * size[1]:,} pixels; at most {mask_values.MAX_PIXELS:,}"
        )
    areas = [_area_of(outline, number, size) for outline in objects]
    mask = np.zeros(size, np.uint8)
    for area in sorted(areas, key=lambda one: -one.pixels):
        bits = np.unpackbits(area.bits, count=mask.size)
        mask[bits.reshape(size).astype(bool)] = area.value
    return mask_values.to_png(mask)


class _Area(NamedTuple):
    """An object's value in the mask, the number of its pixels, and the pixels as packed bits."""

    value: int
    pixels: int
    bits: np.ndarray[Any, np.dtype[np.uint8]]


def _area_of(
    outline: Outline, number: Mapping[int | str, int], size: Size
) -> _Area:
    if outline.category_id not in number:
        raise InvalidInput(
            f"has an outline of the category {shown(str(outline.category_id), 20)}, "
            "which is not listed"
        )
    inside = _pixels_of(_parsed(outline.segmentation), size)
    value = (
        mask_values.IGNORED if outline.iscrowd else number[outline.category_id]
    )
    return _Area(value, int(np.count_nonzero(inside)), np.packbits(inside))


def _parsed(text: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(
            f"has an outline that can't be read: {str(error)[:80]}"
        ) from error


def _pixels_of(outline: Any, size: Size) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The pixels of an object, [H, W]."""
    if isinstance(outline, dict):
        return _run_lengths(outline, size)
    if not isinstance(outline, list) or not outline:
        raise InvalidInput(
            "has an object without an outline (segmentation): boxes alone make no mask"
        )
    image = Image.new("1", (size[1], size[0]))
    for ring in outline:
        _draw_polygon(image, ring)
    return np.asarray(image)


def _draw_polygon(image: Image.Image, ring: Any) -> None:
    """Raises `InvalidInput` for what is no list of corners."""
    try:
        flat = [
            min(max(float(value), -MAX_COORDINATE), MAX_COORDINATE)
            for value in ring
        ]
        corners = list(zip(flat[::2], flat[1::2], strict=True))
        ImageDraw.Draw(image).polygon(corners, fill=1)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(
            "has an outline that is not a list of x, y, x, y, ..."
        ) from error


def _run_lengths(
    outline: Mapping[str, Any], size: Size
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The pixels of COCO's uncompressed RLE: run lengths down the columns, outside and inside in
    turns.
    """
    counts: Any = outline.get("counts")
    if isinstance(counts, str):
        raise InvalidInput(
            "has a compressed run-length outline: write it as a list of counts, or as polygons"
        )
    height, width = size
    if outline.get("size") != list(size) or not _add_up(counts, height * width):
        raise InvalidInput(
            f"has a run-length outline that is not of {width}x{height} pixels, as the picture is"
        )
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.asarray(inside.reshape(width, height).T)


def _add_up(counts: Any, total: int) -> bool:
    """Whether these are counts of so many pixels in all."""
    are_counts = isinstance(counts, list) and all(
        isinstance(count, int) and 0 <= count <= 1 << 31 for count in counts
    )
    return are_counts and sum(counts) == total
