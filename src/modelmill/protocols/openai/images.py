"""OpenAI's images: generation from a seed, and edits by models that repair pictures."""

import time
from base64 import b64encode
from collections.abc import Mapping

import msgspec

from modelmill.errors import InvalidInput
from modelmill.protocols.base import Endpoint, Request, Response, read_json
from modelmill.protocols.inputs import answers, pick, raw_of
from modelmill.protocols.openai.form import field, file_of, read_form
from modelmill.serve.gateway import Gateway
from modelmill.types import SEED, KeyInfo

NAME = "openai"
EDITS = "image-to-image"


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
    Endpoint("POST", "/v1/images/generations", images),
    Endpoint("POST", "/v1/images/edits", edits),
]
