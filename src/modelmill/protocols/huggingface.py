"""The Hugging Face Inference API: `POST /models/{name}` in the shape of the deployment's task.

A picture comes as the raw bytes or as base64 in `{"inputs": ..., "parameters": {...}}`, a text as `inputs`.
"""

import binascii
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import msgspec

from modelmill.errors import InvalidInput
from modelmill.protocols.base import Request, Response, Route, read_json, simple_error
from modelmill.serve.gateway import Gateway
from modelmill.types import KeyInfo

error = simple_error

BATCH = 128


async def infer(gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]) -> Response:
    """One input, or a list of texts."""
    route = gateway.route(caller, names["name"])
    gateway.refuse_unservable(route)
    body = await request.body()
    inputs, parameters, many = _read(body, request.header(b"content-type"), route.kind)
    answers = []
    for one in inputs:
        answer = await gateway.predict(caller, route, "huggingface", data=one, parameters=parameters)
        answers.append(answer.data)
    # Text tasks answer one list per input, also for a single one; vision answers the list itself.
    if many or route.kind == "text":
        return Response(b"[" + b",".join(answers) + b"]")
    return Response(answers[0])


def _read(body: bytes, content_type: str, kind: str) -> tuple[list[bytes], dict[str, Any], bool]:
    """Raw inputs, parameters, and whether a list was sent."""
    if not body:
        raise InvalidInput(f"the body is empty: send {'a picture' if kind == 'image' else 'JSON with inputs'}")
    if content_type.startswith("multipart/"):
        raise InvalidInput(
            "multipart/form-data is not taken: send the file itself as the body (curl --data-binary @FILE)"
        )
    json_like = content_type.startswith("application/json") or body.lstrip()[:1] == b"{"
    if kind == "image" and not json_like:
        return [body], {}, False
    if kind == "text" and content_type.startswith("text/plain"):
        return [body], {}, False
    document = read_json(body)
    if not isinstance(document, dict) or "inputs" not in document:
        raise InvalidInput('the JSON wants the form {"inputs": ..., "parameters": {...}}')
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidInput("parameters is an object of names and values")
    inputs = document["inputs"]
    many = isinstance(inputs, list)
    if many and not 1 <= len(inputs) <= BATCH:
        raise InvalidInput(f"inputs is a list of 1 to {BATCH} entries, not {len(inputs)}")
    return [_raw(one, kind) for one in (inputs if many else [inputs])], parameters, many


def _raw(value: Any, kind: str) -> bytes:
    if not isinstance(value, str):
        what = "a picture as base64" if kind == "image" else "a text"
        raise InvalidInput(f"inputs holds {what}, as a string, not {type(value).__name__}")
    if kind == "text":
        return value.encode("utf-8", "surrogatepass")
    try:
        return b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("inputs is not valid base64 of a picture") from error


async def info(gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]) -> Response:
    """What the deployment is, as the hub describes a model."""
    route = gateway.route(caller, names["name"])
    document = {
        "id": route.deployment,
        "pipeline_tag": route.task,
        "library_name": "modelmill",
        "input": route.kind,
        "labels": route.labels,
        "sha": f"{route.model}:{route.version}",
    }
    return Response(msgspec.json.encode(document))


ROUTES = [Route("POST", "/models/{name}", infer), Route("GET", "/models/{name}", info)]
