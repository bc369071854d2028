"""What the formats of COCO's JSON share: which files are meant, what they hold, and whose picture
is listed twice.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from modelmill.data.base import Item, Source
from modelmill.data.names import shown, split_of
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
    """What is read of a file."""

    images: list[Picture]
    annotations: list[A]
    categories: list[Category]

    def objects(self) -> dict[int | str, list[A]]:
        """The annotations by the id of their picture."""
        found: dict[int | str, list[A]] = defaultdict(list)
        for one in self.annotations:
            found[one.image_id].append(one)
        return found


def is_json(name: str) -> bool:
    """Whether a name is that of a JSON file."""
    return name.lower().endswith(".json")


def chosen(source: Source, wanted: str) -> list[str]:
    """The files asked for, or named `instances`, or all; raises `InvalidInput` when there are
    none.
    """
    every = [name for name in source.names if is_json(name) and wanted in name]
    if not every:
        asked = f" with '{shown(wanted, 40)}' in its name" if wanted else ""
        raise InvalidInput(
            f"'{source.title}' has no JSON file{asked}: put instances_train.json beside the "
            "pictures"
        )
    usual = [name for name in every if "instances" in name.rpartition("/")[2]]
    return every if wanted else usual or every


def document(source: Source, name: str, kind: type[A]) -> Document[A]:
    """A file with annotations of a kind; raises `InvalidInput` when it is not COCO's."""
    try:
        return msgspec.json.decode(source.read(name, JSON_BYTES), type=Document[kind])  # type: ignore[valid-type]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(
            f"'{name}' is not COCO's JSON (an object of images, annotations and categories): "
            f"{str(error)[:160]}"
        ) from error


def split_in(path: str) -> str | None:
    """The split that a word of a path names, such as instances_val2017.json; none where several
    do.
    """
    words = WORD.findall(path.lower().removesuffix(".json"))
    found = {split for word in words if (split := split_of(word))}
    return found.pop() if len(found) == 1 else None


def each_once(file: str, items: Iterable[Item], seen: set[str]) -> Iterator[Item]:
    """The items of a file, those already `seen` as a problem; adds their names."""
    for number, item in enumerate(items):
        if item.name in seen:
            item = Item(
                f"{file}#{number}",
                "",
                b"",
                None,
                f"lists '{shown(item.name)}' a second time",
            )
        seen.add(item.name)
        yield item
