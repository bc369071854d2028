"""What the text formats share: which files are texts, their splits, and lines of bounded length."""

from collections.abc import Iterator
from typing import BinaryIO

from modelmill.data.base import Source
from modelmill.data.magic import BY_EXTENSION, NOT_PICTURES, extension
from modelmill.data.names import split_of

LINE = 1 << 20
"""The longest line that is read, in bytes."""
OTHER = (NOT_PICTURES | frozenset(BY_EXTENSION)) - {
    "txt",
    "lst",
    "names",
    "data",
    "log",
}


def with_extension(source: Source, wanted: str) -> list[str]:
    """The names that end so."""
    return [name for name in source.names if extension(name) == wanted]


def may_be_text(name: str) -> bool:
    """Whether a name does not say that the file is something else than plain text."""
    return extension(name) not in OTHER


def split_in_name(name: str) -> str | None:
    """The one split that folders and stem of a name tell, as in `train/a.csv` or
    `reviews_dev.csv`.
    """
    words = name.removesuffix(f".{extension(name)}")
    for mark in "/-_.":
        words = words.replace(mark, " ")
    found = {split for word in words.split(" ") if (split := split_of(word))}
    return found.pop() if len(found) == 1 else None


def lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Each line without its end, and whether it is whole: of one longer than `LINE` the beginning
    comes.
    """
    first = True
    while line := file.readline(LINE):
        whole = line.endswith(b"\n") or len(line) < LINE
        rest = line
        while not rest.endswith(b"\n") and len(rest) == LINE:
            rest = file.readline(LINE)
        if first:
            line = line.removeprefix(b"\xef\xbb\xbf")
            first = False
        yield line.rstrip(b"\r\n") if whole else line, whole
