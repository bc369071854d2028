"""Sentences and their translations: files of aligned lines, a language each, or tables of pairs."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from itertools import zip_longest

from modelmill.data.base import Item, Source, check_options, unzipped
from modelmill.data.formats._text import lines, split_in_name
from modelmill.data.magic import extension
from modelmill.errors import InvalidInput

INPUT = "text"
TARGET = "texts"
SUMMARY = (
    "aligned lines in files named by language (train.en, train.de, also .gz), or pairs "
    "between tabs in a .txt or .tsv"
)
OPTIONS = {
    "source": "language to translate from: the suffix of its files, or a column of pairs by "
    "number from 0",
    "target": "language to translate to, likewise; default: the second one in the alphabet, or "
    "the second column",
    "skip": "patterns of files to leave out, separated by commas, such as *2017*",
}
LANGUAGE = re.compile(
    r"(.+)\.([a-z]{2,3}(?:[-_][A-Za-z]{2,4})?)", re.IGNORECASE
)
TABLES = frozenset({"tsv", "txt", "tab"})
NOT_LANGUAGES = TABLES | {
    "csv",
    "md",
    "rst",
    "zip",
    "gz",
    "png",
    "jpg",
    "wav",
    "pos",
    "neg",
    "log",
    "xml",
}


def detect(source: Source) -> bool:
    """Whether two languages are aligned, or a table's first line is a pair."""
    names = _without_skipped(source, {})
    if len(_aligned(names)) > 1:
        return True
    tables = _tables(names)
    if not tables or len(tables) < len(source.names):
        return False
    return 1 <= _first_line(source, tables[0]).count(b"\t") <= 3


def _first_line(source: Source, name: str) -> bytes:
    with source.open(name) as file:
        return next(lines(file), (b"", True))[0]


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All pairs, named `FILE:LINE`; raises `InvalidInput` where the languages are not clear or the
    files do not align.
    """
    check_options(options, OPTIONS)
    names = _without_skipped(source, options)
    languages = _aligned(names)
    if len(languages) > 1:
        pair = _language_pair(sorted(languages), options)
        yield from _lines(source, languages[pair[0]], languages[pair[1]])
    elif tables := _tables(names):
        columns = _column(options, "source", 0), _column(options, "target", 1)
        for name in tables:
            yield from _pairs(source, name, *columns)
    else:
        raise InvalidInput(
            f"'{source.title}' holds no files of two languages, such as train.en and train.de"
        )


def _without_skipped(source: Source, options: Mapping[str, str]) -> list[str]:
    skipped = [part.strip() for part in options.get("skip", "").split(",")]
    patterns = list(filter(None, skipped))
    return [name for name in source.names if not _matches(name, patterns)]


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _aligned(names: list[str]) -> dict[str, dict[str, str]]:
    """Files by language and stem, of languages that share stems with another."""
    by_language = _by_language(names)
    count = Counter(stem for files in by_language.values() for stem in files)
    return {
        language: files
        for language, files in by_language.items()
        if any(count[stem] > 1 for stem in files)
    }


def _by_language(names: list[str]) -> dict[str, dict[str, str]]:
    """Files by language and stem."""
    by_language: dict[str, dict[str, str]] = {}
    for name in names:
        match = LANGUAGE.fullmatch(name.removesuffix(".gz"))
        if match and match[2].lower() not in NOT_LANGUAGES:
            by_language.setdefault(match[2], {})[match[1]] = name
    return by_language


def _tables(names: list[str]) -> list[str]:
    return [name for name in names if extension(name) in TABLES]


def _language_pair(
    languages: list[str], options: Mapping[str, str]
) -> tuple[str, str]:
    """The source and target language; raises `InvalidInput` where they are not clear."""
    for side in ("source", "target"):
        if options.get(side, languages[0]) not in languages:
            raise InvalidInput(
                f"there is no language '{options[side]}': {', '.join(languages)}"
            )
    source, target = options.get("source"), options.get("target")
    if len(languages) == 2:
        source, target = _completed(languages, source, target)
    if not source or not target or source == target:
        raise InvalidInput(
            f"say source=LANGUAGE and target=LANGUAGE; there are: {', '.join(languages)}"
        )
    return source, target


def _completed(
    languages: list[str], source: str | None, target: str | None
) -> tuple[str, str]:
    """Two languages where at most one is named: the other one, else both in their order."""
    one, other = languages
    partner = {one: other, other: one}
    if source is None:
        source = one if target is None else partner[target]
    return source, partner[source] if target is None else target


def _lines(
    source: Source, texts: Mapping[str, str], translations: Mapping[str, str]
) -> Iterator[Item]:
    """The pairs of two languages, whose files are given by stem."""
    for stem in texts:
        if stem in translations:
            yield from _file_pairs(
                source, stem, texts[stem], translations[stem]
            )


def _file_pairs(
    source: Source, stem: str, name: str, other: str
) -> Iterator[Item]:
    """The pairs of two files with aligned lines."""
    split = split_in_name(f"{stem}.txt")
    with unzipped(source, name) as left, unzipped(source, other) as right:
        aligned = zip_longest(lines(left), lines(right))
        for number, (text, translation) in enumerate(aligned, 1):
            if text is None or translation is None:
                raise InvalidInput(
                    f"{name} and {other} have different numbers of lines"
                )
            yield _item(f"{stem}:{number}", text[0], translation[0], split)


def _pairs(
    source: Source, name: str, text_column: int, translation_column: int
) -> Iterator[Item]:
    split = split_in_name(name)
    with source.open(name) as file:
        for number, (line, _) in enumerate(lines(file), 1):
            item_name = f"{name}:{number}"
            cells = line.split(b"\t")
            if len(cells) <= max(text_column, translation_column):
                yield _incomplete(item_name, line, split)
            else:
                pair = cells[text_column], cells[translation_column]
                yield _item(item_name, *pair, split)


def _incomplete(name: str, line: bytes, split: str | None) -> Item:
    """A line without one of the columns."""
    count = line.count(b"\t") + 1
    problem = f"has {count} columns between tabs"
    return Item(name, "", line.decode("utf-8", "replace"), split, problem)


def _item(
    name: str, text_bytes: bytes, translation_bytes: bytes, split: str | None
) -> Item:
    try:
        text, translation = _text(text_bytes), _text(translation_bytes)
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: {error.reason}"
        return Item(
            name, "", text_bytes.decode("utf-8", "replace"), split, problem
        )
    problem = "has no translation" if text and not translation else ""
    return Item(name, "", text, split, problem, target=(translation,))


def _text(line: bytes) -> str:
    return line.decode("utf-8-sig").strip()


def _column(options: Mapping[str, str], side: str, default: int) -> int:
    number = options.get(side, str(default))
    if not number.isdigit() or int(number) > 100:
        raise InvalidInput(
            f"{side}={number:.40}: in a table of pairs it is the number of a column, from 0"
        )
    return int(number)
