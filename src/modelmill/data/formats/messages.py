"""Conversations as JSON lines: each line has `messages`, a list of a role and a content each."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from modelmill.data.base import Item, Source, check_options
from modelmill.data.conversations import NEXT, spoken
from modelmill.data.formats._text import split_in_name
from modelmill.data.magic import extension
from modelmill.errors import InvalidInput

INPUT = "text"
TARGET = "none"
SUMMARY = (
    'JSON lines of {"messages": [{"role": "user", "content": "..."}, ...]}; splits by the '
    "files' names"
)
OPTIONS: dict[str, str] = {}
LIMIT = 1 << 30
SHOWN = 80


def detect(source: Source) -> bool:
    """Whether the first line of a .jsonl file has messages."""
    for name in _files(source):
        head = source.read(name, LIMIT)[:65_536].lstrip()
        return (
            head.startswith(b"{") and b'"messages"' in head.split(b"\n", 1)[0]
        )
    return False


def _files(source: Source) -> list[str]:
    return [
        name for name in source.names if extension(name) in ("jsonl", "ndjson")
    ]


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """Each line as one text, named `FILE:LINE`; raises `InvalidInput` where there is no .jsonl."""
    check_options(options, OPTIONS)
    names = _files(source)
    if not names:
        raise InvalidInput(f"'{source.title}' holds no .jsonl files")
    for name in names:
        split = split_in_name(name)
        for number, line in enumerate(source.read(name, LIMIT).splitlines(), 1):
            if line.strip():
                yield _item(f"{name}:{number}", line, split)


def _item(name: str, line: bytes, split: str | None) -> Item:
    try:
        # The last answer ends where the text does.
        text = spoken(_messages(line)).removesuffix(NEXT)
    except (InvalidInput, ValueError, RecursionError) as error:
        problem = f"is no conversation: {str(error)[:SHOWN]}"
        return Item(name, "", "", split, problem)
    return Item(name, "", text, split)


def _messages(line: bytes) -> list[dict[str, str]]:
    document: Any = json.loads(line)
    messages = document.get("messages") if isinstance(document, dict) else None
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("it has no list messages")
    if not all(map(_is_message, messages)):
        raise InvalidInput("a message wants a role and a content, both texts")
    return messages


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(field), str) for field in ("role", "content")
    )
