"""The OpenAI API, as far as there is something to answer with: the models that are served, and
pictures they make.

It owns `/v1`, which KServe v1 shares: the two answers below satisfy clients of both, and so does
every error.
"""

import time
from base64 import b64encode
from collections.abc import Mapping

import msgspec

from modelmill.errors import InvalidInput, MillError, NotFound
from modelmill.protocols._form import field, file_of, read_form
from modelmill.protocols._task import answers, pick, raw_of
from modelmill.protocols.base import Endpoint, Request, Response, UnknownPath, read_json
from modelmill.serve.gateway import Gateway
from modelmill.types import SEED, Json, KeyInfo, ServedVersion

NAME = "openai"
PREFIX = "/v1"
EDITS = "image-to-image"

KINDS = {
    "invalid_input": ("invalid_request_error", None),
    "too_large": ("invalid_request_error", "request_too_large"),
    "unauthenticated": ("authentication_error", "invalid_api_key"),
    "forbidden": ("permission_error", "insufficient_permissions"),
    "not_found": ("not_found_error", "model_not_found"),
    "method_not_allowed": ("invalid_request_error", "method_not_supported"),
    "conflict": ("conflict_error", "conflict"),
    "overloaded": ("rate_limit_error", "rate_limit_exceeded"),
    "cancelled": ("invalid_request_error", "request_cancelled"),
}
"""OpenAI's `type` and `code` by our code; what is not here is a `server_error` under our own
code.
"""


def error(error: MillError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`.

    OpenAI's clients want this object. KServe's clients print whatever `error` holds, so they lose
    nothing by it.
    """
    kind, code = KINDS.get(error.code, ("server_error", error.code))
    unknown_path = isinstance(error, UnknownPath)
    document = {
        "message": error.message,
        "type": kind,
        "param": "model" if isinstance(error, NotFound) and not unknown_path else None,
        "code": "unknown_url" if unknown_path else code,
    }
    return msgspec.json.encode({"error": document})


async def models(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """The deployments: `data` for OpenAI's clients, `models` for KServe's."""
    routes = sorted(gateway.routes(caller).items())
    document = {
        "object": "list",
        "data": [_described(route) for _, route in routes],
        "models": [name for name, _ in routes],
    }
    return Response(msgspec.json.encode(document))


async def model(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """One deployment: as OpenAI describes a model, with KServe's `name` and `ready`."""
    route = gateway.route(caller, names["id"])
    ready = route.loaded and (
        route.asleep or (route.ready and gateway.connected(route))
    )
    return Response(
        msgspec.json.encode(
            {**_described(route), "name": route.deployment, "ready": ready}
        )
    )


def _described(route: ServedVersion) -> Json:
    return {
        "id": route.deployment,
        "object": "model",
        "created": route.created,
        "owned_by": route.project,
    }


async def images(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """`n` new pictures as `b64_json`; the prompt is a seed, or empty."""
    document = read_json(await request.content())
    if not isinstance(document, dict) or not isinstance(document.get("model"), str):
        raise InvalidInput(
            'the JSON wants the form {"model": ..., "prompt": "", "n": 1}'
        )
    route = pick(gateway, caller, request, document["model"])
    if route.kind != SEED:
        raise InvalidInput(
            f"'{route.deployment}' makes no pictures: its task is {route.task or 'unknown'}"
        )
    _check_format(document.get("response_format"))
    gateway.refuse_unservable(route)
    seed = raw_of(document.get("prompt"), SEED, "prompt")
    parameters = {"num_images": document.get("n")}
    (found,) = await answers(gateway, caller, request, route, NAME, [seed], parameters)
    return _pictures(msgspec.json.decode(found))


async def edits(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """The picture of a form, repaired, as `b64_json`; where it is filled in, `mask` says where, or
    its alpha channel.

    The prompt is not read: what these models do, they do to every picture.
    """
    form = read_form(await request.content(), request.header(b"content-type"))
    route = pick(gateway, caller, request, field(form, "model"))
    if route.task != EDITS:
        raise InvalidInput(
            f"'{route.deployment}' edits no pictures: its task is {route.task or 'unknown'}"
        )
    _check_format(field(form, "response_format") or None)
    if field(form, "n") not in ("", "1"):
        raise InvalidInput("n: a picture is repaired in one way only, so n is 1")
    gateway.refuse_unservable(route)
    picture = file_of(form, "image")
    parameters = (
        {"mask": b64encode(file_of(form, "mask")).decode()} if "mask" in form else {}
    )
    (found,) = await answers(
        gateway, caller, request, route, NAME, [picture], parameters
    )
    return _pictures([msgspec.json.decode(found)["image"]])


def _check_format(given: object) -> None:
    if given not in (None, "b64_json"):
        raise InvalidInput("response_format: pictures are answered as b64_json")


def _pictures(found: list[str]) -> Response:
    data = [{"b64_json": picture} for picture in found]
    return Response(msgspec.json.encode({"created": int(time.time()), "data": data}))


ROUTES = [
    Endpoint("GET", "/v1/models", models),
    Endpoint("GET", "/v1/models/{id:path}", model),
    Endpoint("POST", "/v1/images/generations", images),
    Endpoint("POST", "/v1/images/edits", edits),
]
