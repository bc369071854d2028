"""The generate extension of the Open Inference Protocol v2, as Triton has it: a text in, its
continuation out.

`generate` answers once with `text_output`, `generate_stream` with an event for each new piece.
"""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from modelmill.errors import InvalidInput, MillError
from modelmill.protocols.base import (
    Endpoint,
    Request,
    Response,
    StreamingResponse,
    read_json,
)
from modelmill.protocols.inputs import not_supported, parameters_of
from modelmill.protocols.streams import after_first, event
from modelmill.types import Json, ServedVersion

TOP_LEVEL = frozenset({"id", "parameters", "text_input"})


async def generate(request: Request) -> Response:
    """The whole continuation."""
    text, parameters = await _read(request)
    answer = await request.predict(data=text, parameters=parameters)
    generated = msgspec.json.decode(answer.data)["generated_text"]
    return Response(msgspec.json.encode(_answer(request.version, generated)))


async def generate_stream(request: Request) -> StreamingResponse:
    """The continuation as it is written."""
    text, parameters = await _read(request)
    return StreamingResponse(
        await after_first(_events(request, text, parameters))
    )


async def _events(
    request: Request, text: bytes, parameters: Json
) -> AsyncGenerator[bytes]:
    """An event for each piece, or an empty one; an error after the first is an event too."""
    sent = False
    try:
        async for part in request.stream(text, parameters):
            if part.text:
                sent = True
                yield event(_answer(request.version, part.text))
    except MillError as failure:
        if not sent:
            raise
        yield event({"error": failure.message})
    else:
        if not sent:
            yield event(_answer(request.version, ""))


async def _read(request: Request) -> tuple[bytes, Json]:
    """Picks the version; returns the text and its parameters. Raises `InvalidInput`."""
    version = request.pick(request.names["model"])
    if not version.grows:
        raise InvalidInput(
            f"{not_supported(version, 'text generation')}; use infer"
        )
    request.gateway.refuse_unservable(version)
    document: Any = read_json(await request.content())
    text = document.get("text_input") if isinstance(document, dict) else None
    if not isinstance(text, str):
        raise InvalidInput(
            'the JSON wants the form {"text_input": ..., "parameters": {...}}'
        )
    return text.encode("utf-8", "replace"), _parameters(document)


def _parameters(document: Json) -> Json:
    """Those of a document; Triton's own clients write them as top-level fields."""
    own = {
        name: value for name, value in document.items() if name not in TOP_LEVEL
    }
    parameters = {**own, **parameters_of(document)}
    parameters.pop("stream", None)
    return parameters


def _answer(version: ServedVersion, text: str) -> Json:
    return {
        "model_name": version.deployment,
        "model_version": str(version.version),
        "text_output": text,
    }


ROUTES = [
    Endpoint("POST", "/v2/models/{model}/generate", generate),
    Endpoint("POST", "/v2/models/{model}/generate_stream", generate_stream),
    Endpoint(
        "POST", "/v2/models/{model}/versions/{version}/generate", generate
    ),
    Endpoint(
        "POST",
        "/v2/models/{model}/versions/{version}/generate_stream",
        generate_stream,
    ),
]
