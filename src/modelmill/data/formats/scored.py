"""Pairs of texts with a similarity score, in a table whose first row names its columns."""

import math
from collections.abc import Iterator, Mapping

from modelmill.data.base import Item, Source, check_options
from modelmill.data.formats._table import rows_of
from modelmill.data.formats._text import split_in_name, with_extension
from modelmill.data.magic import extension
from modelmill.data.names import shown
from modelmill.errors import InvalidInput

INPUT = "text"
TARGET = "scored"
SUMMARY = (
    "a .csv or .tsv table with columns of two texts and of a score, such as sentence1, "
    "sentence2, score"
)
OPTIONS = {
    "first": "column of one text, by name",
    "second": "column of the other text, by name",
    "score": "column of the score, by name: a number, larger for texts that are more alike",
}
RANK = 3
WORDS = {
    "first": ("sentence1", "sentence_1", "text1", "text_1", "premise", "first"),
    "second": (
        "sentence2",
        "sentence_2",
        "text2",
        "text_2",
        "hypothesis",
        "second",
    ),
    "score": (
        "score",
        "similarity",
        "similarity_score",
        "relatedness",
        "label",
    ),
}


def detect(source: Source) -> bool:
    """Whether a table names two texts and a score."""
    for name in _tables(source)[:1]:
        with source.open(name) as file:
            _, header = next(
                rows_of(file, name, quoted=extension(name) == "csv"), (0, [])
            )
            return None not in _columns(header, {}).values()
    return False


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All pairs, named `FILE:LINE`; raises `InvalidInput` where the columns are not clear."""
    check_options(options, OPTIONS)
    names = _tables(source)
    if not names:
        raise InvalidInput(f"'{source.title}' holds no .csv or .tsv table")
    for name in names:
        split = split_in_name(name) if len(names) > 1 else None
        yield from _items(source, name, options, split)


def _items(
    source: Source, name: str, options: Mapping[str, str], split: str | None
) -> Iterator[Item]:
    """The pairs of a table."""
    with source.open(name) as file:
        rows = rows_of(file, name, quoted=extension(name) == "csv")
        _, header = next(rows, (0, []))
        columns = _all_columns(name, header, options)
        for line, row in rows:
            yield _item(f"{name}:{line}", row, columns, split)


def _all_columns(
    name: str, header: list[str], options: Mapping[str, str]
) -> list[int]:
    """The columns of both texts and the score; raises `InvalidInput` where one is not clear."""
    columns = []
    for role, column in _columns(header, options).items():
        if column is None:
            names = ", ".join(shown(cell, 40) for cell in header[:20])
            raise InvalidInput(
                f"'{name}': which column is the {role}? Say {role}=COLUMN, one "
                f"of: {names}"
            )
        columns.append(column)
    return columns


def _tables(source: Source) -> list[str]:
    return [*with_extension(source, "csv"), *with_extension(source, "tsv")]


def _columns(
    header: list[str], options: Mapping[str, str]
) -> dict[str, int | None]:
    """The column of each role; None where there is none."""
    names = [cell.strip().lower() for cell in header]
    wanted = {
        role: (options[role].lower(),) if role in options else words
        for role, words in WORDS.items()
    }
    return {
        role: next((names.index(word) for word in words if word in names), None)
        for role, words in wanted.items()
    }


def _item(
    name: str, row: list[str], columns: list[int], split: str | None
) -> Item:
    if len(row) <= max(columns):
        return Item(name, "", "", split, f"has {len(row)} columns")
    first, second, score_cell = (row[column].strip() for column in columns)
    if not _is_utf8(first + second):
        return Item(name, "", "", split, "is not UTF-8")
    try:
        score = _score(score_cell)
    except InvalidInput as error:
        return Item(name, "", first, split, error.message)
    problem = "has no second text" if first and not second else ""
    return Item(name, "", first, split, problem, target=(second, score))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _score(cell: str) -> float:
    """A finite number; raises `InvalidInput`."""
    what = f"has the score '{shown(cell, 40)}', which is"
    try:
        score = float(cell)
    except ValueError as error:
        raise InvalidInput(f"{what} no number") from error
    if not math.isfinite(score):
        raise InvalidInput(f"{what} not finite")
    return score
