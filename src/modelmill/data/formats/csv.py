"""Tables with commas (or semicolons, or tabs), quoted where needed: the text and its label."""

from collections.abc import Iterator, Mapping

from modelmill.data.base import Item, Source
from modelmill.data.formats._table import COLUMNS, read_tables
from modelmill.data.formats._text import with_extension

INPUT = "text"
SUMMARY = "a .csv table with a column of texts and one of labels, such as text and label"
OPTIONS = COLUMNS
RANK = 2


def detect(source: Source) -> bool:
    """Whether there are .csv files."""
    return bool(with_extension(source, "csv"))


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """Every row of every table; raises `InvalidInput` when the columns can't be told apart."""
    return read_tables(
        source, with_extension(source, "csv"), options, quoted=True
    )
