"""Texts as they are: every file a text, long ones as passages in their order."""

from collections.abc import Iterator, Mapping

from modelmill.data.base import Item, Source, check_options
from modelmill.data.formats._text import split_in_name
from modelmill.data.magic import extension
from modelmill.errors import InvalidInput, MillError

INPUT = "text"
TARGET = "none"
SUMMARY = "text files (.txt, .md); a single one is split by place: its last tenth tests"
OPTIONS: dict[str, str] = {}
EXTENSIONS = frozenset({"txt", "text", "md", "rst", ""})
PASSAGE = 2000
"""Characters of a passage; it ends at the end of a line where one is near."""
LIMIT = 1 << 30
VALIDATES = 20


def detect(source: Source) -> bool:
    """Whether there are text files."""
    return any(extension(name) in EXTENSIONS for name in source.names)


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """Passages `FILE:NUMBER`, those that go on ending in +; raises `InvalidInput` where there is no
    text.
    """
    check_options(options, OPTIONS)
    names = [name for name in source.names if extension(name) in EXTENSIONS]
    if not names:
        raise InvalidInput(f"'{source.title}' holds no text files")
    for name in names:
        split = split_in_name(name)
        try:
            text = source.read(name, LIMIT).decode("utf-8-sig")
        except (MillError, UnicodeDecodeError) as error:
            yield Item(
                name, "", "", split, f"can't be read as text: {str(error)[:120]}"
            )
            continue
        parts = list(passages(text.replace("\r\n", "\n")))
        for number, part in enumerate(parts):
            place = split if len(names) > 1 or split else _by_place(number, len(parts))
            yield Item(
                f"{name}:{number}{'+' if number + 1 < len(parts) else ''}",
                "",
                part,
                place,
            )


def passages(text: str) -> Iterator[str]:
    """Pieces that put together are the text."""
    start = 0
    while start < len(text):
        end = start + PASSAGE
        line = text.rfind("\n", start + PASSAGE // 2, end)
        end = line + 1 if line >= 0 and end < len(text) else min(end, len(text))
        yield text[start:end]
        start = end


def _by_place(number: int, count: int) -> str:
    """The last tenth tests. Of the rest every twentieth passage validates, so that no part of the
    text is left out.
    """
    rest = count - max(count // 10, count > 2)
    every = max(2, min(VALIDATES, rest))
    return (
        "test" if number >= rest else "val" if number % every == every - 1 else "train"
    )
