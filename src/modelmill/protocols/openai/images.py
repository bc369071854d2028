"""OpenAI's images: generation from a seed, and edits by models that repair pictures."""

import time
from base64 import b64encode

import msgspec

from modelmill.errors import InvalidInput
from modelmill.protocols.base import Endpoint, Request, Response, read_json
from modelmill.protocols.inputs import answers, not_supported, raw_of
from modelmill.protocols.openai.form import Form, field, file_of, read_form
from modelmill.tasks.kinds import input_kind
from modelmill.types import Json

EDITS = "image-to-image"


async def generations(request: Request) -> Response:
    """`n` new pictures as `b64_json`; the prompt is a seed, or empty."""
    document = _document(await request.content())
    version = request.pick(document["model"])
    if not input_kind(version.kind).optional:
        raise not_supported(version, "image generation")
    _check_format(document.get("response_format"))
    request.gateway.refuse_unservable(version)
    seed = raw_of(document.get("prompt"), version.kind, "prompt")
    (result,) = await answers(
        request, [seed], {"num_images": document.get("n")}
    )
    return _pictures(msgspec.json.decode(result))


def _document(body: bytes) -> Json:
    """The body of a request; raises `InvalidInput`."""
    document = read_json(body)
    if not isinstance(document, dict) or not isinstance(
        document.get("model"), str
    ):
        raise InvalidInput(
            'the JSON wants the form {"model": ..., "prompt": "", "n": 1}'
        )
    return document


async def edits(request: Request) -> Response:
    """The picture of a form, repaired, as `b64_json`. Where it is filled in, `mask` says where, or
    its alpha channel.

    The prompt is ignored: these models do the same to every picture.
    """
    form = read_form(await request.content(), request.header(b"content-type"))
    version = request.pick(field(form, "model"))
    if version.task != EDITS:
        raise not_supported(version, "image edits")
    _check_edit(form)
    request.gateway.refuse_unservable(version)
    picture, mask = file_of(form, "image"), _mask_of(form)
    (result,) = await answers(request, [picture], mask)
    return _pictures([msgspec.json.decode(result)["image"]])


def _check_edit(form: Form) -> None:
    """Raises `InvalidInput` for an answer in a form that is not offered."""
    _check_format(field(form, "response_format") or None)
    if field(form, "n") not in ("", "1"):
        raise InvalidInput(
            "n: a picture is repaired in one way only, so n is 1"
        )


def _mask_of(form: Form) -> Json:
    """The parameter that says what is to be filled in, where the form does."""
    if "mask" not in form:
        return {}
    return {"mask": b64encode(file_of(form, "mask")).decode()}


def _check_format(value: object) -> None:
    if value not in (None, "b64_json"):
        raise InvalidInput("response_format: pictures are answered as b64_json")


def _pictures(pictures: list[str]) -> Response:
    data = [{"b64_json": picture} for picture in pictures]
    return Response(
        msgspec.json.encode({"created": int(time.time()), "data": data})
    )


ROUTES = [
    Endpoint("POST", "/v1/images/generations", generations),
    Endpoint("POST", "/v1/images/edits", edits),
]
