"""Recordings with classes: by folders, by a table, or by their names."""

import re
from collections.abc import Iterator, Mapping

from modelmill.data.base import Item, Source, check_options
from modelmill.data.formats import _sounds
from modelmill.data.formats._folders import split_and_label, splits_in
from modelmill.data.formats._sounds import (
    compile_pattern,
    is_recording,
    match_any,
    part_of_name,
)
from modelmill.errors import InvalidInput

INPUT = "audio"
SUMMARY = (
    "recordings in a folder for each class, in metadata.csv (file_name, label), or called "
    "CLASS_*.wav"
)
OPTIONS = {
    "label": "regular expression whose group is the class in a file's name; default: what is "
    "before the first _ or -",
    "test": "patterns of the names that are the test split, separated by commas, such as "
    "*_[0-4].wav",
    "val": "patterns of the names that are the validation split, separated by commas",
}
COLUMNS = ("label", "class", "category", "target", "word", "command")
DEFAULT_PATTERN = r"([^_\-]+)[_\-]"


def detect(source: Source) -> bool:
    """Whether there are recordings."""
    return any(map(is_recording, source.names))


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All recordings by name; raises `InvalidInput` when there are none."""
    check_options(options, OPTIONS)
    if tables := _sounds.tables_of(source):
        yield from _sounds.read_tables(source, tables, COLUMNS)
        return
    names = [name for name in source.names if is_recording(name)]
    if not names:
        raise InvalidInput(
            f"'{source.title}' holds no recordings (WAV, FLAC, OGG, MP3)"
        )
    for name, (split, label) in _places(source, names, options).items():
        split = split or _sounds.split_by_name(name, options)
        yield _item(source, name, label, split)


def _places(
    source: Source, names: list[str], options: Mapping[str, str]
) -> dict[str, tuple[str | None, str]]:
    """The split of each recording by its folders, and its class by its folder or its name."""
    splits = splits_in(names, is_recording)
    places = {name: split_and_label(name, splits) for name in names}
    labels = {label for _, label in places.values() if label}
    if "label" not in options and len(labels) > 1:
        return places
    pattern = compile_pattern(options.get("label", DEFAULT_PATTERN))
    by_name = _labels_by_name(source, names, pattern)
    return {name: (split, by_name[name]) for name, (split, _) in places.items()}


def _labels_by_name(
    source: Source, names: list[str], pattern: re.Pattern[str]
) -> dict[str, str]:
    """The classes that file names tell; raises `InvalidInput` where no name matches."""
    if not match_any(pattern, names):
        raise _sounds.missing_table(
            source,
            "the classes",
            (COLUMNS[0], "dog"),
            "put them into a folder for each class, or name the files after it, as dog_1.wav",
        )
    return {name: part_of_name(pattern, name) for name in names}


def _item(source: Source, name: str, label: str, split: str | None) -> Item:
    item = source.item(name, label, split)
    if not label and not item.problem:
        item.problem = "neither a folder nor its name says its class"
    return item
