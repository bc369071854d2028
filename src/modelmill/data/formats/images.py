"""Pictures alone, in any folders: for tasks that need neither labels nor targets."""

import re
from collections.abc import Iterator, Mapping

from modelmill.data.base import SPLITS, Item, Source, check_options
from modelmill.data.magic import BY_EXTENSION, NOT_PICTURES, extension
from modelmill.data.names import shown, split_of
from modelmill.errors import InvalidInput

INPUT = "image"
TARGET = "none"
SUMMARY = "pictures in any folders, optionally below folders named after their split"
OPTIONS = {
    split: f"folders that are the {split} split, separated by commas"
    for split in SPLITS
}
RANK = 2
"""Above folders of classes: tasks that take pictures alone need no classes."""
WORD = re.compile(r"[a-z]+")


def detect(source: Source) -> bool:
    """Whether there are picture files."""
    return any(extension(name) in BY_EXTENSION for name in source.names)


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All files by name, as encoded bytes.

    Without options, folders at the top are splits where they name at least two of them, as in
    `train` and `test`, or `Photos_train_HR` and `Photos_valid_HR`. With options, what is not named
    trains; where `train` is named but not `test` it tests, and where both are it is left out.
    Raises `InvalidInput` for a folder that is not there.
    """
    check_options(options, OPTIONS)
    names = [name for name in source.names if extension(name) not in NOT_PICTURES]
    if not names:
        raise InvalidInput(f"'{source.title}' has no picture files")
    folders = (
        _folders_of_options(source.title, names, options)
        if options
        else _split_folders(names)
    )
    for name in source.names:
        split = next(
            (split for folder, split in folders.items() if name.startswith(folder)),
            None,
        )
        if split is None and "train" in options:
            if "test" in options:
                continue
            split = "test"
        yield _item(source, name, split)


def _folders_of_options(
    title: str, names: list[str], options: Mapping[str, str]
) -> dict[str, str]:
    """The split of each folder that the options name, with a slash at its end."""
    folders: dict[str, str] = {}
    for split, given in options.items():
        for folder in (f"{part.strip().strip('/')}/" for part in given.split(",")):
            if not any(name.startswith(folder) for name in names):
                raise InvalidInput(
                    f"'{title}' has no pictures below '{folder[:-1]}'; its folders: "
                    f"{_top_folders(names)}"
                )
            if folders.setdefault(folder, split) != split:
                raise InvalidInput(
                    f"the folder '{folder[:-1]}' can't be {folders[folder]} and {split} at once"
                )
    return folders


def _top_folders(names: list[str]) -> str:
    """Some top folders, for a message."""
    tops = {shown(name.partition("/")[0], 60) for name in names if "/" in name}
    return ", ".join(sorted(tops)[:20]) or "none"


def _split_folders(names: list[str]) -> dict[str, str]:
    """The split of each top folder that names one, where at least two splits are named."""
    top_folders = {name.partition("/")[0] for name in names if "/" in name}
    splits_by_folder = {
        f"{top}/": split
        for top in sorted(top_folders)
        if (split := _split_in_words(top))
    }
    return splits_by_folder if len(set(splits_by_folder.values())) > 1 else {}


def _split_in_words(folder: str) -> str | None:
    """The split named by a word of a folder's name; None where none or several are."""
    splits = {
        split for word in WORD.findall(folder.lower()) if (split := split_of(word))
    }
    return splits.pop() if len(splits) == 1 else None


def _item(source: Source, name: str, split: str | None) -> Item:
    if extension(name) in NOT_PICTURES:
        return Item(name, "", b"", split, "not a picture file")
    return source.item(name, "", split)
