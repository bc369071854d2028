"""OpenAI's embeddings: texts, or token ids of a caller who cut them, as vectors."""

from collections.abc import Mapping
from typing import Any

import msgspec

from modelmill.errors import InvalidInput
from modelmill.protocols.base import Endpoint, Request, Response, read_json
from modelmill.protocols.inputs import (
    VECTORS,
    answers,
    check_count,
    listed,
    pick,
    raw_of,
)
from modelmill.serve.gateway import Gateway
from modelmill.types import Json, KeyInfo

NAME = "openai"
MOST = 2048
"""Inputs in one request, as OpenAI takes them."""
PASSED = ("dimensions", "encoding_format")


async def embeddings(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """A vector for each input, as numbers or as base64 of little-endian float32."""
    document = read_json(await request.content())
    if (
        not isinstance(document, dict)
        or not isinstance(document.get("model"), str)
        or "input" not in document
    ):
        raise InvalidInput('the JSON wants the form {"model": ..., "input": ...}')
    route = pick(gateway, caller, request, document["model"])
    if route.task != VECTORS:
        raise InvalidInput(
            f"'{route.deployment}' makes no vectors of texts: its task is {route.task or 'unknown'}"
        )
    gateway.refuse_unservable(route)
    common = {
        "usage": True,
        **{name: document[name] for name in PASSED if document.get(name) is not None},
    }
    given = listed(document["input"])
    check_count("input", given, MOST)
    inputs = [inputs_of(one, common) for one in given]
    raw, parameters = [data for data, _ in inputs], [how for _, how in inputs]
    found = [
        msgspec.json.decode(one)
        for one in await answers(gateway, caller, request, route, NAME, raw, parameters)
    ]
    tokens = sum(one["tokens"] for one in found)
    data = [
        {"object": "embedding", "index": at, "embedding": one["embedding"]}
        for at, one in enumerate(found)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Response(
        msgspec.json.encode(
            {"object": "list", "data": data, "model": route.deployment, "usage": usage}
        )
    )


def inputs_of(one: Any, common: Json) -> tuple[bytes, Json]:
    """What is sent for an input: a text, or nothing beside its token ids; raises `InvalidInput`."""
    if isinstance(one, list):
        return b"", {**common, "token_ids": one}
    return raw_of(one, "text", "input"), common


ROUTES = [Endpoint("POST", "/v1/embeddings", embeddings)]
