"""A model that writes, on a running platform: whole and streamed answers, many at once, and a
worker that is killed.
"""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx2
import openai
import pytest
from huggingface_hub import InferenceClient

from modelmill.bundle import open_bundle
from modelmill.errors import InvalidInput, NotFound
from modelmill.predictor import Predictor
from modelmill.protocols.v2.grpc.messages import message
from tests.helpers.text_bundles import writing_bundle
from tests.platform.conftest import Platform, until

PROMPT = "the mill "

pytestmark = pytest.mark.xdist_group("writing")  # its platform is made once


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writing")
    platform = Platform(folder / "home")
    try:
        platform.client.import_model(
            "writer", writing_bundle(folder / "bundle")
        )
        platform.client.deploy("writer", wait=True)
        yield platform
    finally:
        platform.end()


@pytest.fixture
def client(running):
    with openai.OpenAI(
        base_url=f"{running.url}/v1", api_key=running.client.key, max_retries=0
    ) as client:
        yield client


def write(client, **options):
    return client.completions.create(
        **{
            "model": "writer",
            "prompt": PROMPT,
            "max_tokens": 20,
            "seed": 1,
            **options,
        }
    )


def test_a_text_goes_on_the_same_way_whole_and_streamed(client):
    whole = write(client)
    assert len(whole.choices[0].text) == 20
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (
        len(PROMPT),
        20,
    )
    parts = list(
        write(client, stream=True, stream_options={"include_usage": True})
    )
    assert (
        "".join(part.choices[0].text for part in parts if part.choices)
        == whole.choices[0].text
    )
    assert parts[-1].usage == whole.usage
    assert [part.choices[0].finish_reason for part in parts if part.choices][
        -1
    ] == "length"


