"""OpenAI's audio: what is said in a recording, as it is said or in another language."""

from collections.abc import Mapping
from functools import reduce
from typing import NamedTuple

import msgspec

from modelmill.errors import InvalidInput
from modelmill.protocols.base import Endpoint, Request, Response
from modelmill.protocols.inputs import answers, pick
from modelmill.protocols.openai.form import Form, field, file_of, read_form
from modelmill.protocols.openai.transcripts import FORMATS, segments, subtitles, verbose
from modelmill.protocols.streams import event
from modelmill.serve.gateway import Gateway
from modelmill.tasks.decoding.unspaced_scripts import joined
from modelmill.types import Json, KeyInfo

NAME = "openai"
LISTENS, TRANSLATES = "automatic-speech-recognition", "translation"
STAMPS = "timestamp_granularities[]"


class Heard(NamedTuple):
    """What was said: all of it, breath by breath, and word by word, where that is known."""

    text: str
    duration: float
    parts: list[Json]
    words: list[Json]


async def transcriptions(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """What is said in the recording of a form, as JSON, plain text or subtitles.

    The language and the prompt are not read: a model knows the language that it was trained on.
    """
    form = read_form(await request.content(), request.header(b"content-type"))
    wanted = [value.decode("utf-8", "replace") for value in form.get(STAMPS, [])]
    if set(wanted) - {"word", "segment"}:
        raise InvalidInput("timestamp_granularities: choose word, segment or both")
    heard = await _heard(gateway, caller, request, form, field(form, "model"))
    return _told(form, heard, "transcribe", field(form, "language"), wanted)


async def translations(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """The same in another language: `model` is LISTENER+TRANSLATOR, and each breath is translated
    by itself.
    """
    form = read_form(await request.content(), request.header(b"content-type"))
    listener, plus, translator = field(form, "model").partition("+")
    if not plus:
        raise InvalidInput(
            "model names one that listens and one that translates what it heard, as in "
            "'ears+german'"
        )
    route = pick(gateway, caller, request, translator)
    if route.task != TRANSLATES:
        raise InvalidInput(
            f"'{route.deployment}' translates nothing: its task is {route.task or 'unknown'}"
        )
    gateway.refuse_unservable(route)
    heard = await _heard(gateway, caller, request, form, listener)
    said = [part["text"].encode() for part in heard.parts]
    found = [
        msgspec.json.decode(one)
        for one in await answers(gateway, caller, request, route, NAME, said, {})
    ]
    texts = [one["translation_text"] for one in found]
    parts = [
        {**part, "text": text} for part, text in zip(heard.parts, texts, strict=True)
    ]
    return _told(
        form,
        Heard(reduce(joined, texts, ""), heard.duration, parts, []),
        "translate",
        "",
        [],
    )


async def _heard(
    gateway: Gateway, caller: KeyInfo, request: Request, form: Form, name: str
) -> Heard:
    """What a model hears in the file of a form; raises `InvalidInput` for what it can't be
    asked.
    """
    route = pick(gateway, caller, request, name)
    if route.task != LISTENS:
        raise InvalidInput(
            f"'{route.deployment}' writes down no speech: its task is {route.task or 'unknown'}"
        )
    if _kind(form) not in FORMATS:
        raise InvalidInput(f"response_format: choose one of {', '.join(FORMATS)}")
    gateway.refuse_unservable(route)
    how = {"return_timestamps": "word"}
    (found,) = await answers(
        gateway, caller, request, route, NAME, [file_of(form, "file")], how
    )
    answer = msgspec.json.decode(found)
    return Heard(
        answer["text"], answer["duration"], segments(answer["chunks"]), answer["chunks"]
    )


def _kind(form: Form) -> str:
    return field(form, "response_format") or "json"


def _told(
    form: Form, heard: Heard, task: str, language: str, wanted: list[str]
) -> Response:
    """In the form that was asked for."""
    kind = _kind(form)
    if field(form, "stream").lower() in (
        "true",
        "1",
    ):  # all of it is heard before any of it is told
        events = (
            [{"type": "transcript.text.delta", "delta": heard.text}]
            if heard.text
            else []
        )
        events.append({"type": "transcript.text.done", "text": heard.text})
        return Response(b"".join(map(event, events)), content_type="text/event-stream")
    if kind == "text":
        return Response(
            heard.text.encode() + b"\n", content_type="text/plain; charset=utf-8"
        )
    if kind in ("srt", "vtt"):
        return Response(
            subtitles(heard.parts, kind).encode(),
            content_type="text/plain; charset=utf-8",
        )
    document: Json = {"text": heard.text}
    if kind == "verbose_json":
        document |= {"task": task, "language": language, "duration": heard.duration}
        document |= verbose(heard.parts, heard.words, wanted)
    return Response(msgspec.json.encode(document))


ROUTES = [
    Endpoint("POST", "/v1/audio/transcriptions", transcriptions),
    Endpoint("POST", "/v1/audio/translations", translations),
]
