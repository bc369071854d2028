"""OpenAI's audio: what is said in a recording, as it is said or in another language."""

from functools import reduce
from typing import NamedTuple

import msgspec

from modelmill.errors import InvalidInput
from modelmill.protocols.base import Endpoint, Request, Response
from modelmill.protocols.inputs import answers, not_supported
from modelmill.protocols.openai.form import Form, field, file_of, read_form
from modelmill.protocols.openai.transcripts import (
    FORMATS,
    segments_of,
    subtitles,
    verbose,
)
from modelmill.protocols.streams import event
from modelmill.tasks.decoding.unspaced_scripts import joined
from modelmill.types import Json

SPEECH, TRANSLATION = "automatic-speech-recognition", "translation"
PLAIN = "text/plain; charset=utf-8"
STAMPS = "timestamp_granularities[]"


class Transcript(NamedTuple):
    """The text of a recording, whole, in segments and (where it is known) word by word."""

    text: str
    duration: float
    segments: list[Json]
    words: list[Json]


async def transcriptions(request: Request) -> Response:
    """What is said in the recording of a form, as JSON, plain text or subtitles.

    The language and the prompt are ignored: a model knows the language that it was trained on.
    """
    form = read_form(await request.content(), request.header(b"content-type"))
    stamps = _stamps_of(form)
    transcript = await _transcript(request, form, field(form, "model"))
    language = field(form, "language")
    return _response(form, transcript, "transcribe", language, stamps)


def _stamps_of(form: Form) -> list[str]:
    """What gets times: words, segments or both; raises `InvalidInput`."""
    stamps = [
        value.decode("utf-8", "replace") for value in form.get(STAMPS, [])
    ]
    if set(stamps) - {"word", "segment"}:
        raise InvalidInput(
            "timestamp_granularities: choose word, segment or both"
        )
    return stamps


async def translations(request: Request) -> Response:
    """The same in another language: `model` is SPEECH+TRANSLATION, the names of two deployments.
    Each segment is translated by itself.
    """
    form = read_form(await request.content(), request.header(b"content-type"))
    listener, translator = _names_of(form)
    version = request.pick(translator)
    if version.task != TRANSLATION:
        raise not_supported(version, "translation")
    request.gateway.refuse_unservable(version)
    transcript = await _transcript(request, form, listener)
    request.version = version  # the second half is answered by the translator
    whole = await _translated(request, transcript)
    return _response(form, whole, "translate", "", [])


def _names_of(form: Form) -> tuple[str, str]:
    """The deployments that listen and translate; raises `InvalidInput`."""
    listener, plus, translator = field(form, "model").partition("+")
    if not plus:
        raise InvalidInput(
            "model names two deployments, one for speech recognition and one for translation, as "
            "in 'ears+german'"
        )
    return listener, translator


async def _translated(request: Request, transcript: Transcript) -> Transcript:
    """The same transcript in the language of the picked version, without times of its words."""
    texts = [segment["text"].encode() for segment in transcript.segments]
    found = await answers(request, texts, {})
    translated = [msgspec.json.decode(one)["translation_text"] for one in found]
    pairs = zip(transcript.segments, translated, strict=True)
    segments = [{**segment, "text": text} for segment, text in pairs]
    text = reduce(joined, translated, "")
    return Transcript(text, transcript.duration, segments, [])


async def _transcript(request: Request, form: Form, name: str) -> Transcript:
    """The transcript of the file of a form by a deployment; raises `InvalidInput`."""
    version = request.pick(name)
    if version.task != SPEECH:
        raise not_supported(version, "speech recognition")
    if _format_of(form) not in FORMATS:
        raise InvalidInput(
            f"response_format: choose one of {', '.join(FORMATS)}"
        )
    request.gateway.refuse_unservable(version)
    recording = file_of(form, "file")
    (result,) = await answers(
        request, [recording], {"return_timestamps": "word"}
    )
    answer = msgspec.json.decode(result)
    words = answer["chunks"]
    return Transcript(
        answer["text"], answer["duration"], segments_of(words), words
    )


def _format_of(form: Form) -> str:
    return field(form, "response_format") or "json"


def _response(
    form: Form,
    transcript: Transcript,
    task: str,
    language: str,
    stamps: list[str],
) -> Response:
    """The transcript in the format that the form names."""
    kind = _format_of(form)
    if field(form, "stream").lower() in ("true", "1"):
        return _streamed(transcript.text)
    if kind == "text":
        return Response(transcript.text.encode() + b"\n", content_type=PLAIN)
    if kind in ("srt", "vtt"):
        body = subtitles(transcript.segments, kind).encode()
        return Response(body, content_type=PLAIN)
    document: Json = {"text": transcript.text}
    if kind == "verbose_json":
        about = {
            "task": task,
            "language": language,
            "duration": transcript.duration,
        }
        document |= about
        document |= verbose(transcript.segments, transcript.words, stamps)
    return Response(msgspec.json.encode(document))


def _streamed(text: str) -> Response:
    """The events of a text, all of which is known before the first of them."""
    events = [{"type": "transcript.text.delta", "delta": text}] if text else []
    events.append({"type": "transcript.text.done", "text": text})
    return Response(
        b"".join(map(event, events)), content_type="text/event-stream"
    )


ROUTES = [
    Endpoint("POST", "/v1/audio/transcriptions", transcriptions),
    Endpoint("POST", "/v1/audio/translations", translations),
]
