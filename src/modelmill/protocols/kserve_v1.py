"""KServe's v1 protocol, which is TensorFlow Serving's: `instances` in, `predictions` out.

An instance of a task model is a text, or a picture as base64, `{"b64": ...}` or `{"image": {"b64":
...}}`; of a model without a task it is a nested list, or an object of them by input name. `inputs`
instead of `instances` holds whole columns, and is answered with `outputs`. Whether a model is
ready, and the list of models, is in `openai/models.py`: the paths are the same.
"""

from typing import Any

import msgspec

from modelmill.errors import InvalidInput, NotInstalled
from modelmill.protocols.base import Endpoint, Request, Response, read_json
from modelmill.protocols.inputs import (
    answers,
    check_count,
    parameters_of,
    raw_of,
)
from modelmill.protocols.openai import errors
from modelmill.protocols.rows import (
    ROWS,
    from_columns,
    from_rows,
    to_columns,
    to_rows,
)
from modelmill.serve.wire import Tensor
from modelmill.tasks.kinds import TENSOR
from modelmill.types import Json, ServedVersion

error = errors.error

FORM = 'the JSON wants the form {"instances": [...]} or {"inputs": ...}'
NAME = "kserve_v1"


async def predict(request: Request) -> Response:
    """Predictions for instances: texts, pictures or rows of tensors."""
    request.gateway.refuse_unservable(request.pick(request.names["name"]))
    document = read_json(await request.content())
    request.pick_again()  # it may have left while the body was read
    return await respond(request, document)


async def explain(request: Request) -> Response:
    """501: there is no explainer."""
    version = request.gateway.route(request.caller, request.names["name"])
    raise NotInstalled(
        f"'{version.deployment}' has no explainer: only :predict is served"
    )


async def respond(request: Request, document: Any) -> Response:
    """The answer of the picked version to a document with `instances` or `inputs`; raises
    `InvalidInput`.
    """
    if (
        not isinstance(document, dict)
        or len({"instances", "inputs"} & document.keys()) != 1
    ):
        raise InvalidInput(FORM)
    if request.version.kind == TENSOR:
        return await _tensors(request, document)
    results = await answers(
        request,
        _inputs(document, request.version.kind),
        parameters_of(document),
    )
    name = b"predictions" if "instances" in document else b"outputs"
    return Response(b'{"%s":[%s]}' % (name, b",".join(results)))


def _inputs(document: Json, kind: str) -> list[bytes]:
    """The raw inputs of a document for a task model; raises `InvalidInput`."""
    by_row = "instances" in document
    values = (
        document["instances"] if by_row else _column(document["inputs"], kind)
    )
    if not isinstance(values, list):
        raise InvalidInput(FORM)
    check_count("instances" if by_row else "inputs", values)
    return [_raw(value, kind, number) for number, value in enumerate(values)]


def _column(inputs: Any, kind: str) -> Any:
    """The only column that a task model has, with or without its name."""
    return (
        inputs[kind]
        if isinstance(inputs, dict) and inputs.keys() == {kind}
        else inputs
    )


def _raw(value: Any, kind: str, number: int) -> bytes:
    if isinstance(value, dict) and value.keys() == {kind}:
        value = value[kind]
    return raw_of(value, kind, f"instance {number}")


async def _tensors(request: Request, document: Json) -> Response:
    """All rows of a request go as one call."""
    parameters = parameters_of(document)
    tensors = _rows(document, request.version)
    answer = await request.predict(tensors=tensors, parameters=parameters)
    if "instances" in document:
        predictions = to_rows(answer, len(document["instances"]))
        return Response(msgspec.json.encode({"predictions": predictions}))
    return Response(msgspec.json.encode({"outputs": to_columns(answer)}))


def _rows(document: Json, version: ServedVersion) -> list[Tensor]:
    """Instances, or whole columns, as tensors; raises `InvalidInput`."""
    if "inputs" in document:
        return from_columns(document["inputs"], version)
    rows = document["instances"]
    if not isinstance(rows, list):
        raise InvalidInput(FORM)
    check_count("instances", rows, ROWS)
    return from_rows(rows, version)


ROUTES = [
    Endpoint("POST", "/v1/models/{name:path}:predict", predict),
    Endpoint("POST", "/v1/models/{name:path}:explain", explain),
]
