"""Recordings with transcriptions: in a table, in LibriSpeech's *.trans.txt, or in their names."""

import unicodedata
from collections.abc import Iterator, Mapping

from modelmill.data.base import Item, Source, check_options
from modelmill.data.formats import _sounds
from modelmill.data.formats._sounds import (
    compile_pattern,
    is_recording,
    match_any,
    part_of_name,
)
from modelmill.data.names import folder_of, split_of_file, split_of_folders
from modelmill.errors import InvalidInput

INPUT = "audio"
TARGET = "text"
SUMMARY = (
    "recordings with metadata.csv (file_name, transcription), LibriSpeech's *.trans.txt, or "
    "texts in their names"
)
OPTIONS = {
    "text": "regular expression whose group is the text in a file's name; default: what stands "
    "before the first _ or -",
    "words": "what that group stands for, as 0=zero,1=one",
    "case": "lower (the default) or keep",
    "test": "patterns of the names that are the test split, separated by commas, such as "
    "*_[0-4].wav",
    "val": "patterns of the names that are the validation split, separated by commas",
}
COLUMNS = (
    "transcription",
    "transcript",
    "text",
    "sentence",
    "label",
    "normalized_text",
)
DEFAULT_PATTERN = r"([^_\-]+)[_\-]"
TRANSCRIPTS = ".trans.txt"
LIMIT = 64 << 20


def detect(source: Source) -> bool:
    """Whether there are recordings."""
    return any(map(is_recording, source.names))


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All recordings by name; `target` is the transcription with single spaces. Raises
    `InvalidInput` for a bad option or table.
    """
    check_options(options, OPTIONS)
    case = options.get("case", "lower")
    if case not in ("lower", "keep"):
        raise InvalidInput("the option case is lower or keep")
    for item in _items(source, options):
        _set_target(item, keep_case=case == "keep")
        yield item


def _set_target(item: Item, *, keep_case: bool) -> None:
    """Make the label of an item, its transcription, its target."""
    text = unicodedata.normalize("NFC", " ".join(item.label.split()))
    item.target = text if keep_case else text.lower()
    item.label = ""
    if not text and not item.problem:
        item.problem = "nothing says what is said in it"


def _items(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """The recordings with their transcription as label."""
    tables = _sounds.tables_of(source)
    if tables:
        yield from _sounds.read_tables(source, tables, COLUMNS)
    elif any(name.endswith(TRANSCRIPTS) for name in source.names):
        yield from _librispeech(source)
    else:
        yield from _from_names(source, options)


def _librispeech(source: Source) -> Iterator[Item]:
    """Lines of a key and a text, beside the recordings of those keys."""
    recordings = {
        name.rpartition(".")[0]: name
        for name in source.names
        if is_recording(name)
    }
    for table in source.names:
        if table.endswith(TRANSCRIPTS):
            yield from _transcribed(source, table, recordings)


def _transcribed(
    source: Source, table: str, recordings: Mapping[str, str]
) -> Iterator[Item]:
    """The recordings of a table, which are found by their path without extension."""
    folder = folder_of(table)
    split = split_of_folders(folder.replace("-", "/"))
    content = source.read(table, LIMIT).decode("utf-8", "replace")
    for number, line in enumerate(content.splitlines(), 1):
        key, _, text = line.partition(" ")
        name = recordings.get(f"{folder}/{key}" if folder else key)
        if name is None:
            problem = "there is no recording of this key beside it"
            yield Item(f"{table}:{number}", text, b"", split, problem)
        else:
            yield source.item(name, text, split)


def _from_names(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    pattern = compile_pattern(options.get("text", DEFAULT_PATTERN), "text")
    words = _words(options.get("words", ""))
    names = [name for name in source.names if is_recording(name)]
    if names and not match_any(pattern, names):
        raise _nothing_said(source)
    for name in names:
        text = part_of_name(pattern, name).replace("_", " ")
        split = split_of_file(name)
        split = split or _sounds.split_by_name(name, options)
        yield source.item(name, words.get(text, text), split)


def _nothing_said(source: Source) -> InvalidInput:
    return _sounds.missing_table(
        source,
        "what is said",
        (COLUMNS[0], "hello world"),
        "add LibriSpeech's *.trans.txt, or name the files after their texts, as hello_1.wav",
    )


def _words(pairs_text: str) -> dict[str, str]:
    parts = [part for part in pairs_text.split(",") if part.strip()]
    if not all("=" in part for part in parts):
        raise InvalidInput("the option words wants pairs, as 0=zero,1=one")
    return dict(map(_key_and_word, parts))


def _key_and_word(pair: str) -> tuple[str, str]:
    key, _, word = pair.partition("=")
    return key.strip(), word.strip()
