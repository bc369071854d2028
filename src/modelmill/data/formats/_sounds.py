"""Shared by the formats of recordings: file names, tables that describe them, splits by name."""

import csv
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from modelmill.data.base import Item, Source
from modelmill.data.magic import extension
from modelmill.data.names import shown, split_of, split_of_folders
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
    return [name for name in source.names if name.rpartition("/")[2].lower() in TABLES]


def missing_table(
    source: Source, what: str, row: tuple[str, str], other: str
) -> InvalidInput:
    """The error for recordings without labels: names the table that is looked for.

    `row` is the column that the table should have and an example of it, `other` is an alternative
    to the table.
    """
    first = next(name for name in source.names if is_recording(name))
    column, example = row
    beside = [
        name for name in source.names if name.lower().endswith((".csv", ".tsv", ".txt"))
    ]
    renamed = (
        f" ('{shown(beside[0], 60)}' is there: a table is found when it has that name)"
        if beside
        else ""
    )
    return InvalidInput(
        f"nothing says {what} in '{source.title}': put {TABLES[0]} beside the recordings, with the "
        f"columns {FILES[0]} and {column}: first the line {FILES[0]},{column}, then one for each, "
        f"as {shown(first, 60)},{example}{renamed}; or {other}"
    )


def read_tables(
    source: Source, tables: Sequence[str], columns: Sequence[str]
) -> Iterator[Item]:
    """The recordings that tables list, with the first of `columns` that exists as their label.

    The split is that of the column `split`, or of the table's folder. Raises `InvalidInput` for a
    table without a column of files or any of `columns`.
    """
    names = frozenset(source.names)
    for table in tables:
        folder = table.rpartition("/")[0]
        table_split = split_of_folders(folder)
        for line, row in _rows(source, table, columns):
            path = f"{folder}/{row.file}".replace("\\", "/").lstrip("/")
            name = path if path in names else row.file
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


def _rows(
    source: Source, table: str, columns: Sequence[str]
) -> Iterator[tuple[int, _Recording]]:
    content = source.read(table, LIMIT).decode("utf-8-sig", "replace")
    delimiter = "\t" if table.lower().endswith(".tsv") else ","
    rows = csv.reader(content.splitlines(), delimiter=delimiter)
    head = [cell.strip().lower() for cell in next(rows, [])]
    file, label = (
        next((head.index(name) for name in names if name in head), None)
        for names in (FILES, columns)
    )
    if file is None or label is None:
        raise InvalidInput(
            f"'{table}' wants a column {FILES[0]} and one of {', '.join(columns[:3])}; "
            f"it has {', '.join(head) or 'none'}"
        )
    split = head.index("split") if "split" in head else None
    for row in rows:
        cells = [*row, *[""] * (len(head) - len(row))]
        if any(cells):
            split_cell = "" if split is None else cells[split]
            recording = _Recording(
                cells[file].strip(), cells[label].strip(), split_cell
            )
            yield rows.line_num, recording


def split_by_name(name: str, options: Mapping[str, str]) -> str | None:
    """The split whose pattern in the options, such as *_[0-4].wav, matches a file's name; else
    train where there is a pattern for test.
    """
    base = name.rpartition("/")[2]
    for split in ("test", "val"):
        if any(
            fnmatch.fnmatchcase(base, pattern.strip())
            for pattern in options.get(split, "").split(",")
        ):
            return split
    return "train" if "test" in options else None
