"""Pictures in folders: a folder for each class, below train, val and test folders or not."""

from collections.abc import Iterator, Mapping

from modelmill.data._magic import BY_EXTENSION, NOT_PICTURES, extension
from modelmill.data.base import Item, Source, check_options, split_of
from modelmill.errors import InvalidInput, MillError

INPUT = "image"
SUMMARY = "a folder of pictures for each class, optionally below train, val and test"
OPTIONS: dict[str, str] = {}
RANK = 1


def detect(source: Source) -> bool:
    """Whether there are picture files at all: `read` says what is wrong with their places."""
    return any(extension(name) in BY_EXTENSION for name in source.names)


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All files by name, as encoded bytes; raises `InvalidInput` when no folder names a class."""
    check_options(options, OPTIONS)
    splits = _splits(source.names)
    places = {name: _place(name, splits) for name in source.names}
    if not any(label for name, (_, label) in places.items() if _may_be_picture(name)):
        raise InvalidInput(
            f"'{source.title}' has no pictures in class folders: lay them out as CLASS/NAME.jpg or train/CLASS/NAME.jpg"
        )
    for name, (split, label) in places.items():
        if _may_be_picture(name):
            yield _picture(source, name, split, label)
        else:
            yield Item(name, "", b"", split, "not a picture file")


def _splits(names: list[str]) -> dict[str, str]:
    """The top folders that name a split, if they do: 'train' may also be a class, beside 'bus' and 'car'."""
    tops = {name.partition("/")[0] for name in names if "/" in name and _may_be_picture(name)}
    named = {top: split for top in tops if (split := split_of(top))}
    return named if len(named) == len(tops) or len(set(named.values())) > 1 else {}


def _place(name: str, splits: dict[str, str]) -> tuple[str | None, str]:
    """The split and the class of a name; the class is empty where no folder names one."""
    folder = name.rpartition("/")[0]
    if not splits:
        return None, folder
    top, _, label = folder.partition("/")
    return (splits[top], label) if top in splits else (None, "")


def _picture(source: Source, name: str, split: str | None, label: str) -> Item:
    if not label:
        return Item(name, "", b"", split, "not in a class folder")
    try:
        return Item(name, label, source.read(name), split)
    except MillError as error:
        return Item(name, label, b"", split, error.message)


def _may_be_picture(name: str) -> bool:
    return extension(name) not in NOT_PICTURES
