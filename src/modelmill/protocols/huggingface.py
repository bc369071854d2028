"""The Hugging Face Inference API: `POST /models/{name}` in the shape of the deployment's task.

A picture comes as the raw bytes or as base64 in `{"inputs": ..., "parameters": {...}}`, a text as
`inputs`; a list of them is answered with a list. A task that answers with a picture sends the
picture itself, unless the caller takes only JSON (`Accept: application/json`) or several were made.
While a deployment loads, the answer is 503, or with `X-Wait-For-Model: true` (also `{"options":
{"wait_for_model": true}}`) it is waited for.
"""

import asyncio
from base64 import b64decode
from collections.abc import AsyncGenerator, Mapping
from operator import mul
from typing import Any, NamedTuple

import msgspec

from modelmill.errors import (
    Expired,
    InvalidInput,
    MillError,
    ModelFailed,
    Unavailable,
)
from modelmill.protocols.base import (
    JSON,
    Disconnected,
    Endpoint,
    Request,
    Response,
    StreamingResponse,
    is_object,
    read_json,
    simple_error,
)
from modelmill.protocols.inputs import (
    VECTORS,
    answers,
    check_count,
    parameters_of,
    raw_of,
    refuse_tensor_model,
)
from modelmill.protocols.streams import after_first, event
from modelmill.tasks.kinds import IMAGE, input_kind
from modelmill.tasks.kinds.base import InputKind
from modelmill.types import Json, ServedVersion, StreamPart

PREFIX = "/models"
error = simple_error

NAME = "huggingface"
TOP_LEVEL = {"inputs", "parameters", "options"}
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
SEVERAL = (
    f"{PNG} holds one picture, not several: accept {JSON} for a list of them"
)


class Inputs(NamedTuple):
    """What a body holds: raw inputs, parameters, whether it was a list, whether to wait for the
    model.

    `compared`: the first input is compared with each of the others (sentence-similarity).
    """

    inputs: list[bytes]
    parameters: dict[str, Any]
    many: bool = False
    wait: bool = False
    compared: bool = False


async def infer(request: Request) -> Response | StreamingResponse:
    """One picture or text, or a list of them."""
    version = request.pick(request.names["name"])
    refuse_tensor_model(version)
    body = await request.content()
    if wants_stream(version, body):
        sent = read(
            body, request.header(b"content-type"), version.kind, version.task
        )
        if sent.many:
            raise InvalidInput("a stream answers one text, not a list")
        return await streamed(request, sent.inputs[0], sent.parameters)
    readable = READABLE | PICTURES if version.output == IMAGE else READABLE
    _check_accept(request.header(b"accept"), readable)
    return await respond(request, body)


async def respond(request: Request, body: bytes) -> Response:
    """The answer of the picked version, a task model, to one body; raises `MillError`."""
    version = request.pick_again()  # it may have left while the body was read
    sent = read(
        body, request.header(b"content-type"), version.kind, version.task
    )
    wait = sent.wait or request.header(b"x-wait-for-model").lower() in (
        "true",
        "1",
    )
    await _loaded(request, wait)
    try:
        results = await answers(request, sent.inputs, sent.parameters)
    except Unavailable as failure:
        raise _repeatable(failure, request.pick_again()) from failure
    if sent.compared:
        return Response(_similarities(results))
    return _response(request, results, sent.many)


def _response(request: Request, results: list[bytes], many: bool) -> Response:
    """The results in the form that the caller accepts; raises `InvalidInput`."""
    version, accept = request.version, request.header(b"accept")
    if version.output == IMAGE and many and not _wants(accept, READABLE):
        raise InvalidInput(SEVERAL)
    is_nested = results[0][:1] == b"[" and version.task not in NESTED
    if many or (version.kind == "text" and not is_nested):
        return Response(b"[" + b",".join(results) + b"]")
    if version.output == IMAGE and _is_picture_wanted(version, accept):
        if (picture := _only_picture(results[0])) is not None:
            return Response(picture, content_type=PNG)
        if not _wants(accept, READABLE):
            raise InvalidInput(SEVERAL)
    return Response(results[0])


