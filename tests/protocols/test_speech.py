"""A model that listens: what is said comes as JSON, plain text or subtitles, over every
protocol.
"""

import base64

import msgspec
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient

from modelmill.protocols.openai.transcripts import segments_of, subtitles
from modelmill.serve.wire import Answer
from modelmill.tasks.automatic_speech_recognition.decoding import (
    TimedText,
    words,
)
from tests.helpers.datasets import tones
from tests.helpers.gateways import InMemoryApi, LiveApi, a_route
from tests.helpers.text_bundles import SPEECH, speech_bundle
from tests.helpers.workers import answering_with
from tests.protocols.test_repair import form

SAID = "abba"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return speech_bundle(tmp_path_factory.mktemp("speech") / "b")


def the_route(worker):
    return a_route(
        "ears",
        task="automatic-speech-recognition",
        kind="audio",
        **SPEECH,
        sockets=[worker.path],
    )


async def shout(calls):
    """A translator into a louder language."""
    return [
        Answer(
            call.id,
            msgspec.json.encode(
                {"translation_text": call.data.decode().upper()}
            ),
        )
        for call in calls
    ]


@pytest.fixture(scope="module")
def api(folder, tmp_path_factory):
    api = InMemoryApi()
    worker = api.worker(
        tmp_path_factory.mktemp("w") / "w", answering_with(folder)
    )
    louder = api.worker(tmp_path_factory.mktemp("w") / "l", shout)
    loud = a_route(
        "loud", task="translation", kind="text", sockets=[louder.path]
    )
    api.update(the_route(worker), a_route("spots", sockets=[worker.path]), loud)
    yield api
    for one in (worker, louder):
        api.runner.run(one.stop())
    api.close()


def post(api, path, document):
    return api.ask(
        "POST",
        path,
        msgspec.json.encode(document),
        {"content-type": "application/json"},
    )


def test_hugging_face_takes_a_file_or_base64(api):
    assert api.ask("POST", "/models/ears", tones(SAID), {}).json == {
        "text": SAID
    }
    document = {
        "inputs": base64.b64encode(tones(SAID)).decode(),
        "parameters": {"return_timestamps": "char"},
    }
    answer = post(api, "/models/ears", document).json
    assert [chunk["text"] for chunk in answer["chunks"]] == list(SAID)
    times = [time for chunk in answer["chunks"] for time in chunk["timestamp"]]
    assert times == sorted(times)


def test_kserve_v1_and_v2_take_it_too(api):
    file = base64.b64encode(tones(SAID)).decode()
    for instance in (file, {"b64": file}, {"audio": {"b64": file}}):
        assert post(
            api, "/v1/models/ears:predict", {"instances": [instance]}
        ).json == {"predictions": [{"text": SAID}]}
    tensor = {
        "name": "audio",
        "datatype": "BYTES",
        "shape": [1],
        "data": [file],
    }
    reply = post(
        api,
        "/v2/models/ears/infer",
        {"inputs": [tensor], "outputs": [{"name": "answer"}]},
    )
    assert msgspec.json.decode(reply.json["outputs"][0]["data"][0]) == {
        "text": SAID
    }


def test_openai_writes_it_down_in_every_form(api):
    def ask(**fields):
        parts = [("file", "upload", tones(SAID)), ("model", "", b"ears")]
        parts += [(name, "", value.encode()) for name, value in fields.items()]
        return api.ask("POST", "/v1/audio/transcriptions", *form(parts))

    assert ask().json == {"text": SAID}
    assert ask(response_format="text").body == f"{SAID}\n".encode()
    assert ask(response_format="srt").body.startswith(b"1\n00:00:00,0")
    assert ask(response_format="vtt").body.startswith(b"WEBVTT\n\n00:00:00.0")
    whole = ask(
        response_format="verbose_json",
        language="en",
        **{"timestamp_granularities[]": "word"},
    ).json
    assert (whole["text"], whole["language"], "segments" in whole) == (
        SAID,
        "en",
        False,
    )
    assert [word["word"] for word in whole["words"]] == [SAID]
    assert whole["duration"] == pytest.approx(0.65, abs=0.05)


@pytest.mark.parametrize(
    ("parts", "status", "says"),
    [
        ([("model", "", b"ears")], 400, "the form has no 'file'"),
        (
            [("model", "", b"ears"), ("file", "f", b"hello")],
            400,
            "not a sound file",
        ),
        (
            [("model", "", b"spots"), ("file", "f", tones("a"))],
            400,
            "'spots' does not support speech recognition",
        ),
        (
            [
                ("model", "", b"ears"),
                ("file", "f", tones("a")),
                ("response_format", "", b"xml"),
            ],
            400,
            "json, text, srt",
        ),
        (
            [
                ("model", "", b"ears"),
                ("file", "f", tones("a")),
                ("timestamp_granularities[]", "", b"day"),
            ],
            400,
            "segment",
        ),
        (
            [("model", "", b"eras"), ("file", "f", tones("a"))],
            404,
            "did you mean 'ears'",
        ),
    ],
)
def test_what_is_wrong_is_said(api, parts, status, says):
    reply = api.ask("POST", "/v1/audio/transcriptions", *form(parts))
    assert reply.status == status
    assert says in reply.error