def test_a_conversation_is_answered(client):
    messages = [{"role": "user", "content": "grind"}]
    options = {
        "model": "writer",
        "messages": messages,
        "max_tokens": 12,
        "seed": 5,
    }
    whole = client.chat.completions.create(
        **options, logprobs=True, top_logprobs=2
    )
    assert whole.choices[0].message.role == "assistant"
    assert len(whole.choices[0].message.content) == 12
    assert len(whole.choices[0].logprobs.content) == 12
    assert all(
        len(one.top_logprobs) == 2 for one in whole.choices[0].logprobs.content
    )
    parts = list(client.chat.completions.create(**options, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert (
        "".join(part.choices[0].delta.content or "" for part in parts)
        == whole.choices[0].message.content
    )


def test_the_same_seed_says_the_same_whatever_runs_beside_it(client):
    alone = {
        seed: write(client, seed=seed).choices[0].text for seed in range(4)
    }
    assert len(set(alone.values())) == 4
    with ThreadPoolExecutor(24) as pool:
        found = list(
            pool.map(
                lambda number: write(client, seed=number % 4).choices[0].text,
                range(96),
            )
        )
    assert found == [alone[number % 4] for number in range(96)]


def test_several_prompts_and_several_answers(client):
    found = write(client, prompt=["the ", "a "], n=3, temperature=1.5)
    assert [choice.index for choice in found.choices] == list(range(6))
    assert len({choice.text for choice in found.choices}) == 6
    assert found.usage.completion_tokens == 120
    assert found.usage.prompt_tokens == len("the ") + len("a ")
    options = {
        "prompt": ["the ", "a "],
        "n": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert list(write(client, **options))[-1].usage == found.usage
    assert (
        len(write(client, prompt=["the "] * 100, max_tokens=1).choices) == 100
    )


def test_tokens_have_offsets_and_bytes(client):
    found = write(client, logprobs=2).choices[0]
    assert found.logprobs.text_offset == [*range(20)]
    assert "".join(found.logprobs.tokens) == found.text
    said = client.chat.completions.create(
        model="writer",
        messages=[{"role": "user", "content": "a"}],
        max_tokens=5,
        logprobs=True,
        top_logprobs=1,
    ).choices[0]
    assert (
        bytes(
            byte for one in said.logprobs.content for byte in one.bytes
        ).decode()
        == said.message.content
    )
    assert all(
        bytes(one.top_logprobs[0].bytes).decode() == one.top_logprobs[0].token
        for one in said.logprobs.content
    )


def test_without_a_seed_each_sample_differs_and_the_seed_is_returned(running):
    hub = InferenceClient(
        model=f"{running.url}/models/writer",
        token=running.client.key,
        provider="hf-inference",
    )
    options = {
        "do_sample": True,
        "temperature": 2.0,
        "max_new_tokens": 30,
        "details": True,
    }
    one, other = (hub.text_generation(PROMPT, **options) for _ in range(2))
    assert one.generated_text != other.generated_text
    again = hub.text_generation(PROMPT, **options, seed=one.details.seed)
    assert again.generated_text == one.generated_text
    url = f"{running.url}/v2/models/writer/generate"
    asked = {"text_input": PROMPT, "max_tokens": 30, "temperature": 2.0}
    said = {
        httpx2.post(url, json=asked, headers=running.headers).json()[
            "text_output"
        ]
        for _ in range(2)
    }
    assert len(said) == 2


def test_the_prompt_comes_back_as_it_was_sent(running):
    hub = InferenceClient(
        model=f"{running.url}/models/writer",
        token=running.client.key,
        provider="hf-inference",
    )
    prompt = "Über [END] the Mill"
    assert hub.text_generation(
        prompt, max_new_tokens=4, return_full_text=True
    ).startswith(prompt)


def test_what_is_not_offered_may_be_said_where_it_changes_nothing(running):
    body = {
        "inputs": PROMPT,
        "parameters": {
            "max_new_tokens": 4,
            "watermark": False,
            "typical_p": 1.0,
            "best_of": 1,
        },
    }
    assert (
        httpx2.post(
            f"{running.url}/models/writer", json=body, headers=running.headers
        ).status_code
        == 200
    )
    body["parameters"]["watermark"] = True
    reply = httpx2.post(
        f"{running.url}/models/writer", json=body, headers=running.headers
    )
    assert (reply.status_code, reply.json()["error"]) == (
        400,
        "watermark is not offered: leave it out",
    )


def test_token_ids_are_prompts(client):
    found = write(client, prompt=[[5, 6, 7], [8, 9]], seed=1)
    assert found.usage.prompt_tokens == 5
    assert (
        write(client, prompt=[5, 6, 7], seed=1).choices[0].text
        == found.choices[0].text
    )
    with pytest.raises(
        openai.BadRequestError, match="token ids are whole numbers from 0 to"
    ):
        write(client, prompt=[[5, 10_000]])


def test_a_conversation_is_answered_alike_by_every_protocol(running, client):
    messages = [{"role": "user", "content": "grind"}]
    said = client.chat.completions.create(
        model="writer", messages=messages, max_tokens=12, seed=5
    )
    text = said.choices[0].message.content
    how = {"max_new_tokens": 12, "seed": 5, "temperature": 1.0}
    named = {**how, "messages": messages}

    def post(path, document):
        reply = httpx2.post(
            f"{running.url}{path}", json=document, headers=running.headers
        )
        assert reply.status_code == 200, reply.text
        return reply.json()

    (found,) = post("/models/writer", {"inputs": "", "parameters": named})
    assert found["generated_text"] == text
    body = {"text_input": "", "parameters": named}
    assert post("/v2/models/writer/generate", body)["text_output"] == text
    rows = {"text": ["", ""], "conversation": [json.dumps(messages)] * 2}
    for name, data in rows.items():
        entry = {"name": name, "datatype": "BYTES", "shape": [2], "data": data}
        given = named if name == "text" else how
        body = {
            "inputs": [entry],
            "outputs": [{"name": "answer"}],
            "parameters": given,
        }
        (answer,) = post("/v2/models/writer/infer", body)["outputs"]
        assert [
            json.loads(one)["generated_text"] for one in answer["data"]
        ] == [text] * 2


def test_the_weights_that_were_asked_for_are_those_that_answer(
    running, client, tmp_path
):
    bundle = writing_bundle(tmp_path / "bundle")
    running.client.deploy("writer", name="small", precision="int8", wait=True)
    said = {}
    for name, precision in (("writer", "fp32"), ("small", "int8")):
        model = Predictor(bundle, open_bundle(bundle), precision=precision)
        alone = model.predict([PROMPT], {"max_new_tokens": 20, "logprobs": 0})[
            0
        ]["logprobs"]
        served = (
            write(client, model=name, temperature=0, logprobs=0)
            .choices[0]
            .logprobs
        )
        said[name] = served.token_logprobs
        assert said[name] == pytest.approx(
            [one["logprob"] for one in alone], abs=1e-6
        )
    assert said["writer"] != pytest.approx(said["small"], abs=1e-6)


def test_the_sdk_and_the_command_line_show_a_text_while_it_is_written(
    running, client
):
    options = {"max_new_tokens": 20, "temperature": 1.0, "seed": 1}
    whole = write(client).choices[0].text
    parts = list(running.client.stream("writer", PROMPT, parameters=options))
    assert (len(parts), "".join(parts)) == (20, whole)
    asked = [
        word
        for name, value in options.items()
        for word in ("--set", f"{name}={value}")
    ]
    assert (
        running.run("predict", "writer", PROMPT, "--stream", *asked).stdout
        == f"{whole}\n"
    )
    with pytest.raises(InvalidInput, match="temperature"):
        list(
            running.client.stream(
                "writer", PROMPT, parameters={"temperature": -1}
            )
        )
    with pytest.raises(NotFound, match="did you mean 'writer'"):
        list(running.client.stream("writr", PROMPT))


def test_one_can_talk_with_it_on_the_command_line(running, client):
    said = "grind\n\n"
    found = running.run(
        "chat",
        "writer",
        "--set",
        "max_tokens=12",
        "--set",
        "seed=5",
        stdin=said,
    ).stdout
    messages = [{"role": "user", "content": "grind"}]
    whole = client.chat.completions.create(
        model="writer", messages=messages, max_tokens=12, seed=5
    )
    assert found == f"{whole.choices[0].message.content}\n"


def test_stop_texts_end_it(client):
    whole = write(client).choices[0].text
    stopped = write(client, stop=whole[5:8]).choices[0]
    assert stopped.text == whole[: whole.index(whole[5:8])]
    assert stopped.finish_reason == "stop"


def test_hugging_face_and_v2_go_on_too(running):
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8}}
    found = httpx2.post(
        f"{running.url}/models/writer", json=body, headers=running.headers
    ).json()
    assert len(found[0]["generated_text"]) == 8
    tensor = {
        "name": "text",
        "datatype": "BYTES",
        "shape": [1],
        "data": [PROMPT],
    }
    document = {
        "inputs": [tensor],
        "outputs": [{"name": "answer"}],
        "parameters": {"max_tokens": 8},
    }
    reply = httpx2.post(
        f"{running.url}/v2/models/writer/infer",
        json=document,
        headers=running.headers,
    ).json()
    assert "outputs" in reply, reply
    assert (
        json.loads(reply["outputs"][0]["data"][0])["generated_text"]
        == found[0]["generated_text"]
    )


def test_hugging_faces_client_streams_and_chats(running):
    hub = InferenceClient(
        model=f"{running.url}/models/writer",
        token=running.client.key,
        provider="hf-inference",
    )
    whole = hub.text_generation(PROMPT, max_new_tokens=8, details=True)
    assert (whole.details.finish_reason, len(whole.details.tokens)) == (
        "length",
        8,
    )
    parts = list(
        hub.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True)
    )
    assert (
        "".join(part.token.text for part in parts)
        == parts[-1].generated_text
        == whole.generated_text
    )
    assert parts[-1].details.finish_reason == "length"
    assert hub.text_generation(
        PROMPT, max_new_tokens=4, return_full_text=True
    ).startswith(PROMPT)
    said = hub.chat_completion(
        [{"role": "user", "content": "grind"}], max_tokens=5, seed=3
    )
    assert len(said.choices[0].message.content) == 5


