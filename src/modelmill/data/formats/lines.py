"""Plain text with one file for each class and one item a line, as in rt-polarity.pos and
rt-polarity.neg.
"""

from collections.abc import Iterator, Mapping

from modelmill.data.base import Item, Source, check_options
from modelmill.data.formats._text import LINE, lines, may_be_text
from modelmill.data.magic import extension
from modelmill.data.names import split_of
from modelmill.errors import InvalidInput

INPUT = "text"
SUMMARY = (
    "a text file for each class, one item a line (pos.txt, neg.txt), optionally below "
    "train, val and test"
)
OPTIONS: dict[str, str] = {}
RANK = 1


def detect(source: Source) -> bool:
    """Whether there are text files for two classes or more, and no deeper folders."""
    texts = _texts(source)
    flat = all(
        "/" not in name or (name.count("/") == 1 and split_of(name.partition("/")[0]))
        for name in texts
    )
    return (
        flat
        and len(set(_labels(texts).values())) > 1
        and not any(_is_binary(source, name) for name in texts)
    )


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """Every line of every file; empty lines are items too, with empty data."""
    check_options(options, OPTIONS)
    labels = _labels(_texts(source))
    if len(set(labels.values())) < 2:
        raise InvalidInput(
            f"'{source.title}' needs a text file for each class, such as pos.txt and neg.txt"
        )
    for name, label in labels.items():
        split = split_of(name.partition("/")[0]) if "/" in name else None
        with source.open(name) as file:
            for number, (line, complete) in enumerate(lines(file), start=1):
                yield _item(f"{name}:{number}", label, line, split, complete)


def _is_binary(source: Source, name: str) -> bool:
    with source.open(name) as file:
        return b"\0" in file.read(512)


def _texts(source: Source) -> list[str]:
    return [name for name in source.names if may_be_text(name)]


def _labels(names: list[str]) -> dict[str, str]:
    """The class of each file: its suffix when only that differs, else its name without the
    suffix.
    """
    bases = {name: name.rpartition("/")[2] for name in names}
    suffixes = {
        name: base.rpartition(".")[2] for name, base in bases.items() if extension(base)
    }
    stems = {
        name: base.removesuffix(f".{suffixes[name]}") if name in suffixes else base
        for name, base in bases.items()
    }
    by_suffix = len(suffixes) == len(names) and len(set(stems.values())) == 1
    return suffixes if by_suffix else stems


def _item(
    name: str, label: str, line: bytes, split: str | None, complete: bool
) -> Item:
    try:
        text, problem = line.decode(), ""
    except UnicodeDecodeError:
        text, problem = "", "not UTF-8"
    if not complete:
        text, problem = "", f"longer than {LINE >> 20} MiB"
    elif "\0" in text:
        text, problem = "", "holds a NUL character"
    return Item(name, label, text, split, problem)
