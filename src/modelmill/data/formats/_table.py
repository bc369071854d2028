"""Shared by the formats of tables with texts and labels: their columns and rows."""

import csv
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import BinaryIO, Protocol

import msgspec

from modelmill.data.base import SPLITS, Item, Source, check_options
from modelmill.data.formats._text import LINE, lines, split_in_name
from modelmill.data.names import shown, split_of
from modelmill.errors import InvalidInput

COLUMNS = {
    "text": "column of the text, a name or a number from 0",
    "label": "column of the label, a name or a number from 0",
    "split": "column that says train, val or test, a name or a number from 0",
    "header": "yes or no: whether the first row names the columns",
}
WORDS = {
    "text": (
        "text",
        "sentence",
        "review",
        "content",
        "comment",
        "tweet",
        "message",
        "document",
        "body",
        "utterance",
        "query",
        "question",
        "sms",
        "title",
        "headline",
        "phrase",
    ),
    "label": (
        "label",
        "labels",
        "class",
        "sentiment",
        "category",
        "target",
        "polarity",
        "y",
        "rating",
        "intent",
        "topic",
        "emotion",
        "tag",
        "stars",
        "score",
    ),
    "split": ("split",),
}
SAMPLE = 1000
"""Rows that are read to guess the columns."""
END = "\x00end of table\x00"
"""Appended to a file: an unclosed quote swallows it."""

Rows = Iterator[tuple[int, list[str]]]


class TableLayout(msgspec.Struct, frozen=True):
    """The columns of text, label and split, by number; `header` is the first row where it names
    them.
    """

    text: int
    label: int
    split: int | None
    width: int
    header: list[str] | None

    def cells(self, row: list[str]) -> tuple[str, str, str]:
        """The text, the label, and what names the split."""
        named = "" if self.split is None else row[self.split].strip()
        return row[self.text], row[self.label].strip(), named


def read_tables(
    source: Source, names: list[str], options: Mapping[str, str], quoted: bool
) -> Iterator[Item]:
    """The items of one table without splits, or of several named after their split, train first;
    raises `InvalidInput` for columns that can't be identified.
    """
    check_options(options, COLUMNS)
    if not names:
        raise InvalidInput(f"'{source.title}' holds no table of this format")
    layout: TableLayout | None = None
    for name, split in _tables_with_splits(source, names):
        with source.open(name) as file:
            rows = rows_of(file, name, quoted)
            sample = list(islice(rows, SAMPLE))
            layout = layout or plan(name, [row for _, row in sample], options)
            below = _without_header(name, layout, sample)
            for line, row in chain(below, rows):
                yield _item(f"{name}:{line}", row, layout, split)


def _tables_with_splits(
    source: Source, names: list[str]
) -> list[tuple[str, str | None]]:
    """The tables with the split that each is for, train first; raises `InvalidInput` where one of
    several does not say it.
    """
    if len(names) == 1:
        return [(names[0], None)]
    splits: list[tuple[str, str]] = []
    for name in names:
        split = split_in_name(name)
        if split is None:
            raise InvalidInput(
                f"'{source.title}' holds several tables and '{name}' does not say which split "
                "it is: keep one table, or name them train, val and test"
            )
        splits.append((name, split))
    return sorted(splits, key=lambda pair: (SPLITS.index(pair[1]), pair[0]))


def plan(
    name: str, sample: list[list[str]], options: Mapping[str, str]
) -> TableLayout:
    """The layout of a table, from its first rows and the options; raises `InvalidInput` that names
    the columns.
    """
    if not sample:
        raise InvalidInput(f"'{name}' is empty")
    first = sample[0]
    found = {role: _find(first, role, options.get(role)) for role in WORDS}
    text, label = _text_and_label(name, sample, found)
    header = _says_header(first, options)
    if header is None:
        by_names = found["text"] is not None or found["label"] is not None
        header = _has_header(first[label], _cells(sample[1:], label), by_names)
    split = found["split"] if header or "split" in options else None
    return TableLayout(
        text, label, split, len(first), first if header else None
    )


def _text_and_label(
    name: str, sample: list[list[str]], found: Mapping[str, int | None]
) -> tuple[int, int]:
    """The columns of both, of which one or none may have been found by name; raises
    `InvalidInput`.
    """
    text, label = found["text"], found["label"]
    if len(sample[0]) == 2:
        text, label = _complete_pair(text, label, sample)
    if text is None or label is None or text == label:
        raise _unclear(name, sample[0])
    return text, label


def _says_header(first: list[str], options: Mapping[str, str]) -> bool | None:
    """Whether the first row is a header, by the options; None where they do not tell."""
    if "header" in options:
        return options["header"].strip().lower() in ("yes", "true", "1")
    wanted = {
        options[role].strip().lower() for role in WORDS if role in options
    }
    return None if wanted.isdisjoint(_names(first)) else True


def _unclear(name: str, first: list[str]) -> InvalidInput:
    columns = ", ".join(
        f"{number} '{shown(cell.strip(), 40)}'"
        for number, cell in enumerate(first[:20])
    )
    return InvalidInput(
        f"'{name}': can't tell which column is the text and which the label; "
        f"use --set text=COLUMN --set label=COLUMN with one of: {columns}"
    )


