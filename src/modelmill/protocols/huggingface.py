"""The Hugging Face Inference API: `POST /models/{name}` in the shape of the deployment's task.

A picture comes as the raw bytes or as base64 in `{"inputs": ..., "parameters": {...}}`, a text as
`inputs`; a list of them is answered with a list. A task that answers with a picture sends the
picture itself, unless the caller takes only JSON (`Accept: application/json`) or asked for several.
While a deployment loads, the answer is 503, or with `X-Wait-For-Model: true` (also `{"options":
{"wait_for_model": true}}`) it is waited for.
"""

import asyncio
from base64 import b64decode
from collections.abc import AsyncGenerator, Mapping
from operator import mul
from typing import Any, NamedTuple

import msgspec

from modelmill.errors import Expired, InvalidInput, MillError, ModelFailed, Unavailable
from modelmill.protocols.base import (
    JSON,
    Disconnected,
    Endpoint,
    Request,
    Response,
    Stream,
    is_object,
    read_json,
    simple_error,
)
from modelmill.protocols.inputs import (
    VECTORS,
    answers,
    check_count,
    named,
    parameters_of,
    pick,
    raw_of,
    refuse_tensor_model,
    renewed,
)
from modelmill.protocols.streams import begun, event
from modelmill.serve.gateway import Gateway
from modelmill.types import SEED, TEXTS, Json, KeyInfo, ServedVersion, StreamPart

PREFIX = "/models"
error = simple_error

NAME = "huggingface"
AROUND = {"inputs", "parameters", "options"}
DIGITS = 6
GENERATION = {"generate_parameters", "generation_parameters"}
PACKED = {"encoding_format", "usage"}
"""Parameters by which vectors are answered in another form."""
POLL_SECONDS = 0.05
NESTED = ("text-classification", VECTORS)
"""Tasks that answer a list for each input, also for a single one."""
READABLE = {JSON, "application/*", "*/*"}
PNG = "image/png"
PICTURES = {PNG, "image/*", "*/*"}
SEVERAL = f"{PNG} holds one picture, not several: accept {JSON} for a list of them"


class Asked(NamedTuple):
    """What a request says: raw inputs, parameters, whether it was a list, whether to wait for the
    model.

    `compared`: the first input is to be compared with each of the others (sentence-similarity).
    """

    inputs: list[bytes]
    parameters: dict[str, Any]
    many: bool = False
    wait: bool = False
    compared: bool = False


