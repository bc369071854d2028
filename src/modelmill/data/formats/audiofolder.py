"""Recordings with classes: by folders, by a table, or by their names."""

import re
from collections.abc import Iterator, Mapping

from modelmill.data.base import Item, Source, check_options
from modelmill.data.formats import _sounds
from modelmill.data.formats._folders import split_and_label, splits_in
from modelmill.data.formats._sounds import is_recording
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
    splits = splits_in(names, is_recording)
    labels = {name: split_and_label(name, splits) for name in names}
    by_name = (
        "label" in options or len({label for _, label in labels.values() if label}) < 2
    )
    pattern = compile_pattern(options.get("label", DEFAULT_PATTERN))
    if names and not any(
        (pattern.match(name.rpartition("/")[2]) if by_name else folder)
        for name, (_, folder) in labels.items()
    ):
        raise _sounds.missing_table(
            source,
            "the classes",
            (COLUMNS[0], "dog"),
            "put them into a folder for each class, or name the files after it, as dog_1.wav",
        )
    for name, (split, folder) in labels.items():
        label = folder
        if by_name:
            match = pattern.match(name.rpartition("/")[2])
            label = (match[1] or "") if match else ""
        item = source.item(name, label, split or _sounds.split_by_name(name, options))
        if not label and not item.problem:
            item.problem = "neither a folder nor its name says its class"
        yield item
    if not names:
        raise InvalidInput(
            f"'{source.title}' holds no recordings (WAV, FLAC, OGG, MP3)"
        )


def compile_pattern(expression: str, option: str = "label") -> re.Pattern[str]:
    """The regular expression of an option; raises `InvalidInput` unless it has one group."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise InvalidInput(
            f"the option {option} is no regular expression: {error}"
        ) from error
    if pattern.groups != 1:
        raise InvalidInput(f"the option {option} wants one group, as in ([a-z]+)_")
    return pattern
