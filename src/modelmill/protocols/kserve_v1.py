"""KServe's v1 protocol, which is TensorFlow Serving's: `instances` in, `predictions` out.

An instance of a task model is a text, or a picture as base64, `{"b64": ...}` or `{"image": {"b64":
...}}`; of a model without a task it is a nested list, or an object of them by input name. `inputs`
instead of `instances` holds whole columns, and is answered with `outputs`. Whether a model is
ready, and the list of models, is in `openai/models.py`: the paths are the same.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from modelmill.errors import InvalidInput, NotInstalled
from modelmill.protocols.base import Endpoint, Request, Response, read_json
from modelmill.protocols.inputs import (
    VERSION,
    answers,
    check_count,
    parameters_of,
    pick,
    raw_of,
    renewed,
)
from modelmill.protocols.openai import errors
from modelmill.protocols.rows import ROWS, from_columns, from_rows, to_columns, to_rows
from modelmill.serve.gateway import Gateway
from modelmill.types import Json, KeyInfo, ServedVersion

error = errors.error

FORM = 'the JSON wants the form {"instances": [...]} or {"inputs": ...}'
NAME = "kserve_v1"


async def predict(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """Predictions for instances: texts, pictures or rows of tensors."""
    route = pick(gateway, caller, request, names["name"])
    gateway.refuse_unservable(route)
    document = read_json(await request.content())
    route = renewed(gateway, caller, request, route)  # it may have been rolled
    return await respond(gateway, caller, request, route, document, NAME)


async def explain(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """501: there is no explainer."""
    route = gateway.route(caller, names["name"])
    raise NotInstalled(
        f"'{route.deployment}' has no explainer: only :predict is served"
    )


async def respond(
    gateway: Gateway,
    caller: KeyInfo,
    request: Request,
    route: ServedVersion,
    document: Any,
    protocol: str,
) -> Response:
    """The answer to a document with `instances` or `inputs`; raises `InvalidInput`."""
    if (
        not isinstance(document, dict)
        or len({"instances", "inputs"} & document.keys()) != 1
    ):
        raise InvalidInput(FORM)
    if route.kind == "tensor":
        return await _tensors(gateway, caller, request, route, document, protocol)
    by_row = "instances" in document
    given = document["instances"] if by_row else _column(document["inputs"], route.kind)
    if not isinstance(given, list):
        raise InvalidInput(FORM)
    check_count("instances" if by_row else "inputs", given)
    inputs = [_raw(value, route.kind, number) for number, value in enumerate(given)]
    found = await answers(
        gateway, caller, request, route, protocol, inputs, parameters_of(document)
    )
    return Response(
        b'{"%s":[%s]}' % (b"predictions" if by_row else b"outputs", b",".join(found))
    )


def _column(inputs: Any, kind: str) -> Any:
    """The only column that a task model has, with or without its name."""
    return (
        inputs[kind] if isinstance(inputs, dict) and inputs.keys() == {kind} else inputs
    )


def _raw(value: Any, kind: str, number: int) -> bytes:
    if isinstance(value, dict) and value.keys() == {kind}:
        value = value[kind]
    return raw_of(value, kind, f"instance {number}")


async def _tensors(
    gateway: Gateway,
    caller: KeyInfo,
    request: Request,
    route: ServedVersion,
    document: Json,
    protocol: str,
) -> Response:
    """All rows of a request go as one call."""
    parameters = parameters_of(document)
    by_row = "instances" in document
    if by_row:
        if not isinstance(document["instances"], list):
            raise InvalidInput(FORM)
        check_count("instances", document["instances"], ROWS)
        tensors = from_rows(document["instances"], route)
    else:
        tensors = from_columns(document["inputs"], route)
    answer = await gateway.predict(
        caller,
        route,
        protocol,
        tensors=tensors,
        parameters=parameters,
        gone=request.gone,
        request_id=request.id,
        pinned=VERSION in request.headers,
    )
    if by_row:
        return Response(
            msgspec.json.encode(
                {"predictions": to_rows(answer, len(document["instances"]))}
            )
        )
    return Response(msgspec.json.encode({"outputs": to_columns(answer)}))


ROUTES = [
    Endpoint("POST", "/v1/models/{name:path}:predict", predict),
    Endpoint("POST", "/v1/models/{name:path}:explain", explain),
]
