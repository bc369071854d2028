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
    not_supported,
    raw_of,
)
from modelmill.types import Json

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
    inputs = [_input_of(value, common) for value in values]
    raw = [data for data, _ in inputs]
    parameters = [own for _, own in inputs]
    results = [
        msgspec.json.decode(result)
        for result in await answers(request, raw, parameters)
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


def _input_of(value: Any, common: Json) -> tuple[bytes, Json]:
    """The data and parameters of an input: a text, or token ids as a parameter; raises
    `InvalidInput`.
    """
    if isinstance(value, list):
        return b"", {**common, "token_ids": value}
    return raw_of(value, "text", "input"), common


ROUTES = [Endpoint("POST", "/v1/embeddings", embeddings)]
