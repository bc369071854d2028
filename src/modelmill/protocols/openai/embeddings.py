"""OpenAI's embeddings: texts, or token ids of a caller who cut them, as vectors."""

from collections.abc import Sequence
from typing import Any

import msgspec

from modelmill.errors import InvalidInput
from modelmill.protocols.base import Endpoint, Request, Response, read_json
from modelmill.protocols.inputs import (
    VECTORS,
    answers,
    check_count,
    listed,
    named,
    not_supported,
    raw_of,
)
from modelmill.tasks.kinds import Sent, sent
from modelmill.types import Json

MOST = 2048
"""Inputs in one request, as OpenAI takes them."""
PASSED = ("dimensions", "encoding_format")


async def embeddings(request: Request) -> Response:
    """A vector for each input, as numbers or as base64 of little-endian float32."""
    document = _document(await request.content())
    version = request.pick(document["model"])
    if version.task != VECTORS:
        raise not_supported(version, "text embeddings")
    request.gateway.refuse_unservable(version)
    given = {
        name: document[name]
        for name in PASSED
        if document.get(name) is not None
    }
    inputs = _inputs_of(document["input"])
    found = await answers(request, inputs, {"usage": True, **given})
    return Response(
        _answer(version.deployment, list(map(msgspec.json.decode, found)))
    )


def _document(body: bytes) -> Json:
    """The body of a request; raises `InvalidInput`."""
    document = read_json(body)
    if (
        not isinstance(document, dict)
        or not isinstance(document.get("model"), str)
        or "input" not in document
    ):
        raise InvalidInput(
            'the JSON wants the form {"model": ..., "input": ...}'
        )
    return document


def _answer(deployment: str, results: Sequence[Json]) -> bytes:
    """Vectors with what they cost, in OpenAI's shape."""
    tokens = sum(result["tokens"] for result in results)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": result["embedding"],
        }
        for index, result in enumerate(results)
    ]
    answer = {
        "object": "list",
        "data": data,
        "model": deployment,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return msgspec.json.encode(answer)


def _inputs_of(value: Any) -> list[bytes | Sent]:
    """The inputs of a request; raises `InvalidInput`."""
    values = listed(value)
    check_count("input", values, MOST)
    return [
        _input_of(one, number, len(values)) for number, one in enumerate(values)
    ]


def _input_of(value: Any, number: int, count: int) -> bytes | Sent:
    """An input: a text, or token ids; raises `InvalidInput`, which says which of several it is."""
    if not isinstance(value, list):
        return raw_of(value, "text", "input")
    try:
        return sent("token_ids", value, "input")
    except InvalidInput as error:
        if count == 1:
            raise
        raise named(error, number) from error


ROUTES = [Endpoint("POST", "/v1/embeddings", embeddings)]
