"""OpenAI's embeddings: texts, or token ids of a caller who cut them, as vectors."""

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

MOST = 2048
"""Inputs in one request, as OpenAI takes them."""
PASSED = ("dimensions", "encoding_format")


async def embeddings(request: Request) -> Response:
    """A vector for each input, as numbers or as base64 of little-endian float32."""
    document = read_json(await request.content())
    if (
        not isinstance(document, dict)
        or not isinstance(document.get("model"), str)
        or "input" not in document
    ):
        raise InvalidInput('the JSON wants the form {"model": ..., "input": ...}')
    version = request.pick(document["model"])
    if version.task != VECTORS:
        raise not_supported(version, "text embeddings")
    request.gateway.refuse_unservable(version)
    common = {
        "usage": True,
        **{name: document[name] for name in PASSED if document.get(name) is not None},
    }
    values = listed(document["input"])
    check_count("input", values, MOST)
    inputs = [_input_of(value, at, len(values)) for at, value in enumerate(values)]
    results = [
        msgspec.json.decode(result) for result in await answers(request, inputs, common)
    ]
    tokens = sum(result["tokens"] for result in results)
    data = [
        {"object": "embedding", "index": index, "embedding": result["embedding"]}
        for index, result in enumerate(results)
    ]
    answer = {
        "object": "list",
        "data": data,
        "model": version.deployment,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Response(msgspec.json.encode(answer))


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
