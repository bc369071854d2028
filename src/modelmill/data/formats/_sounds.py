"""Shared by the formats of recordings: file names, tables that describe them, splits by name."""

import csv
import fnmatch
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from modelmill.data.base import Item, Source
from modelmill.data.magic import extension
from modelmill.data.names import (
    base_of,
    folder_of,
    shown,
    split_of,
    split_of_folders,
)
from modelmill.errors import InvalidInput

EXTENSIONS = frozenset(
    {
        "wav",
        "wave",
        "flac",
        "ogg",
        "oga",
        "opus",
        "mp3",
        "aif",
        "aiff",
        "au",
        "caf",
        "w64",
    }
)
TABLES = ("metadata.csv", "manifest.csv", "metadata.tsv", "manifest.tsv")
FILES = ("file_name", "file", "path", "filename", "audio", "wav", "recording")
LIMIT = 256 << 20


def is_recording(name: str) -> bool:
    """Whether a name is that of a recording."""
    return extension(name) in EXTENSIONS


def tables_of(source: Source) -> list[str]:
    """The tables that describe recordings."""
    return [name for name in source.names if base_of(name).lower() in TABLES]


def missing_table(
    source: Source, what: str, row: tuple[str, str], other: str
) -> InvalidInput:
    """The error for recordings without labels: names the table that is looked for.

    `row` is the column that the table should have and an example of it, `other` is an alternative
    to the table.
    """
    first = next(name for name in source.names if is_recording(name))
    column, example = row
    return InvalidInput(
        f"nothing says {what} in '{source.title}': put {TABLES[0]} beside the recordings, with the "
        f"columns {FILES[0]} and {column}: first the line {FILES[0]},{column}, then one for each, "
        f"as {shown(first, 60)},{example}{_about_other_table(source)}; or {other}"
    )


def _about_other_table(source: Source) -> str:
    """What to say of a table of another name; empty where there is none."""
    for name in source.names:
        if name.lower().endswith((".csv", ".tsv", ".txt")):
            return (
                f" ('{shown(name, 60)}' is there: a table is found when it has that "
                "name)"
            )
    return ""


def read_tables(
    source: Source, tables: Sequence[str], columns: Sequence[str]
) -> Iterator[Item]:
    """The recordings that tables list, with the first of `columns` that exists as their label.

    The split is that of the column `split`, or of the table's folder. Raises `InvalidInput` for a
    table without a column of files or any of `columns`.
    """
    names = frozenset(source.names)
    for table in tables:
        folder = folder_of(table)
        table_split = split_of_folders(folder)
        for line, row in _rows(source, table, columns):
            name = row.name_in(folder, names)
            split = split_of(row.split) or table_split
            if name in names:
                yield source.item(name, row.label, split)
            else:
                problem = f"there is no file '{shown(row.file)}'"
                yield Item(f"{table}:{line}", "", b"", split, problem)


class _Recording(NamedTuple):
    """A row of a table: the file, its label, and the cell that names its split."""

    file: str
    label: str
    split: str

    def name_in(self, folder: str, names: Container[str]) -> str:
        """The name of the file: beside its table, else from the top."""
        beside = f"{folder}/{self.file}".replace("\\", "/").lstrip("/")
        return beside if beside in names else self.file


class _Columns(NamedTuple):
    """The numbers of the columns of a table; None where no column names a split."""

    file: int
    label: int
    split: int | None

    def recording(self, cells: Sequence[str]) -> _Recording:
        split = "" if self.split is None else cells[self.split]
        return _Recording(
            cells[self.file].strip(), cells[self.label].strip(), split
        )


def _rows(
    source: Source, table: str, columns: Sequence[str]
) -> Iterator[tuple[int, _Recording]]:
    """The rows of a table that are not empty, each with the number of its line."""
    content = source.read(table, LIMIT).decode("utf-8-sig", "replace")
    delimiter = "\t" if table.lower().endswith(".tsv") else ","
    rows = csv.reader(content.splitlines(), delimiter=delimiter)
    head = [cell.strip().lower() for cell in next(rows, [])]
    chosen = _choose_columns(table, head, columns)
    for row in rows:
        if any(row):
            missing = len(head) - len(row)
            yield rows.line_num, chosen.recording([*row, *[""] * missing])


def _choose_columns(
    table: str, head: list[str], labels: Sequence[str]
) -> _Columns:
    """Raises `InvalidInput` for a table without a column of files or labels."""
    file, label = _first_column(head, FILES), _first_column(head, labels)
    if file is None or label is None:
        raise InvalidInput(
            f"'{table}' wants a column {FILES[0]} and one of {', '.join(labels[:3])}; "
            f"it has {', '.join(head) or 'none'}"
        )
    return _Columns(file, label, _first_column(head, ("split",)))


def _first_column(head: list[str], names: Sequence[str]) -> int | None:
    """The column with the first of these names that exists."""
    return next((head.index(name) for name in names if name in head), None)


def compile_pattern(expression: str, option: str = "label") -> re.Pattern[str]:
    """The regular expression of an option; raises `InvalidInput` unless it has one group."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise InvalidInput(
            f"the option {option} is no regular expression: {error}"
        ) from error
    if pattern.groups != 1:
        raise InvalidInput(
            f"the option {option} wants one group, as in ([a-z]+)_"
        )
    return pattern


def part_of_name(pattern: re.Pattern[str], name: str) -> str:
    """The group of a pattern in a file's name; empty where it does not match."""
    match = pattern.match(base_of(name))
    return (match[1] or "") if match else ""


def match_any(pattern: re.Pattern[str], names: Iterable[str]) -> bool:
    """Whether a pattern matches the name of any file."""
    return any(pattern.match(base_of(name)) for name in names)


def split_by_name(name: str, options: Mapping[str, str]) -> str | None:
    """The split whose pattern in the options, such as *_[0-4].wav, matches a file's name; else
    train where there is a pattern for test.
    """
    base = base_of(name)
    for split in ("test", "val"):
        patterns = options.get(split, "").split(",")
        if any(
            fnmatch.fnmatchcase(base, pattern.strip()) for pattern in patterns
        ):
            return split
    return "train" if "test" in options else None
