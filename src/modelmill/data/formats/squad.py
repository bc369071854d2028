"""Questions about passages, whose answers are parts of them: SQuAD's JSON, version 1.1 or 2, in any
language.
"""

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
    """Whether a JSON file begins as SQuAD's do."""
    for name in source.names:
        if extension(name) == "json":
            with source.open(name) as file:
                head = file.read(4096)
            return b'"data"' in head and (b'"paragraphs"' in head or b'"title"' in head)
    return False


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """Every question, named `FILE:ID`; raises `InvalidInput` where a file is none of SQuAD's."""
    check_options(options, OPTIONS)
    names = [name for name in source.names if extension(name) == "json"]
    if not names:
        raise InvalidInput(f"'{source.title}' holds no .json files")
    for name in names:
        split = next(
            (one for one in OPTIONS if _is_one(name, options.get(one, ""))),
            split_in_name(name),
        )
        try:
            document = json.loads(source.read(name, LIMIT))
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"'{name}' is no JSON: {str(error)[:100]}") from error
        seen: set[str] = set()
        for place, (context, question) in enumerate(_questions(document, name)):
            item = _item(
                f"{name}:{question.get('id', place)}", context, question, split
            )
            if item.name in seen:
                item.name = f"{item.name}#{place}"
            seen.add(item.name)
            yield item


def _is_one(name: str, patterns: str) -> bool:
    return any(
        fnmatch(name, pattern.strip())
        for pattern in patterns.split(",")
        if pattern.strip()
    )


def _questions(document: Any, name: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield paragraph["context"], dict(question)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"'{name}' is not in SQuAD's form: data, paragraphs, context, qas are wanted"
        ) from error


def _item(name: str, context: Any, question: dict[str, Any], split: str | None) -> Item:
    asked = question.get("question")
    if not isinstance(context, str) or not isinstance(asked, str):
        return Item(name, "", "", split, "has no question or no passage")
    data = json.dumps({"question": asked, "context": context}, ensure_ascii=False)
    answers, problem = [], ""
    given = [] if question.get("is_impossible") else question.get("answers") or []
    for answer in given if isinstance(given, list) else []:
        text, start = (
            (answer.get("text"), answer.get("answer_start"))
            if isinstance(answer, dict)
            else (None, None)
        )
        if (
            not isinstance(text, str)
            or type(start) is not int
            or context[start : start + len(text)] != text
            or not text
        ):
            problem = "has an answer that is not where it says"
        else:
            answers.append((text, start))
    if given and not answers:
        return Item(name, "", data, split, problem or "has answers of no known form")
    return Item(name, "", data, split, target=tuple(dict.fromkeys(answers)))
