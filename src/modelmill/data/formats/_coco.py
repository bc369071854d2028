"""Shared by the formats of COCO's JSON: which files are read, and their content."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from modelmill.data.base import Item, Source
from modelmill.data.names import base_of, folder_of, only_split, shown
from modelmill.errors import InvalidInput

JSON_BYTES = 1 << 30
WORD = re.compile(r"[a-z]+")


class Annotated(Protocol):
    """An object of a picture."""

    image_id: int | str


A = TypeVar("A", bound=Annotated)


class Picture(msgspec.Struct):
    """A picture as a file describes it."""

    id: int | str
    file_name: str
    width: Any = None
    height: Any = None


class Category(msgspec.Struct):
    """A class; the ids may have gaps."""

    id: int | str
    name: str


class Document(msgspec.Struct, Generic[A]):
    """The parts of a file that are read."""

    images: list[Picture]
    annotations: list[A]
    categories: list[Category]

    def objects(self) -> dict[int | str, list[A]]:
        """The annotations by the id of their picture."""
        by_picture: dict[int | str, list[A]] = defaultdict(list)
        for annotation in self.annotations:
            by_picture[annotation.image_id].append(annotation)
        return by_picture


def is_json(name: str) -> bool:
    """Whether a name is that of a JSON file."""
    return name.lower().endswith(".json")


def annotation_files(source: Source, wanted: str) -> list[str]:
    """The JSON files with `wanted` in their names, else those named `instances`, else all; raises
    `InvalidInput` when there are none.
    """
    files = [name for name in source.names if is_json(name) and wanted in name]
    if not files:
        raise _no_json(source, wanted)
    instances = [name for name in files if "instances" in base_of(name)]
    return files if wanted else instances or files


def _no_json(source: Source, wanted: str) -> InvalidInput:
    named = f" with '{shown(wanted, 40)}' in its name" if wanted else ""
    return InvalidInput(
        f"'{source.title}' has no JSON file{named}: put instances_train.json beside the "
        "pictures"
    )


def read_document(source: Source, name: str, kind: type[A]) -> Document[A]:
    """A file with annotations of type `kind`; raises `InvalidInput` when it is not COCO's."""
    try:
        data = source.read(name, JSON_BYTES)
        return msgspec.json.decode(data, type=Document[kind])  # type: ignore[valid-type]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(
            f"'{name}' is not COCO's JSON (an object of images, annotations and categories): "
            f"{str(error)[:160]}"
        ) from error


def split_in(path: str) -> str | None:
    """The split that a word of a path names, such as instances_val2017.json; None where none or
    several do.
    """
    return only_split(WORD.findall(path.lower().removesuffix(".json")))


def unique_items(
    file: str, items: Iterable[Item], seen: set[str]
) -> Iterator[Item]:
    """The items of a file, those already in `seen` as problems; adds their names to it."""
    for number, item in enumerate(items):
        if item.name in seen:
            problem = f"lists '{shown(item.name)}' a second time"
            item = Item(f"{file}#{number}", "", b"", None, problem)
        seen.add(item.name)
        yield item


def places_of(path: str, file: str) -> tuple[str, str]:
    """Where a picture may lie that a file calls by a path: beside the file, or from the top."""
    path = path.replace("\\", "/").removeprefix("./")
    return f"{folder_of(file)}/{path}".lstrip("/"), path