def _find(first: list[str], role: str, wanted: str | None) -> int | None:
    """The column of a role: the one that is `wanted`, else the first with a usual name."""
    names = _names(first)
    if wanted is None:
        return next(
            (names.index(word) for word in WORDS[role] if word in names), None
        )
    name = wanted.strip().lower()
    if name in names:
        return names.index(name)
    if wanted.isdecimal() and int(wanted) < len(first):
        return int(wanted)
    raise _no_column(wanted, role, names)


def _no_column(wanted: str, role: str, names: list[str]) -> InvalidInput:
    columns = ", ".join(shown(name, 40) for name in names[:20])
    return InvalidInput(
        f"there is no column '{wanted}' for the {role}; there are: {columns}"
    )


def _complete_pair(
    text: int | None, label: int | None, rows: list[list[str]]
) -> tuple[int | None, int | None]:
    """The text and label of two columns: where one is known the other follows; else the label is
    the column with fewer distinct values.
    """
    if text is None and label is None:
        label = _repetitive_column(rows)
    if label is None and text is not None:
        return text, 1 - text
    if text is None and label is not None:
        return 1 - label, label
    return text, label


def _repetitive_column(rows: list[list[str]]) -> int | None:
    """Of two columns the one with fewer distinct values; None where they hardly repeat."""
    distinct, column = min(
        (len(set(_cells(rows, column))), column) for column in (0, 1)
    )
    # one of the kinds may be the header
    return None if 2 * (distinct - 1) > len(rows) else column


def _has_header(label: str, values_below: list[str], by_names: bool) -> bool:
    """Whether the first row is a header: its label cell occurs in no other row, while labels
    repeat.
    """
    values = {other.strip().lower() for other in values_below}
    return label.strip().lower() not in values and (
        by_names or 2 * len(values) <= len(values_below)
    )


def _names(row: list[str]) -> list[str]:
    return [cell.strip().lower() for cell in row]


def _cells(rows: list[list[str]], column: int) -> list[str]:
    return [row[column] for row in rows if column < len(row)]


def _without_header(
    name: str, layout: TableLayout, sample: list[tuple[int, list[str]]]
) -> list[tuple[int, list[str]]]:
    """The first rows below the header, where there is one; raises `InvalidInput` for another header
    than that of the first table.
    """
    if layout.header is None:
        return sample
    first = sample[0][1] if sample else []
    if _names(first) != _names(layout.header):
        raise InvalidInput(
            f"'{name}' has other columns than the tables before it: {shown(', '.join(first))}"
        )
    return sample[1:]


class RowReader(Protocol):
    """What `csv.reader` makes."""

    @property
    def line_num(self) -> int:
        """Lines that were read until now."""

    def __next__(self) -> list[str]:
        """The next row."""


def rows_of(file: BinaryIO, name: str, quoted: bool) -> Rows:
    """The rows that are not blank, each with the number of its first line; raises `InvalidInput`
    for a broken row.
    """
    reader = _reader(_decoded(file, name), quoted)
    start = 1
    while True:
        try:
            row = next(reader)
        except csv.Error as error:
            raise InvalidInput(
                f"'{name}' line {start} is not a row: {error} (is a quote never closed?)"
            ) from error
        if row == [END]:
            return
        if row and row[-1].endswith(END):
            raise InvalidInput(
                f"'{name}' line {start}: a quote opened here is never closed"
            )
        if row:
            yield start, row
        start = reader.line_num + 1


def _reader(text: Iterator[str], quoted: bool) -> "RowReader":
    """The rows of a table's lines, and `END` after them."""
    csv.field_size_limit(max(csv.field_size_limit(), LINE))
    first = next(text, "")
    text = chain([first], text, [END])
    if quoted:
        return csv.reader(text, delimiter=_delimiter(first))
    return csv.reader(
        text, delimiter="\t", quotechar=None, quoting=csv.QUOTE_NONE
    )


def _delimiter(line: str) -> str:
    """Where the decimal mark is a comma, spreadsheets write ';' into .csv files."""
    return next((mark for mark in ",;\t" if mark in line), ",")


def _decoded(file: BinaryIO, name: str) -> Iterator[str]:
    for number, (line, whole) in enumerate(lines(file), start=1):
        if not whole:
            raise InvalidInput(
                f"'{name}' line {number} is longer than {LINE >> 20} MiB"
            )
        yield line.decode("utf-8", "surrogateescape") + "\n"


def _item(
    name: str, row: list[str], layout: TableLayout, split: str | None
) -> Item:
    row = _without_empty_end(row, layout.width)
    if len(row) != layout.width:
        problem = f"{len(row)} columns instead of {layout.width}"
        return Item(name, "", "", None, problem)
    text, label, named = layout.cells(row)
    if problem := _problem(text, label, named):
        return Item(name, "", "", None, problem)
    return Item(name, label, text, split_of(named) if named else split)


def _without_empty_end(row: list[str], width: int) -> list[str]:
    """A row without the empty cells beyond a width."""
    while len(row) > width and not row[-1].strip():
        row = row[:-1]
    return row


def _problem(text: str, label: str, split: str) -> str:
    try:
        f"{text}{label}".encode()
    except UnicodeEncodeError:
        return "not UTF-8"
    if "\0" in text or "\0" in label:
        return "holds a NUL character"
    if not label:
        return "has no label"
    return (
        ""
        if not split or split_of(split)
        else f"unknown split '{shown(split, 40)}'"
    )
