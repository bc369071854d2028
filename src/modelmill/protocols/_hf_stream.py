"""Hugging Face's streamed text generation: an event for each token, the last of which has the whole
text.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from modelmill.errors import InvalidInput, MillError
from modelmill.protocols._growing import begun, event
from modelmill.protocols.base import Request, Stream, read_json
from modelmill.serve.gateway import Gateway
from modelmill.types import Json, KeyInfo, ServedVersion, StreamPart


def wants_stream(route: ServedVersion, body: bytes) -> bool:
    """Whether a body asks a model that writes for a stream."""
    if not route.grows or b'"stream"' not in body:
        return False
    try:
        document = read_json(body)
    except InvalidInput:
        return False  # who reads the body says what is wrong with it
    return isinstance(document, dict) and document.get("stream") is True


async def streamed(
    gateway: Gateway,
    caller: KeyInfo,
    request: Request,
    route: ServedVersion,
    data: bytes,
    parameters: Mapping[str, Any],
) -> Stream:
    """Events as they come; raises what is wrong from the beginning."""

    async def events() -> AsyncGenerator[bytes]:
        whole, sent = "", False
        stream = gateway.stream(
            caller,
            route,
            "huggingface",
            data=data,
            parameters=parameters,
            gone=request.gone,
            request_id=request.id,
        )
        try:
            async for part in stream:
                whole, sent = whole + part.text, True
                yield event(_token(part, whole))
        except MillError as failure:
            if not sent:
                raise
            yield event({"error": failure.message, "error_type": failure.code})

    return Stream(await begun(events()))


def _token(part: StreamPart, whole: str) -> Json:
    details = (
        {"finish_reason": part.ended_by, "generated_tokens": part.number}
        if part.finish_reason
        else None
    )
    return {
        "index": part.number,
        "token": {
            "id": part.token,
            "text": part.text,
            "logprob": part.logprob and part.logprob["logprob"],
            "special": part.special,
        },
        "generated_text": whole if part.finish_reason else None,
        "details": details,
    }
