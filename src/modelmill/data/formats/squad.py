"""Extractive question answering: SQuAD's JSON, version 1.1 or 2, in any language."""

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

from modelmill.data.base import Item, Source, check_options
from modelmill.data.formats._text import split_in_name
from modelmill.data.magic import extension
from modelmill.errors import InvalidInput

INPUT = "question"
TARGET = "answers"
SUMMARY = (
    "SQuAD's JSON, version 1.1 or 2 (train-v1.1.json, dev-v1.1.json): questions about "
    "passages"
)
OPTIONS = {
    split: f"patterns of the files that are the {what}, separated by commas, such as *_dev.json"
    for split, what in (
        ("train", "training split"),
        ("val", "validation split"),
        ("test", "test split"),
    )
}
LIMIT = 1 << 30


def detect(source: Source) -> bool:
    """Whether a JSON file begins like SQuAD's."""
    for name in source.names:
        if extension(name) == "json":
            with source.open(name) as file:
                head = file.read(4096)
            return b'"data"' in head and (
                b'"paragraphs"' in head or b'"title"' in head
            )
    return False


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """Every question, named `FILE:ID`; raises `InvalidInput` for a file in another form."""
    check_options(options, OPTIONS)
    names = [name for name in source.names if extension(name) == "json"]
    if not names:
        raise InvalidInput(f"'{source.title}' holds no .json files")
    for name in names:
        yield from _items(source, name, _split_of_file(name, options))


def _split_of_file(name: str, options: Mapping[str, str]) -> str | None:
    """The split whose patterns match a file, or that its name tells."""
    for split in OPTIONS:
        if _matches(name, options.get(split, "")):
            return split
    return split_in_name(name)


def _items(source: Source, name: str, split: str | None) -> Iterator[Item]:
    """The questions of a file; where an id comes twice, its number is added."""
    seen: set[str] = set()
    questions = _questions(_document(source, name), name)
    for number, (context, question) in enumerate(questions):
        item_name = f"{name}:{question.get('id', number)}"
        if item_name in seen:
            item_name = f"{item_name}#{number}"
        seen.add(item_name)
        yield _item(item_name, context, question, split)


def _document(source: Source, name: str) -> Any:
    try:
        return json.loads(source.read(name, LIMIT))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"'{name}' is no JSON: {str(error)[:100]}"
        ) from error


def _matches(name: str, patterns: str) -> bool:
    return any(
        fnmatch(name, pattern.strip())
        for pattern in patterns.split(",")
        if pattern.strip()
    )


def _questions(
    document: Any, name: str
) -> Iterator[tuple[Any, dict[str, Any]]]:
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield paragraph["context"], dict(question)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"'{name}' is not in SQuAD's form: data, paragraphs, context, qas are wanted"
        ) from error


def _item(
    name: str, context: Any, question: dict[str, Any], split: str | None
) -> Item:
    wording = question.get("question")
    if not isinstance(context, str) or not isinstance(wording, str):
        return Item(name, "", "", split, "has no question or no passage")
    data = json.dumps(
        {"question": wording, "context": context}, ensure_ascii=False
    )
    try:
        return Item(name, "", data, split, target=_answers(question, context))
    except InvalidInput as error:
        return Item(name, "", data, split, error.message)


def _answers(
    question: dict[str, Any], context: str
) -> tuple[tuple[Any, Any], ...]:
    """The different answers of a question, each a text and its offset; raises `InvalidInput`."""
    truths = (
        [] if question.get("is_impossible") else question.get("answers") or []
    )
    if not isinstance(truths, list):
        raise InvalidInput("has answers of no known form")
    answers = [
        answer for answer in map(_answer, truths) if _is_at(answer, context)
    ]
    if truths and not answers:
        raise InvalidInput("has an answer that is not where it says")
    return tuple(dict.fromkeys(answers))


def _answer(answer: Any) -> tuple[Any, Any]:
    """The text and offset of an answer, of any type."""
    fields = answer if isinstance(answer, dict) else {}
    return fields.get("text"), fields.get("answer_start")


def _is_at(answer: tuple[Any, Any], context: str) -> bool:
    """Whether the passage has the answer's text at its offset."""
    text, start = answer
    if not isinstance(text, str) or type(start) is not int or not text:
        return False
    return context[start : start + len(text)] == text