def test_v2_generates_whole_and_in_parts(running):
    body = {"text_input": PROMPT, "parameters": {"max_tokens": 9}}
    address = f"{running.url}/v2/models/writer"
    whole = httpx2.post(
        f"{address}/generate", json=body, headers=running.headers
    ).json()
    beside = httpx2.post(
        f"{address}/generate",
        json={"text_input": PROMPT, "max_tokens": 9},
        headers=running.headers,
    )
    assert beside.json() == whole
    assert (
        whole["model_name"],
        whole["model_version"],
        len(whole["text_output"]),
    ) == (
        "writer",
        "1",
        9,
    )
    reply = httpx2.post(
        f"{address}/generate_stream", json=body, headers=running.headers
    )
    assert reply.headers["content-type"] == "text/event-stream"
    parts = [
        json.loads(line[6:])["text_output"]
        for line in reply.text.splitlines()
        if line.startswith("data: ")
    ]
    assert "".join(parts) == whole["text_output"]
    assert len(parts) == 9
    refused = httpx2.post(
        f"{address}/generate", json={"text": "x"}, headers=running.headers
    )
    assert refused.status_code == 400
    assert "text_input" in refused.json()["error"]


def test_a_grpc_stream_sends_parts(running):
    request = message("inference.ModelInferRequest")(
        model_name="writer", id="7"
    )
    request.inputs.add(name="text", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(
        len(PROMPT).to_bytes(4, "little") + PROMPT.encode()
    )
    request.outputs.add(name="text_output")
    request.parameters["max_tokens"].int64_param = 6
    address = (running.home / "grpc_address").read_text().strip()
    key = [("authorization", running.headers["Authorization"])]
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=type(request).SerializeToString,
            response_deserializer=message(
                "inference.ModelStreamInferResponse"
            ).FromString,
        )
        found = [
            one.infer_response for one in call(iter([request]), metadata=key)
        ]
    last = found.pop()
    assert [
        one.parameters["triton_final_response"].bool_param
        for one in (*found, last)
    ] == [False] * 6 + [True]
    assert last.parameters["finish_reason"].string_param == "length"
    whole = httpx2.post(
        f"{running.url}/v2/models/writer/generate",
        json={"text_input": PROMPT, "parameters": {"max_tokens": 6}},
        headers=running.headers,
    ).json()["text_output"]
    assert (
        b"".join(one.raw_output_contents[0][4:] for one in found).decode()
        == whole
    )
    assert {one.id for one in found} == {"7"}


