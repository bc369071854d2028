"""Plain text files, cut into passages in their order."""

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
VAL_EVERY = 20
"""One passage in this many is val."""


def detect(source: Source) -> bool:
    """Whether there are text files."""
    return any(extension(name) in EXTENSIONS for name in source.names)


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """Passages named `FILE:NUMBER`, with + at the end where the text continues in the next; raises
    `InvalidInput` where there is no text file.
    """
    check_options(options, OPTIONS)
    names = [name for name in source.names if extension(name) in EXTENSIONS]
    if not names:
        raise InvalidInput(f"'{source.title}' holds no text files")
    for name in names:
        yield from _items(source, name, is_alone=len(names) == 1)


def _items(source: Source, name: str, *, is_alone: bool) -> Iterator[Item]:
    """The passages of a file, or the file as a problem."""
    split = split_in_name(name)
    try:
        text = source.read(name, LIMIT).decode("utf-8-sig")
    except (MillError, UnicodeDecodeError) as error:
        problem = f"can't be read as text: {str(error)[:120]}"
        yield Item(name, "", "", split, problem)
    else:
        yield from _passages(name, text, split, by_place=is_alone and not split)


def _passages(
    name: str, text: str, split: str | None, *, by_place: bool
) -> Iterator[Item]:
    """The passages of a text, which are split by their place where asked."""
    parts = list(passages(text.replace("\r\n", "\n")))
    for number, part in enumerate(parts):
        continues = "+" if number + 1 < len(parts) else ""
        own = _split_of_passage(number, len(parts)) if by_place else split
        yield Item(f"{name}:{number}{continues}", "", part, own)


def passages(text: str) -> Iterator[str]:
    """The passages of a text; joined they are the text."""
    start = 0
    while start < len(text):
        end = start + PASSAGE
        line = text.rfind("\n", start + PASSAGE // 2, end)
        end = line + 1 if line >= 0 and end < len(text) else min(end, len(text))
        yield text[start:end]
        start = end


def _split_of_passage(number: int, count: int) -> str:
    """The split of a passage: the last tenth is test, every twentieth of the others is val."""
    before_test = count - max(count // 10, count > 2)
    if number >= before_test:
        return "test"
    step = max(2, min(VAL_EVERY, before_test))
    return "val" if number % step == step - 1 else "train"
