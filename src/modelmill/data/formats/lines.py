"""Plain text with one file for each class and one item a line, as in rt-polarity.pos and
rt-polarity.neg.
"""

from collections.abc import Iterator, Mapping

from modelmill.data.base import Item, Source, check_options
from modelmill.data.formats._text import LINE, lines, may_be_text
from modelmill.data.magic import extension
from modelmill.data.names import base_of, split_of, top_folder
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
    if not all(map(_is_flat, texts)) or len(set(_labels(texts).values())) < 2:
        return False
    return not any(_is_binary(source, name) for name in texts)


def _is_flat(name: str) -> bool:
    """Whether a file is in no folder, or in that of a split."""
    folders = name.split("/")[:-1]
    return not folders or (
        len(folders) == 1 and split_of(folders[0]) is not None
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
        yield from _items(source, name, label)


def _items(source: Source, name: str, label: str) -> Iterator[Item]:
    """The lines of a file, which are all of one class."""
    split = split_of(top_folder(name))
    with source.open(name) as file:
        for number, (line, complete) in enumerate(lines(file), start=1):
            text, problem = _text_of(line, complete)
            yield Item(f"{name}:{number}", label, text, split, problem)


def _is_binary(source: Source, name: str) -> bool:
    with source.open(name) as file:
        return b"\0" in file.read(512)


def _texts(source: Source) -> list[str]:
    return [name for name in source.names if may_be_text(name)]


def _labels(names: list[str]) -> dict[str, str]:
    """The class of each file: its suffix when only that differs, else its name without the
    suffix.
    """
    bases = {name: base_of(name) for name in names}
    stems = {name: _stem(base) for name, base in bases.items()}
    if len(set(stems.values())) == 1 and all(map(extension, bases.values())):
        return {name: base.rpartition(".")[2] for name, base in bases.items()}
    return stems


def _stem(base: str) -> str:
    """A file's name without its suffix."""
    return base.rpartition(".")[0] if extension(base) else base


def _text_of(line: bytes, complete: bool) -> tuple[str, str]:
    """The text of a line, or "" and what is wrong with it."""
    if not complete:
        return "", f"longer than {LINE >> 20} MiB"
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return "", "not UTF-8"
    return ("", "holds a NUL character") if "\0" in text else (text, "")