def _is_picture_wanted(version: ServedVersion, accept: str) -> bool:
    """Whether the caller takes a file. A generator makes any number of pictures, so it answers a
    list unless only a picture is accepted.
    """
    if not _wants(accept, PICTURES):
        return False
    return not (input_kind(version.kind).optional and _wants(accept, READABLE))


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


async def _loaded(request: Request, wait: bool) -> None:
    """Wait until the picked version is loaded, if that is wanted; raises `Unavailable` while it is
    loading.
    """
    loop, gateway = asyncio.get_running_loop(), request.gateway
    patience = gateway.limits.timeout_seconds
    end = loop.time() + patience
    while _is_loading(version := request.pick_again()) and wait:
        if request.gone is not None and request.gone():
            raise Disconnected
        if loop.time() > end:
            raise Expired(
                f"'{version.deployment}' is still loading after {patience:g} seconds"
            )
        await asyncio.sleep(POLL_SECONDS)
    gateway.refuse_unservable(version)


def _is_loading(version: ServedVersion) -> bool:
    """Whether waiting could help; one that is asleep wakes when it is called. Raises
    `ModelFailed`.
    """
    if not version.ready and version.error:
        raise ModelFailed(
            f"'{version.deployment}' can't be served: {version.error}"
        )
    return version.loaded and not (version.ready or version.asleep)


def _repeatable(failure: Unavailable, version: ServedVersion) -> MillError:
    """The failure itself while the deployment loads; npm's client repeats a 503 at once and for
    ever.
    """
    if version.ready and not version.asleep:
        return MillError(failure.message)
    return failure


def read(body: bytes, content_type: str, kind: str, task: str = "") -> Inputs:
    """A body as what the task takes; raises `InvalidInput`."""
    taken = input_kind(kind)
    if not body and taken.optional:
        return Inputs([b""], {})
    if _is_input_itself(body, content_type.lower(), taken):
        return Inputs([body], {})
    document = _document(body, taken)
    inputs, parameters = document["inputs"], _parameters(document)
    if task == VECTORS:
        parameters = _vector_options(document) | parameters
    compared = task == VECTORS and isinstance(inputs, dict)
    if compared:
        inputs = _sentences(inputs, parameters)
    many = isinstance(inputs, list)
    if many:
        check_count("inputs", inputs)
    raw = [
        raw_of(value, kind, "inputs")
        for value in (inputs if many else [inputs])
    ]
    return Inputs(
        raw, parameters, many, _waits(document.get("options")), compared
    )


def _is_input_itself(body: bytes, content_type: str, taken: InputKind) -> bool:
    """Whether a body is the raw input and not JSON; raises `InvalidInput` for what is neither."""
    if not body:
        raise InvalidInput(
            f"the body is empty: send {'JSON with inputs' if taken.is_text else taken.article}"
        )
    if content_type.startswith("multipart/"):
        raise InvalidInput(
            "multipart/form-data is not taken: send the file itself as the body (curl "
            "--data-binary @FILE)"
        )
    if taken.is_text:
        return content_type.startswith("text/plain")
    return not (content_type.startswith(JSON) or is_object(body))


def _document(body: bytes, taken: InputKind) -> Json:
    """A body of JSON with its `inputs`; raises `InvalidInput`."""
    document = read_json(body)
    if taken.optional and isinstance(document, dict):
        document.setdefault("inputs", None)
    if not isinstance(document, dict) or "inputs" not in document:
        raise InvalidInput(
            'the JSON wants the form {"inputs": ..., "parameters": {...}}'
        )
    return document


def _vector_options(document: Json) -> Json:
    """The options of vectors, which are top-level fields."""
    return {
        name: value for name, value in document.items() if name not in TOP_LEVEL
    }


def _parameters(document: Json) -> Json:
    """The task's parameters, with `generate_parameters` and `generation_parameters` merged in."""
    parameters = parameters_of(document)
    for name in GENERATION & parameters.keys():
        packed = parameters.pop(name)
        if not isinstance(packed, dict | None):
            raise InvalidInput(f"{name} is an object, not {packed!r:.40}")
        own = {
            key: value
            for key, value in (packed or {}).items()
            if value is not None
        }
        parameters = own | parameters
    return parameters