async def infer(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response | Stream:
    """One picture or text, or a list of them."""
    route = pick(gateway, caller, request, names["name"])
    refuse_tensor_model(route)
    body = await request.content()
    if wants_stream(route, body):
        asked = read(body, request.header(b"content-type"), *_takes(route))
        if asked.many:
            raise InvalidInput("a stream answers one text, not a list")
        return await streamed(
            gateway, caller, request, route, asked.inputs[0], asked.parameters
        )
    _check_accept(
        request.header(b"accept"),
        READABLE | PICTURES if route.output == "image" else READABLE,
    )
    return await respond(gateway, caller, request, route, body, NAME)


async def respond(
    gateway: Gateway,
    caller: KeyInfo,
    request: Request,
    route: ServedVersion,
    body: bytes,
    protocol: str,
) -> Response:
    """The answer to one body sent to a deployment of a task model; raises `MillError`."""
    route = renewed(gateway, caller, request, route)  # it may have been rolled
    asked = read(body, request.header(b"content-type"), *_takes(route))
    wait = asked.wait or request.header(b"x-wait-for-model").lower() in ("true", "1")
    route = await _loaded(gateway, caller, request, route, wait)
    try:
        found = await answers(
            gateway, caller, request, route, protocol, asked.inputs, asked.parameters
        )
    except Unavailable as failure:
        raise _repeatable(
            failure, renewed(gateway, caller, request, route)
        ) from failure
    if asked.compared:
        return Response(_similarities(found))
    accept = request.header(b"accept")
    if route.output == "image" and asked.many and not _wants(accept, READABLE):
        raise InvalidInput(SEVERAL)
    if asked.many or (
        route.kind == "text" and (found[0][:1] != b"[" or route.task in NESTED)
    ):
        return Response(b"[" + b",".join(found) + b"]")
    # A model that makes pictures makes any number of them, so it answers a list unless only a
    # picture would be read.
    if (
        route.output == "image"
        and _wants(accept, PICTURES)
        and (route.kind != SEED or not _wants(accept, READABLE))
    ):
        if (picture := _only_picture(found[0])) is not None:
            return Response(picture, content_type=PNG)
        if not _wants(accept, READABLE):
            raise InvalidInput(SEVERAL)
    return Response(found[0])


def _only_picture(answer: bytes) -> bytes | None:
    """The picture of an answer as a file; None where there are several."""
    found = msgspec.json.decode(answer)
    pictures = [found["image"]] if isinstance(found, dict) else found
    return b64decode(pictures[0]) if len(pictures) == 1 else None


def _check_accept(accept: str, readable: set[str]) -> None:
    """Raises `InvalidInput` when the caller would not read what it gets."""
    if not _wants(accept, readable):
        what = f"{PNG} or {JSON}" if PNG in readable else JSON
        raise InvalidInput(
            f"the answer is {what}, but the request accepts only {accept[:100]}"
        )


def _wants(accept: str, kinds: set[str]) -> bool:
    """Whether a caller reads one of these kinds; one that says nothing reads all."""
    return not accept.strip() or not kinds.isdisjoint(
        part.partition(";")[0].strip().lower() for part in accept.split(",")
    )


async def _loaded(
    gateway: Gateway,
    caller: KeyInfo,
    request: Request,
    route: ServedVersion,
    wait: bool,
) -> ServedVersion:
    """The version that answers, waited for when that is wanted; raises `Unavailable` while it is
    loading.
    """
    loop, name = asyncio.get_running_loop(), route.deployment
    end = loop.time() + gateway.limits.timeout_seconds
    while True:
        route = renewed(gateway, caller, request, route)
        if not route.ready and route.error:
            raise ModelFailed(f"'{name}' can't be served: {route.error}")
        if (
            route.ready or route.asleep or not route.loaded or not wait
        ):  # one that sleeps wakes when it is called
            gateway.refuse_unservable(route)
            return route
        if request.gone is not None and request.gone():
            raise Disconnected
        if loop.time() > end:
            raise Expired(
                f"'{name}' is still loading after {gateway.limits.timeout_seconds:g} seconds"
            )
        await asyncio.sleep(POLL_SECONDS)


def _repeatable(failure: Unavailable, route: ServedVersion) -> MillError:
    """The failure itself while the deployment loads; npm's client repeats a 503 at once and for
    ever.
    """
    return MillError(failure.message) if route.ready and not route.asleep else failure


def _takes(route: ServedVersion) -> tuple[str, str]:
    return route.kind, route.task


def read(body: bytes, content_type: str, kind: str, task: str = "") -> Asked:
    """A body as what the task takes; raises `InvalidInput`."""
    if not body and kind == SEED:
        return Asked([b""], {})
    if not body:
        raise InvalidInput(
            f"the body is empty: send {'JSON with inputs' if kind in TEXTS else named(kind)}"
        )
    content_type = content_type.lower()
    if content_type.startswith("multipart/"):
        raise InvalidInput(
            "multipart/form-data is not taken: send the file itself as the body (curl "
            "--data-binary @FILE)"
        )
    json_like = content_type.startswith(JSON) or is_object(body)
    if content_type.startswith("text/plain") if kind in TEXTS else not json_like:
        return Asked([body], {})
    document = read_json(body)
    if kind == SEED and isinstance(document, dict):
        document.setdefault("inputs", None)
    if not isinstance(document, dict) or "inputs" not in document:
        raise InvalidInput(
            'the JSON wants the form {"inputs": ..., "parameters": {...}}'
        )
    inputs = document["inputs"]
    parameters = _parameters(document)
    compared = False
    if task == VECTORS:
        # Its options stand beside the inputs, and a source with sentences is a question about
        # similarity.
        parameters = {
            name: value for name, value in document.items() if name not in AROUND
        } | parameters
        if compared := isinstance(inputs, dict):
            inputs = _sentences(inputs)
            if PACKED & parameters.keys():
                raise InvalidInput(
                    "similarities are numbers: leave encoding_format and usage out"
                )
    many = isinstance(inputs, list)
    if many:
        check_count("inputs", inputs)
    given = [raw_of(one, kind, "inputs") for one in (inputs if many else [inputs])]
    return Asked(given, parameters, many, _waits(document.get("options")), compared)


def _parameters(document: Json) -> Json:
    """What the task is told, also by the names in which its clients pack what is said of a
    search.
    """
    parameters = parameters_of(document)
    for name in GENERATION & parameters.keys():
        packed = parameters.pop(name)
        if not isinstance(packed, dict | None):
            raise InvalidInput(f"{name} is an object, not {packed!r:.40}")
        said = {
            key: value for key, value in (packed or {}).items() if value is not None
        }
        parameters = said | parameters
    return parameters


def _sentences(inputs: dict[str, Any]) -> list[Any]:
    """The source, and behind it what it is compared with; raises `InvalidInput`."""
    source, sentences = inputs.get("source_sentence"), inputs.get("sentences")
    if not isinstance(source, str) or not isinstance(sentences, list) or not sentences:
        raise InvalidInput(
            'inputs wants the form {"source_sentence": ..., "sentences": [...]}'
        )
    return [source, *sentences]


def _similarities(found: list[bytes]) -> bytes:
    """The cosine of the first vector with each of the others: they have length 1."""
    source, *others = (msgspec.json.decode(one, type=list[float]) for one in found)
    return msgspec.json.encode(
        [round(sum(map(mul, source, one)), DIGITS) for one in others]
    )


def _waits(options: Any) -> bool:
    """`wait_for_model` of the options, of which the others tell a cache that is not here."""
    if options is None:
        return False
    if not isinstance(options, dict) or not isinstance(
        wait := options.get("wait_for_model", False), bool
    ):
        raise InvalidInput('options is an object such as {"wait_for_model": true}')
    return wait


async def info(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """What the deployment is, as the hub describes a model."""
    route = gateway.route(caller, names["name"])
    document = {
        "id": route.deployment,
        "pipeline_tag": route.task or None,
        "library_name": "modelmill",
        "input": route.kind,
        "labels": route.labels,
        "sha": f"{route.model}:{route.version}",
    }
    return Response(msgspec.json.encode(document))


async def health(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """Nothing, when the deployment answers; raises `Unavailable` while it is loading."""
    gateway.refuse_unservable(gateway.route(caller, names["name"]))
    return Response(b"")


# ---- streams of tokens


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


ROUTES = [
    Endpoint("POST", "/models/{name}", infer),
    Endpoint("GET", "/models/{name}", info),
    Endpoint("GET", "/models/{name}/info", info),
    Endpoint("GET", "/models/{name}/health", health),
]
