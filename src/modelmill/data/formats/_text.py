"""Shared by the text formats: names of text files, splits by name, lines of bounded length."""

from collections.abc import Iterator
from typing import BinaryIO

from modelmill.data.base import Source
from modelmill.data.magic import BY_EXTENSION, NOT_PICTURES, extension
from modelmill.data.names import only_split

LINE = 1 << 20
"""The longest line that is read, in bytes."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""May begin a file in UTF-8."""
NOT_TEXT = (NOT_PICTURES | frozenset(BY_EXTENSION)) - {
    "txt",
    "lst",
    "names",
    "data",
    "log",
}


def with_extension(source: Source, ending: str) -> list[str]:
    """The names with this extension."""
    return [name for name in source.names if extension(name) == ending]


def may_be_text(name: str) -> bool:
    """Whether a file may be plain text by its extension."""
    return extension(name) not in NOT_TEXT


def split_in_name(name: str) -> str | None:
    """The split named by a word of a path, as in `train/a.csv` or `reviews_dev.csv`; None where
    none or several are.
    """
    words = name.removesuffix(f".{extension(name)}")
    for mark in "/-_.":
        words = words.replace(mark, " ")
    return only_split(words.split(" "))


def lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """The lines without their ends, and whether each is complete: one longer than `LINE` is cut."""
    mark = BYTE_ORDER_MARK
    while line := file.readline(LINE):
        if _is_cut(line):
            _skip_line(file)
            yield line.removeprefix(mark), False
        else:
            yield line.removeprefix(mark).rstrip(b"\r\n"), True
        mark = b""


def _is_cut(line: bytes) -> bool:
    return len(line) == LINE and not line.endswith(b"\n")


def _skip_line(file: BinaryIO) -> None:
    """Read on to the end of a line."""
    while _is_cut(file.readline(LINE)):
        pass
