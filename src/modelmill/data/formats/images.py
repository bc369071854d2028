"""Pictures alone, in any folders: for tasks that need neither labels nor targets."""

import re
from collections.abc import Iterator, Mapping

from modelmill.data.base import SPLITS, Item, Source, check_options
from modelmill.data.magic import BY_EXTENSION, NOT_PICTURES, extension
from modelmill.data.names import only_split, shown, top_folder
from modelmill.errors import InvalidInput

INPUT = "image"
TARGET = "none"
SUMMARY = (
    "pictures in any folders, optionally below folders named after their split"
)
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
    folders = _folders(source, options)
    rest = "test" if "train" in options else None
    skips_rest = options.keys() >= {"train", "test"}
    for name in source.names:
        split = _split_by_folder(name, folders)
        if split or not skips_rest:
            yield _item(source, name, split or rest)


def _folders(source: Source, options: Mapping[str, str]) -> dict[str, str]:
    """The split of each folder that stands for one, with a slash at its end."""
    names = [
        name for name in source.names if extension(name) not in NOT_PICTURES
    ]
    if not names:
        raise InvalidInput(f"'{source.title}' has no picture files")
    if options:
        return _folders_of_options(source.title, names, options)
    return _split_folders(names)


def _split_by_folder(name: str, folders: Mapping[str, str]) -> str | None:
    """The split of the first of these folders that a file lies in."""
    return next(
        (split for folder, split in folders.items() if name.startswith(folder)),
        None,
    )


def _folders_of_options(
    title: str, names: list[str], options: Mapping[str, str]
) -> dict[str, str]:
    """The split of each folder that the options name, with a slash at its end."""
    folders: dict[str, str] = {}
    for split, given in options.items():
        for folder in (part.strip().strip("/") for part in given.split(",")):
            _check_folder(title, names, folder)
            if folders.setdefault(f"{folder}/", split) != split:
                raise InvalidInput(
                    f"the folder '{folder}' can't be {folders[f'{folder}/']} and {split} at once"
                )
    return folders


def _check_folder(title: str, names: list[str], folder: str) -> None:
    """Raises `InvalidInput` for a folder without pictures."""
    if not any(name.startswith(f"{folder}/") for name in names):
        raise InvalidInput(
            f"'{title}' has no pictures below '{folder}'; its folders: {_top_folders(names)}"
        )


def _top_folders(names: list[str]) -> str:
    """Some top folders, for a message."""
    tops = {shown(top, 60) for name in names if (top := top_folder(name))}
    return ", ".join(sorted(tops)[:20]) or "none"


def _split_folders(names: list[str]) -> dict[str, str]:
    """The split of each top folder that names one, where at least two splits are named."""
    top_folders = {top for name in names if (top := top_folder(name))}
    splits_by_folder = {
        f"{top}/": split
        for top in sorted(top_folders)
        if (split := _split_in_words(top))
    }
    return splits_by_folder if len(set(splits_by_folder.values())) > 1 else {}


def _split_in_words(folder: str) -> str | None:
    """The split named by a word of a folder's name; None where none or several are."""
    return only_split(WORD.findall(folder.lower()))


def _item(source: Source, name: str, split: str | None) -> Item:
    if extension(name) in NOT_PICTURES:
        return Item(name, "", b"", split, "not a picture file")
    return source.item(name, "", split)