def _sentences(inputs: dict[str, Any], parameters: Json) -> list[Any]:
    """The source sentence, then those that it is compared with (sentence-similarity); raises
    `InvalidInput`.
    """
    _check_sentences(inputs)
    if PACKED & parameters.keys():
        raise InvalidInput(
            "similarities are numbers: leave encoding_format and usage out"
        )
    return [inputs["source_sentence"], *inputs["sentences"]]


def _check_sentences(inputs: dict[str, Any]) -> None:
    """Raises `InvalidInput` unless there is a source and something to compare it with."""
    source, sentences = inputs.get("source_sentence"), inputs.get("sentences")
    if (
        not isinstance(source, str)
        or not isinstance(sentences, list)
        or not sentences
    ):
        raise InvalidInput(
            'inputs wants the form {"source_sentence": ..., "sentences": [...]}'
        )


def _similarities(vectors: list[bytes]) -> bytes:
    """The cosine of the first vector with each of the others: they have length 1."""
    source, *others = (
        msgspec.json.decode(one, type=list[float]) for one in vectors
    )
    return msgspec.json.encode(
        [round(sum(map(mul, source, one)), DIGITS) for one in others]
    )


def _waits(options: Any) -> bool:
    """Reads `options.wait_for_model`. The other options control a cache that we do not have and are
    ignored.
    """
    if options is None:
        return False
    if not isinstance(options, dict) or not isinstance(
        wait := options.get("wait_for_model", False), bool
    ):
        raise InvalidInput(
            'options is an object such as {"wait_for_model": true}'
        )
    return wait


async def info(request: Request) -> Response:
    """What the deployment is, as the hub describes a model."""
    version = request.gateway.route(request.caller, request.names["name"])
    document = {
        "id": version.deployment,
        "pipeline_tag": version.task or None,
        "library_name": "modelmill",
        "input": version.kind,
        "also": version.also,
        "output": version.output,
        "labels": version.labels,
        "sha": f"{version.model}:{version.version}",
    }
    return Response(msgspec.json.encode(document))


async def health(request: Request) -> Response:
    """Nothing, when the deployment answers; raises `Unavailable` while it is loading."""
    gateway = request.gateway
    gateway.refuse_unservable(
        gateway.route(request.caller, request.names["name"])
    )
    return Response(b"")


# ---- streams of tokens


def wants_stream(version: ServedVersion, body: bytes) -> bool:
    """Whether a body asks a model that writes token by token for a stream."""
    if not version.grows or b'"stream"' not in body:
        return False
    try:
        document = read_json(body)
    except InvalidInput:
        return False  # `read` says what is wrong with it
    return isinstance(document, dict) and document.get("stream") is True


async def streamed(
    request: Request, data: bytes, parameters: Mapping[str, Any]
) -> StreamingResponse:
    """An event for each token, the last of which has the whole text; raises an early failure."""
    return StreamingResponse(
        await after_first(_events(request, data, parameters))
    )


async def _events(
    request: Request, data: bytes, parameters: Mapping[str, Any]
) -> AsyncGenerator[bytes]:
    """An event for each token; an error after the first is an event too."""
    text, sent = "", False
    try:
        async for part in request.stream(data, parameters):
            text, sent = text + part.text, True
            yield event(_token(part, text))
    except MillError as failure:
        if not sent:
            raise
        yield event({"error": failure.message, "error_type": failure.code})


def _token(part: StreamPart, text: str) -> Json:
    """An event for one token; the last one has the whole text."""
    token = {"index": part.number, "token": _token_itself(part)}
    if not part.finish_reason:
        return {**token, "generated_text": None, "details": None}
    details = {"finish_reason": part.ended_by, "generated_tokens": part.number}
    return {**token, "generated_text": text, "details": details}


def _token_itself(part: StreamPart) -> Json:
    return {
        "id": part.token,
        "text": part.text,
        "logprob": part.logprob and part.logprob["logprob"],
        "special": part.special,
    }


ROUTES = [
    Endpoint("POST", "/models/{name}", infer),
    Endpoint("GET", "/models/{name}", info),
    Endpoint("GET", "/models/{name}/info", info),
    Endpoint("GET", "/models/{name}/health", health),
]
