"""Sentences and their translations: files of aligned lines, a language each, or tables of pairs."""

import gzip
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from itertools import zip_longest
from typing import BinaryIO

from modelmill.data.base import Item, Source, check_options, guarded
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
LANGUAGE = re.compile(r"(.+)\.([a-z]{2,3}(?:[-_][A-Za-z]{2,4})?)", re.IGNORECASE)
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
    if len(_aligned(_kept(source, {}))) > 1:
        return True
    tables = _tables(_kept(source, {}))
    if not tables or len(tables) < len(source.names):
        return False
    with source.open(tables[0]) as file:
        first = next(lines(file), (b"", True))[0]
    return 1 <= first.count(b"\t") <= 3


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """A pair each, named `FILE:LINE`; raises `InvalidInput` where languages can't be told or do not
    align.
    """
    check_options(options, OPTIONS)
    kept = _kept(source, options)
    languages = _aligned(kept)
    if len(languages) > 1:
        yield from _lines(source, languages, *_chosen(sorted(languages), options))
        return
    tables = _tables(kept)
    if not tables:
        raise InvalidInput(
            f"'{source.title}' holds no files of two languages, such as train.en and train.de"
        )
    for name in tables:
        yield from _pairs(
            source, name, _column(options, "source", 0), _column(options, "target", 1)
        )


def _kept(source: Source, options: Mapping[str, str]) -> list[str]:
    patterns = [
        one.strip() for one in options.get("skip", "").split(",") if one.strip()
    ]
    return [
        name
        for name in source.names
        if not any(fnmatch(name, pattern) for pattern in patterns)
    ]


def _aligned(names: list[str]) -> dict[str, dict[str, str]]:
    """Files by language, each by what it shares with its translation."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        match = LANGUAGE.fullmatch(name.removesuffix(".gz"))
        if match and match[2].lower() not in NOT_LANGUAGES:
            found.setdefault(match[2], {})[match[1]] = name
    return {
        language: files
        for language, files in found.items()
        if _shared(files, found, language)
    }


def _shared(
    files: dict[str, str], found: Mapping[str, dict[str, str]], language: str
) -> bool:
    others = set().union(
        *(other.keys() for name, other in found.items() if name != language)
    )
    return not others.isdisjoint(files)


def _tables(names: list[str]) -> list[str]:
    return [name for name in names if extension(name) in TABLES]


def _chosen(languages: list[str], options: Mapping[str, str]) -> tuple[str, str]:
    """The two languages; raises `InvalidInput`."""
    for side in ("source", "target"):
        if options.get(side, languages[0]) not in languages:
            raise InvalidInput(
                f"there is no language '{options[side]}': {', '.join(languages)}"
            )
    source, target = options.get("source"), options.get("target")
    left = [one for one in languages if one not in (source, target)]
    source = source or left.pop(0)
    target = target or (left[0] if left else "")
    if (
        not target
        or source == target
        or (len(languages) > 2 and not {"source", "target"} <= options.keys())
    ):
        raise InvalidInput(
            f"say source=LANGUAGE and target=LANGUAGE; there are: {', '.join(languages)}"
        )
    return source, target


def _lines(
    source: Source, languages: dict[str, dict[str, str]], one: str, other: str
) -> Iterator[Item]:
    for stem, name in languages[one].items():
        if stem not in languages[other]:
            continue
        split = split_in_name(f"{stem}.txt")
        with (
            _open(source, name) as left,
            _open(source, languages[other][stem]) as right,
        ):
            both = zip_longest(lines(left), lines(right))
            for number, (said, meant) in enumerate(both, 1):
                if said is None or meant is None:
                    raise InvalidInput(
                        f"{name} and {languages[other][stem]} have different numbers of lines"
                    )
                yield _item(f"{stem}:{number}", said[0], meant[0], split)


def _pairs(source: Source, name: str, one: int, other: int) -> Iterator[Item]:
    split = split_in_name(name)
    with source.open(name) as file:
        for number, (line, _) in enumerate(lines(file), 1):
            parts = line.split(b"\t")
            if len(parts) <= max(one, other):
                said = f"has {len(parts)} columns between tabs"
                yield Item(
                    f"{name}:{number}", "", line.decode("utf-8", "replace"), split, said
                )
                continue
            yield _item(f"{name}:{number}", parts[one], parts[other], split)


def _item(name: str, said: bytes, meant: bytes, split: str | None) -> Item:
    try:
        text = said.decode("utf-8-sig").strip()
        translation = meant.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        return Item(
            name,
            "",
            said.decode("utf-8", "replace"),
            split,
            f"is not UTF-8: {error.reason}",
        )
    problem = "has no translation" if text and not translation else ""
    return Item(name, "", text, split, problem, target=(translation,))


def _open(source: Source, name: str) -> BinaryIO:
    file = source.open(name)
    return guarded(gzip.GzipFile(fileobj=file), name) if name.endswith(".gz") else file


def _column(options: Mapping[str, str], side: str, usual: int) -> int:
    told = options.get(side, str(usual))
    if not told.isdigit() or int(told) > 100:
        raise InvalidInput(
            f"{side}={told:.40}: in a table of pairs it is the number of a column, from 0"
        )
    return int(told)
