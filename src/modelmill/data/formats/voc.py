"""Pascal VOC: pictures in JPEGImages, an XML file for each in Annotations, splits in
ImageSets/Main.

VOC's corners are pixels counted from 1, the far ones included; a `Box` counts from 0 and excludes
the far ones: xmin and ymin lose 1, xmax and ymax stay. Boxes are in coordinates of the upright
picture (EXIF applied).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from modelmill.data.base import Box, Item, Source, check_options
from modelmill.data.formats._boxes import (
    Corners,
    clipped_box,
    is_picture,
    main_label,
    size_of,
    stem,
)
from modelmill.data.names import folder_of, shown, split_of, split_of_file
from modelmill.errors import InvalidInput, MillError

INPUT = "image"
TARGET = "boxes"
SUMMARY = (
    "Pascal VOC: JPEGImages and Annotations/*.xml, optionally ImageSets/Main/train.txt, "
    "val.txt, test.txt"
)
OPTIONS = {
    "difficult": "objects marked difficult: 'ignore' (neither trained on nor counted) or 'use'"
}
RANK = 3
"""Above COCO: a set that holds both was made with XML, from which JSON is converted."""

XML_BYTES = 4 << 20
LISTS = re.compile(r"(?:.*/)?ImageSets/(?:Main/)?(?P<split>[^/]+)\.txt")


def detect(source: Source) -> bool:
    """Whether there are XML files in a folder Annotations, or beside pictures of the same name."""
    pictures = {
        name.rpartition(".")[0] for name in source.names if is_picture(name)
    }
    return bool(pictures) and any(
        "Annotations" in name.split("/")[:-1] or name[:-4] in pictures
        for name in source.names
        if name.lower().endswith(".xml")
    )


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All pictures with an XML file, by its name, then those without one, as problems.

    Raises `InvalidInput` when there is no XML file or no picture.
    """
    check_options(options, OPTIONS)
    use_difficult = _uses_difficult(options)
    files = _AnnotatedFiles(source)
    seen: set[str] = set()
    for item in _annotated(source, files, use_difficult=use_difficult):
        seen.add(item.name)
        yield item
    for name in files.pictures:
        if name not in seen:
            yield Item(name, "", b"", None, "has no XML file")


def _annotated(
    source: Source, files: "_AnnotatedFiles", *, use_difficult: bool
) -> Iterator[Item]:
    """An item for each XML file; a second one of a picture is a problem."""
    splits, seen = _splits(source), set[str]()
    for annotation in files.annotations:
        item = _item(
            source, files, annotation, splits, use_difficult=use_difficult
        )
        if item.name in seen:
            problem = f"is a second annotation of '{item.name}'"
            item = Item(annotation, "", b"", None, problem)
        seen.add(item.name)
        yield item


def _uses_difficult(options: Mapping[str, str]) -> bool:
    difficult = options.get("difficult", "ignore")
    if difficult not in ("ignore", "use"):
        raise InvalidInput(
            f"difficult is 'ignore' or 'use', not '{shown(difficult, 40)}'"
        )
    return difficult == "use"


class _AnnotatedFiles:
    """The annotations of a source, and its pictures by stem; raises `InvalidInput` where it lacks
    either.
    """

    def __init__(self, source: Source) -> None:
        self.pictures = [name for name in source.names if is_picture(name)]
        self.annotations = [
            name for name in source.names if name.lower().endswith(".xml")
        ]
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in self.pictures:
            self._by_stem[stem(name)].append(name)
        self._check(source.title)

    def _check(self, title: str) -> None:
        if self.annotations and self.pictures:
            return
        missing = "pictures" if self.annotations else "XML files"
        raise InvalidInput(
            f"'{title}' has no {missing}: lay them out as JPEGImages/NAME.jpg and "
            "Annotations/NAME.xml"
        )

    def picture(self, annotation: str, filename: str) -> str:
        """The picture of an annotation: by the XML file's own name, or the `filename` in it.

        Raises `InvalidInput` when there is none, or several.
        """
        candidates = (
            self._by_stem.get(stem(annotation))
            or self._by_stem.get(stem(filename.replace("\\", "/")))
            or []
        )
        if not candidates:
            raise InvalidInput("has no picture of its name")
        if len(candidates) > 1:
            candidates = _beside(candidates, annotation, filename)
        if len(candidates) > 1:
            raise InvalidInput(
                f"has several pictures: {', '.join(candidates[:3])}"
            )
        return candidates[0]


