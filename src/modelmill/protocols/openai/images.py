"""OpenAI's images: generation from a seed, and edits by models that repair pictures."""

import time
from base64 import b64encode

import msgspec

from modelmill.errors import InvalidInput
from modelmill.protocols.base import Endpoint, Request, Response, read_json
from modelmill.protocols.inputs import answers, not_supported, raw_of
from modelmill.protocols.openai.form import field, file_of, read_form
from modelmill.tasks.kinds import input_kind

EDITS = "image-to-image"


async def generations(request: Request) -> Response:
    """`n` new pictures as `b64_json`; the prompt is a seed, or empty."""
    document = read_json(await request.content())
    if not isinstance(document, dict) or not isinstance(document.get("model"), str):
        raise InvalidInput(
            'the JSON wants the form {"model": ..., "prompt": "", "n": 1}'
        )
    version = request.pick(document["model"])
    if not input_kind(version.kind).optional:
        raise not_supported(version, "image generation")
    _check_format(document.get("response_format"))
    request.gateway.refuse_unservable(version)
    seed = raw_of(document.get("prompt"), version.kind, "prompt")
    (result,) = await answers(request, [seed], {"num_images": document.get("n")})
    return _pictures(msgspec.json.decode(result))


async def edits(request: Request) -> Response:
    """The picture of a form, repaired, as `b64_json`. Where it is filled in, `mask` says where, or
    its alpha channel.

    The prompt is ignored: these models do the same to every picture.
    """
    form = read_form(await request.content(), request.header(b"content-type"))
    version = request.pick(field(form, "model"))
    if version.task != EDITS:
        raise not_supported(version, "image edits")
    _check_format(field(form, "response_format") or None)
    if field(form, "n") not in ("", "1"):
        raise InvalidInput("n: a picture is repaired in one way only, so n is 1")
    request.gateway.refuse_unservable(version)
    picture = file_of(form, "image")
    parameters = (
        {"mask": b64encode(file_of(form, "mask")).decode()} if "mask" in form else {}
    )
    (result,) = await answers(request, [picture], parameters)
    return _pictures([msgspec.json.decode(result)["image"]])


def _check_format(value: object) -> None:
    if value not in (None, "b64_json"):
        raise InvalidInput("response_format: pictures are answered as b64_json")


def _pictures(pictures: list[str]) -> Response:
    data = [{"b64_json": picture} for picture in pictures]
    return Response(msgspec.json.encode({"created": int(time.time()), "data": data}))


ROUTES = [
    Endpoint("POST", "/v1/images/generations", generations),
    Endpoint("POST", "/v1/images/edits", edits),
]
