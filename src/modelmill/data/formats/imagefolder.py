"""Pictures in folders: a folder for each class, below train, val and test folders or not."""

from collections.abc import Iterator, Mapping

from modelmill.data.base import Item, Source, check_options
from modelmill.data.formats._folders import split_and_label, splits_in
from modelmill.data.magic import BY_EXTENSION, NOT_PICTURES, extension
from modelmill.errors import InvalidInput

INPUT = "image"
SUMMARY = (
    "a folder of pictures for each class, optionally below train, val and test"
)
OPTIONS: dict[str, str] = {}
RANK = 1


def detect(source: Source) -> bool:
    """Whether there are picture files at all: `read` says what is wrong with their places."""
    return any(extension(name) in BY_EXTENSION for name in source.names)


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All files by name, as encoded bytes; raises `InvalidInput` when no folder names a class."""
    check_options(options, OPTIONS)
    splits = splits_in(source.names, _may_be_picture)
    places = {name: split_and_label(name, splits) for name in source.names}
    labels = {
        label for name, (_, label) in places.items() if _may_be_picture(name)
    }
    if not any(labels):
        raise InvalidInput(
            f"'{source.title}' has no pictures in class folders: lay them out as CLASS/NAME.jpg "
            "or train/CLASS/NAME.jpg"
        )
    for name, (split, label) in places.items():
        yield _picture(source, name, split, label)


def _picture(source: Source, name: str, split: str | None, label: str) -> Item:
    if not _may_be_picture(name):
        return Item(name, "", b"", split, "not a picture file")
    if not label:
        return Item(name, "", b"", split, "not in a class folder")
    return source.item(name, label, split)


def _may_be_picture(name: str) -> bool:
    return extension(name) not in NOT_PICTURES