def test_tokens_are_counted_and_timed(running, client):
    list(write(client, stream=True, max_tokens=12))
    found = httpx2.get(f"{running.url}/metrics", headers=running.headers).text
    values = dict(
        line.rsplit(" ", 1)
        for line in found.splitlines()
        if not line.startswith("#")
    )

    def value(start):
        return sum(
            float(number)
            for name, number in values.items()
            if name.startswith(start)
        )

    assert (
        value('modelmill_tokens_total{deployment="writer",kind="completion"')
        >= 12
    )
    assert value("modelmill_usage_tokens_total") == value(
        "modelmill_tokens_total"
    )
    assert value("modelmill_first_token_seconds_count") >= 1
    assert value("modelmill_next_token_seconds_count") >= 11


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"prompt": "x" * 500},
            "the prompt has 500 tokens, and the model a context of 128",
        ),
        ({"prompt": ""}, "not an empty one"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 100}, "n is a whole number from 1 to 16"),
        (
            {"n": 16, "prompt": ["x"] * 20},
            "20 prompts with n=16 want 320 answers; 256 are given at most",
        ),
        (
            {"n": 2, "best_of": 4},
            "best_of is not supported, other than as many as n",
        ),
        ({"n": 0}, "n is a whole number from 1"),
        ({"seed": "abc"}, "seed is a whole number from 0"),
        ({"seed": 2**63 - 1}, "seed is a whole number from 0"),
        ({"stream_options": "x"}, "stream_options wants the form"),
        ({"presence_penalty": 1}, "presence_penalty is not supported"),
        ({"prompt": [1, 10_000]}, "token ids are whole numbers from 0 to"),
        ({"prompt": {"text": "a"}}, "prompt is a text, a list of texts"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_before_anything_is_streamed(
    client, options, says, stream
):
    with pytest.raises(openai.BadRequestError) as refused:
        write(client, stream=stream, **options)
    assert says in refused.value.message


def test_a_stream_of_nothing_is_one(running):
    url = f"{running.url}/v2/models/writer/generate"
    asked = {
        "text_input": PROMPT,
        "parameters": {"max_tokens": 1, "temperature": 0},
    }
    first = httpx2.post(url, headers=running.headers, json=asked).json()[
        "text_output"
    ]
    asked["parameters"]["stop"] = [first]
    answer = httpx2.post(f"{url}_stream", headers=running.headers, json=asked)
    assert answer.status_code == 200
    [event] = [
        json.loads(line[6:]) for line in answer.text.splitlines() if line
    ]
    assert event["text_output"] == ""


def test_each_token_of_a_stream_is_sent_once_with_its_number(running):
    parameters = {"max_new_tokens": 12, "stop": ["zz"], "details": True}
    with httpx2.stream(
        "POST",
        f"{running.url}/models/writer",
        headers=running.headers,
        json={"inputs": PROMPT, "parameters": parameters, "stream": True},
    ) as answer:
        events = [
            json.loads(line[5:])
            for line in answer.iter_lines()
            if line.startswith("data:")
        ]
    assert [one["index"] for one in events] == [*range(1, 13)]
    assert (
        "".join(one["token"]["text"] for one in events)
        == events[-1]["generated_text"]
    )


def test_what_was_written_for_one_who_leaves_is_counted(running, client):
    def counted():
        found = httpx2.get(
            f"{running.url}/metrics", headers=running.headers
        ).text
        lines = [
            line
            for line in found.splitlines()
            if line.startswith("modelmill_tokens_total{") and "writer" in line
        ]
        return {
            kind: sum(float(line.split()[-1]) for line in lines if kind in line)
            for kind in ("prompt", "completion")
        }

    before = counted()
    with write(client, stream=True, max_tokens=110) as stream:
        next(iter(stream))
    until(lambda: counted()["prompt"] == before["prompt"] + len(PROMPT))
    assert 1 <= counted()["completion"] - before["completion"] <= 110


def test_texts_of_a_tensor_are_counted_and_not_too_many(running):
    url = f"{running.url}/v2/models/writer/infer"
    body = {"outputs": [{"name": "answer"}]}

    def ask(count):
        texts = {
            "name": "text",
            "datatype": "BYTES",
            "shape": [count],
            "data": [PROMPT] * count,
        }
        body["inputs"] = [texts]
        return httpx2.post(
            url,
            json={**body, "parameters": {"max_tokens": 2}},
            headers=running.headers,
            timeout=60,
        )

    usage = [
        json.loads(one)["usage"]["completion_tokens"]
        for one in ask(3).json()["outputs"][0]["data"]
    ]
    assert usage == [2, 2, 2]
    refused = ask(300)
    assert refused.status_code == 400
    assert "at most 256 are taken at a time" in refused.json()["error"]


def test_who_leaves_makes_room(running, client):
    streams = [
        write(client, stream=True, max_tokens=110, seed=seed)
        for seed in range(40)
    ]
    for stream in streams:
        stream.close()
    started = time.monotonic()
    assert write(client, max_tokens=5).choices[0].text
    assert time.monotonic() - started < 10


def test_a_worker_killed_in_mid_stream_is_gone_on_from_by_another(
    running, client
):
    wanted = {
        seed: write(client, seed=seed, max_tokens=110).choices[0].text
        for seed in range(8)
    }
    begun = threading.Barrier(9)

    def read(seed):
        parts = []
        for number, part in enumerate(
            write(client, seed=seed, max_tokens=110, stream=True)
        ):
            parts.append(part.choices[0].text)
            if number == 0:
                begun.wait(30)
        return "".join(parts)

    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(read, seed) for seed in range(8)]
        begun.wait(30)
        running.children("modelmill: worker writer")[0].kill()
        assert {seed: one.result() for seed, one in enumerate(found)} == wanted
    until(lambda: running.children("modelmill: worker writer"))