def translate(api, model=b"ears+loud", **fields):
    parts = [("file", "upload", tones(SAID)), ("model", "", model)]
    parts += [(name, "", value.encode()) for name, value in fields.items()]
    return api.ask("POST", "/v1/audio/translations", *form(parts))


def test_what_one_model_hears_another_translates(api):
    assert translate(api).json == {"text": "ABBA"}
    assert translate(api, response_format="text").body == b"ABBA\n"
    assert "ABBA" in translate(api, response_format="srt").body.decode()
    whole = translate(api, response_format="verbose_json").json
    assert (whole["task"], whole["text"]) == ("translate", "ABBA")
    assert [part["text"] for part in whole["segments"]] == ["ABBA"]
    assert whole["segments"][0]["end"] <= whole["duration"]


@pytest.mark.parametrize(
    ("model", "status", "says"),
    [
        (
            b"ears",
            400,
            "one for speech recognition and one for translation, as in 'ears+german'",
        ),
        (b"ears+spots", 400, "'spots' does not support translation"),
        (b"loud+loud", 400, "'loud' does not support speech recognition"),
        (b"ears+lout", 404, "did you mean 'loud'"),
        (b"", 400, "one for speech recognition"),
    ],
)
def test_what_can_not_be_translated_is_said(api, model, status, says):
    reply = translate(api, model)
    assert (reply.status, says in reply.error) == (status, True), reply.error


def test_the_published_clients_listen(folder, tmp_path):
    async def routes(live):
        return [
            the_route(await live.worker(tmp_path / "w", answering_with(folder)))
        ]

    live = LiveApi(routes)
    try:
        client = openai.OpenAI(
            base_url=f"{live.url}/v1", api_key="user-key", max_retries=0
        )
        assert (
            client.audio.transcriptions.create(
                model="ears", file=("a.wav", tones(SAID))
            ).text
            == SAID
        )
        whole = client.audio.transcriptions.create(
            model="ears",
            file=("a.wav", tones(SAID)),
            response_format="verbose_json",
        )
        assert [segment.text for segment in whole.segments] == [SAID]
        with InferenceClient(token="user-key") as hub:
            assert (
                hub.automatic_speech_recognition(
                    tones(SAID), model=f"{live.url}/models/ears"
                ).text
                == SAID
            )
    finally:
        live.close()


def test_segments_end_at_pauses_and_subtitles_count():
    words = [
        {"text": text, "timestamp": [at, at + 0.3]}
        for text, at in (("one", 0.0), ("two", 0.5), ("three", 3661.2))
    ]
    parts = segments_of(words)
    assert [part["text"] for part in parts] == ["one two", "three"]
    assert subtitles(parts, "srt") == (
        "1\n00:00:00,000 --> 00:00:00,800\none two\n\n2\n01:01:01,200 --> 01:01:01,500\nthree\n\n"
    )
    assert subtitles(parts, "vtt").startswith(
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.800\none two\n\n01:01:01.200"
    )
    long = segments_of(
        [
            {"text": "w", "timestamp": [np.float64(n), n + 0.9]}
            for n in range(30)
        ]
    )
    assert max(part["end"] - part["start"] for part in long) <= 8


def test_what_is_said_without_blanks_is_cut_too():
    heard = [
        TimedText(letter, 10 * number, 10 * number + 8)
        for number, letter in enumerate("我們a b明天" * 20)
    ]
    said = [
        {"text": one.text, "timestamp": [one.start * 0.02, one.end * 0.02]}
        for one in words(heard)
    ]
    assert [one["text"] for one in said[:6]] == [
        "我",
        "們",
        "a",
        "b",
        "明",
        "天",
    ]
    parts = segments_of(said)
    assert len(parts) > 2
    assert max(part["end"] - part["start"] for part in parts) <= 8
    assert parts[0]["text"].startswith("我們 a b 明天我們 a")


def test_a_transcription_that_is_asked_for_as_a_stream_is_one(api):
    said = [
        ("file", "upload", tones(SAID)),
        ("model", "", b"ears"),
        ("stream", "", b"true"),
    ]
    reply = api.ask("POST", "/v1/audio/transcriptions", *form(said))
    events = [
        msgspec.json.decode(line[6:])
        for line in reply.body.splitlines()
        if line
    ]
    assert events == [
        {"type": "transcript.text.delta", "delta": SAID},
        {"type": "transcript.text.done", "text": SAID},
    ]
