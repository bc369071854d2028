"""The generate extension of the Open Inference Protocol v2, as Triton has it: a text in, its
continuation out.

`generate` answers at once with `text_output`, `generate_stream` with what has come since the last
event.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec

from modelmill.errors import InvalidInput, MillError
from modelmill.protocols.base import (
    Endpoint,
    Request,
    Response,
    Stream,
    read_json,
)
from modelmill.protocols.inputs import parameters_of
from modelmill.protocols.streams import begun, event
from modelmill.serve.gateway import Gateway
from modelmill.types import Json, KeyInfo, ServedVersion

NAME = "v2_http"
AROUND = frozenset({"id", "parameters", "text_input"})


async def generate(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """The whole continuation."""
    route, data, parameters = await _asked(gateway, caller, request, names)
    answer = await gateway.predict(
        caller,
        route,
        NAME,
        data=data,
        parameters=parameters,
        gone=request.gone,
        request_id=request.id,
    )
    found = msgspec.json.decode(answer.data)
    return Response(msgspec.json.encode(_answer(route, found["generated_text"])))


async def generate_stream(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Stream:
    """The continuation as it comes."""
    route, data, parameters = await _asked(gateway, caller, request, names)

    async def events() -> AsyncGenerator[bytes]:
        sent = False
        stream = gateway.stream(
            caller,
            route,
            NAME,
            data=data,
            parameters=parameters,
            gone=request.gone,
            request_id=request.id,
        )
        try:
            async for part in stream:
                if part.text:
                    sent = True
                    yield event(_answer(route, part.text))
        except MillError as failure:
            if not sent:
                raise
            yield event({"error": failure.message})
        else:
            if not sent:
                yield event(_answer(route, ""))

    return Stream(await begun(events()))


async def _asked(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> tuple[ServedVersion, bytes, Json]:
    """The deployment, the text and its parameters; raises `InvalidInput`."""
    route = gateway.pick(caller, names["model"], names.get("version"))
    if not route.grows:
        raise InvalidInput(
            f"'{route.deployment}' writes no texts: its task is {route.task or 'unknown'}; use "
            "infer"
        )
    gateway.refuse_unservable(route)
    document: Any = read_json(await request.content())
    if not isinstance(document, dict) or not isinstance(
        document.get("text_input"), str
    ):
        raise InvalidInput(
            'the JSON wants the form {"text_input": ..., "parameters": {...}}'
        )
    # Triton's own clients write what a model is told beside the text.
    beside = {name: value for name, value in document.items() if name not in AROUND}
    parameters = {
        name: value
        for name, value in {**beside, **parameters_of(document)}.items()
        if name != "stream"
    }
    return route, document["text_input"].encode("utf-8", "replace"), parameters


def _answer(route: ServedVersion, text: str) -> Json:
    return {
        "model_name": route.deployment,
        "model_version": str(route.version),
        "text_output": text,
    }


ROUTES = [
    Endpoint("POST", "/v2/models/{model}/generate", generate),
    Endpoint("POST", "/v2/models/{model}/generate_stream", generate_stream),
    Endpoint("POST", "/v2/models/{model}/versions/{version}/generate", generate),
    Endpoint(
        "POST", "/v2/models/{model}/versions/{version}/generate_stream", generate_stream
    ),
]