def _beside(candidates: list[str], annotation: str, filename: str) -> list[str]:
    """The only picture beside an annotation, or the only one there of that file name; else all.

    VOCdevkit holds several years, and others keep a copy of the pictures in each split's folder.
    """
    folder = folder_of(annotation)
    root = folder.rpartition("Annotations")[0] or folder
    beside = [name for name in candidates if name.startswith(root)]
    exact = [name for name in beside if name.endswith(f"/{filename}")]
    return next(
        (names for names in (beside, exact) if len(names) == 1), candidates
    )


def _splits(source: Source) -> dict[str, str]:
    """The split of each stem that a list names; `trainval` trains where no other list says
    otherwise.
    """
    splits: dict[str, str] = {}
    for name, split in _lists(source):
        for line in source.read(name).decode("utf-8", "replace").splitlines():
            if words := line.split():
                splits[words[0]] = splits[stem(words[0])] = split
    return splits


def _lists(source: Source) -> list[tuple[str, str]]:
    """The lists with the split that each is for, `trainval` first: later ones overrule it.

    Lists of single classes (aeroplane_train.txt) repeat what the others say.
    """
    first: list[tuple[str, str]] = []
    rest: list[tuple[str, str]] = []
    for name in source.names:
        match = LISTS.fullmatch(name)
        word = match["split"] if match else ""
        if word == "trainval":
            first.append((name, "train"))
        elif split := split_of(word):
            rest.append((name, split))
    return first + rest


def _item(
    source: Source,
    files: _AnnotatedFiles,
    name: str,
    splits: dict[str, str],
    *,
    use_difficult: bool,
) -> Item:
    split = splits.get(stem(name))
    picture = ""
    try:
        root = parsed(source.read(name, XML_BYTES))
        picture = files.picture(name, _text(root, "filename"))
        split = _split_of_picture(picture, splits) or split
        boxes = _boxes(root, use_difficult=use_difficult)
        return source.item(picture, main_label(boxes), split, boxes)
    except MillError as error:
        problem = error.message if picture else f"{name} {error.message}"
        return Item(picture or name, "", b"", split, problem)


def _split_of_picture(picture: str, splits: dict[str, str]) -> str | None:
    """The split that a list names for a picture, or without lists its folders."""
    if splits:
        return splits.get(stem(picture))
    return split_of_file(picture)


def _boxes(root: Element, *, use_difficult: bool) -> list[Box]:
    """The boxes of all objects; raises `InvalidInput` for a malformed one."""
    size = size_of(_text(root, "size/width"), _text(root, "size/height"))
    return [
        _box(element, size, use_difficult=use_difficult)
        for element in root.iterfind("object")
    ]


def _box(
    element: Element, size: tuple[float, float] | None, *, use_difficult: bool
) -> Box:
    label = _text(element, "name")
    is_difficult = _text(element, "difficult").lower() in ("1", "true")
    corners = _corners(element, label)
    return clipped_box(label, corners, size, is_difficult and not use_difficult)


def _corners(element: Element, label: str) -> Corners:
    """The corners of an object, counted from 0."""
    try:
        xmin, ymin, xmax, ymax = (
            float(_text(element, f"bndbox/{side}"))
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError as error:
        raise InvalidInput(
            f"has an object '{shown(label, 40)}' without a bndbox of four numbers"
        ) from error
    return xmin - 1, ymin - 1, xmax, ymax


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def parsed(data: bytes) -> Element:
    """The root of an XML document; raises `InvalidInput` for one that is broken or declares
    entities.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = _refuse_entity
    parser.UnparsedEntityDeclHandler = _refuse_entity
    parser.ExternalEntityRefHandler = _refuse_entity
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise InvalidInput(f"is no readable XML: {str(error)[:120]}") from error


def _refuse_entity(*_: Any) -> int:
    """Expat alone would expand entities, and thereby let a small file fill the memory
    (CVE-2003-1564).
    """
    raise InvalidInput(
        "declares entities, which are not read: save it as plain XML"
    )
