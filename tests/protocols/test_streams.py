"""Streams of texts that grow: what a worker tells, each token once, whatever it tells again;
counted and traced.
"""

import time

import msgspec
import pytest

from modelmill.serve.tracing import Tracing, trace_call
from modelmill.serve.wire import Answer, Batch, Part
from modelmill.settings import read_settings
from modelmill.types import StreamPart, TensorSpec
from tests.helpers.gateways import InMemoryApi, a_route
from tests.serve.test_tracing import Collector

WORDS = ["the ", "", "mill", ""]
"""What each token adds: the second and the last one nothing."""


def parts(call, *, logprobs=False):
    """The parts of an answer, as a worker tells them."""
    found, at = [], 0
    for number, text in enumerate(WORDS, 1):
        last = number == len(WORDS)
        near = {
            "token": text,
            "bytes": None,
            "logprob": -1.0,
            "offset": at,
            "top": [],
        }
        part = StreamPart(
            number,
            number,
            text,
            at,
            3,
            special=last,
            logprob=near if logprobs else None,
            finish_reason="stop" if last else "",
            ended_by="eos_token" if last else "",
        )
        found.append(Part(call.id, part))
        at += len(text)
    return found


async def tells(calls):
    """Two tokens, and then all again, as another worker does when the first was lost."""
    (call,) = calls
    said = parts(call, logprobs="logprobs" in call.parameters)
    usage = {"prompt_tokens": 3, "completion_tokens": len(WORDS)}
    whole = {
        "generated_text": "".join(WORDS),
        "finish_reason": "stop",
        "usage": usage,
    }
    told = said[:2]
    if (
        call.data == b"otherwise"
    ):  # the second token is another one, when all is said again
        other = msgspec.structs.replace(said[1].part, token=99)
        told = [said[0], Part(call.id, other)]
    answer = Answer(call.id, msgspec.json.encode(whole), usage=usage)
    return Batch([answer], parts=[*told, *said], rows=1)


@pytest.fixture
def api(tmp_path):
    api = InMemoryApi()
    worker = api.worker(tmp_path / "w", tells)
    text = [TensorSpec(name="text", datatype="BYTES", shape=[-1])]
    api.update(
        a_route(
            "miller",
            task="text-generation",
            kind="text",
            grows=True,
            inputs=text,
            sockets=[worker.path],
        )
    )
    yield api
    api.runner.run(worker.stop())
    api.close()


def events(api, path, **document):
    reply = api.ask(
        "POST",
        path,
        msgspec.json.encode(document),
        {"content-type": "application/json"},
    )
    assert reply.status == 200, reply.body
    lines = [
        line.partition(b":")[2].strip()
        for line in reply.body.splitlines()
        if line.startswith(b"data")
    ]
    return [msgspec.json.decode(line) for line in lines if line != b"[DONE]"]


def test_hugging_face_hears_of_each_token_once(api):
    found = events(api, "/models/miller", inputs="x", stream=True)
    assert [
        (one["index"], one["token"]["text"], one["token"]["special"])
        for one in found
    ] == [
        (1, "the ", False),
        (2, "", False),
        (3, "mill", False),
        (4, "", True),
    ]
    assert [one["generated_text"] for one in found] == [
        None,
        None,
        None,
        "the mill",
    ]


def test_openai_hears_of_what_is_new_and_with_logprobs_of_each_token(api):
    asked = {"model": "miller", "prompt": "x", "stream": True}
    texts = [
        one["choices"][0]["text"]
        for one in events(api, "/v1/completions", **asked)
    ]
    assert texts == ["the ", "mill", ""]
    found = events(api, "/v1/completions", **asked, logprobs=0)
    assert [
        one["choices"][0]["logprobs"]["token_logprobs"] for one in found
    ] == [[-1.0]] * 4
    assert [one["choices"][0]["logprobs"]["text_offset"] for one in found] == [
        [0],
        [4],
        [4],
        [8],
    ]
    messages = [{"role": "user", "content": "x"}]
    found = events(
        api,
        "/v1/chat/completions",
        model="miller",
        messages=messages,
        stream=True,
    )
    assert [one["choices"][0]["delta"] for one in found][1:] == [
        {"content": "the "},
        {"content": "mill"},
        {},
    ]
    assert found[-1]["choices"][0]["finish_reason"] == "stop"


def test_v2_hears_of_what_is_new(api):
    found = events(api, "/v2/models/miller/generate_stream", text_input="x")
    assert [one["text_output"] for one in found] == ["the ", "mill"]


def test_a_text_that_another_worker_says_otherwise_ends_in_an_error_event(api):
    found = events(
        api, "/v1/completions", model="miller", prompt="otherwise", stream=True
    )
    assert found[0]["choices"][0]["text"] == "the "
    assert (
        "could not go on with the same text: ask again"
        in found[-1]["error"]["message"]
    )


def test_its_tokens_are_counted_once(api):
    events(api, "/models/miller", inputs="x", stream=True)
    [pool] = [pool for _, pool in api.gateway.pools()]
    assert (pool.series.prompt_tokens, pool.series.completion_tokens) == (
        3,
        len(WORDS),
    )


def test_a_stream_is_traced_to_its_end(api, monkeypatch, tmp_path):
    pytest.importorskip("opentelemetry.sdk")
    monkeypatch.setenv("MODELMILL_HOME", str(tmp_path))
    collector = Collector()
    tracer = Tracing.from_settings(
        read_settings(tracing={"endpoint": collector.url})
    )
    api.gateway.tracing = tracer
    api.gateway.observers += (trace_call,)
    before = time.time_ns()
    events(api, "/models/miller", inputs="x", stream=True)
    tracer.close()
    collector.close()
    whole, compute = (
        collector.spans["POST /models/{name}"],
        collector.spans["compute"],
    )
    assert compute.parent_span_id == whole.span_id
    assert (
        before
        <= compute.start_time_unix_nano
        <= compute.end_time_unix_nano
        <= whole.end_time_unix_nano
    )
