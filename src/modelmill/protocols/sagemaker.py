"""Amazon SageMaker's container contract: `GET /ping` and `POST /invocations`.

`/invocations` names no model: the header `X-Amzn-SageMaker-Target-Model` does, else the setting
`invocations`, else it is the only deployment there is. JSON with `instances` goes the way of KServe
v1, anything else the way of the Hugging Face API: raw bytes, a plain text, or JSON with `inputs`.
"""

from typing import Any

from modelmill.errors import InvalidInput, NotFound
from modelmill.protocols import huggingface, kserve_v1
from modelmill.protocols.base import (
    JSON,
    Endpoint,
    Request,
    Response,
    is_object,
    read_json,
    simple_error,
)
from modelmill.tasks.kinds import TENSOR

error = simple_error

NAME = "sagemaker"
TARGET = b"x-amzn-sagemaker-target-model"


async def ping(request: Request) -> Response:
    """200 when requests should be sent here, else 503."""
    if request.gateway.ready:
        return Response(b'{"status":"healthy"}')
    return Response(b'{"status":"unhealthy"}', 503)


async def invocations(request: Request) -> Response:
    """A prediction of the deployment that a header or a setting names, or of the only one."""
    # Before the body is read: one that does not exist costs nothing
    request.pick(_target(request))
    body = await request.content()
    document = _rows(body, request.header(b"content-type"))
    version = request.pick_again()  # it may have left while the body was read
    if document is None and version.kind != TENSOR:
        return await huggingface.respond(request, body)
    return await kserve_v1.respond(request, document or read_json(body))


def _target(request: Request) -> str:
    """The deployment's name; raises `InvalidInput` when it could be several, `NotFound` when there
    is none.
    """
    named = request.header(TARGET) or request.default
    if named:
        return named
    known = sorted(request.gateway.routes(request.caller))
    if not known:
        raise NotFound("nothing is deployed yet")
    if len(known) > 1:
        raise InvalidInput(
            f"several models are deployed: name one of {', '.join(known)[:200]} in "
            "X-Amzn-SageMaker-Target-Model"
        )
    return known[0]


def _rows(body: bytes, content_type: str) -> Any:
    """The document of a body with `instances`, else None."""
    if not content_type.lower().startswith(JSON) and not is_object(body):
        return None
    document = read_json(body)
    return (
        document
        if isinstance(document, dict) and "instances" in document
        else None
    )


ROUTES = [
    Endpoint("GET", "/ping", ping, public=True),
    Endpoint("POST", "/invocations", invocations),
]
