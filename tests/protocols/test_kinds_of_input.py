"""Conversations and token ids reach a worker as its input, by whichever protocol they come."""

import msgspec
import pytest

from modelmill.serve.tensors import elements_of, texts_of
from modelmill.serve.wire import ANSWER, Answer, Batch
from modelmill.types import TensorSpec
from tests.helpers.gateways import InMemoryApi, a_route

MESSAGES = [{"role": "user", "content": "grind"}]
CONVERSATION = (b'[{"role":"user","content":"grind"}]', "conversation")
IDS = (b"[5,6]", "token_ids")
WHOLE = msgspec.json.encode(
    {
        "generated_text": "x",
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": 1,
            "total_tokens": 2,
        },
    }
)


class Recorder:
    """A worker that remembers what it was asked."""

    def __init__(self):
        self.calls = []

    async def __call__(self, calls):
        self.calls += calls
        answers = [
            Answer(call.id, tensors=[texts_of(ANSWER, [WHOLE])])
            if call.data is None
            else Answer(call.id, WHOLE)
            for call in calls
        ]
        return Batch(answers, rows=len(calls))


@pytest.fixture
def asked(tmp_path):
    api, recorder = InMemoryApi(), Recorder()
    worker = api.worker(tmp_path / "w", recorder)
    ids = [TensorSpec(name="ids", datatype="INT64", shape=[-1, -1])]
    api.update(
        a_route(
            "miller",
            task="text-generation",
            kind="text",
            also=("conversation", "token_ids"),
            grows=True,
            inputs=ids,
            outputs=[],
            sockets=[worker.path],
        )
    )

    def ask(path, **document):
        headers = {"content-type": "application/json"}
        reply = api.ask("POST", path, msgspec.json.encode(document), headers)
        return reply, recorder.calls

    yield ask
    api.runner.run(worker.stop())
    api.close()


@pytest.mark.parametrize(
    ("path", "document", "data"),
    [
        (
            "/v1/chat/completions",
            {"model": "miller", "messages": MESSAGES},
            CONVERSATION,
        ),
        ("/v1/completions", {"model": "miller", "prompt": [5, 6]}, IDS),
        (
            "/models/miller",
            {"inputs": "", "parameters": {"messages": MESSAGES}},
            CONVERSATION,
        ),
        (
            "/models/miller",
            {"inputs": "x", "parameters": {"token_ids": [5, 6]}},
            IDS,
        ),
        (
            "/v2/models/miller/generate",
            {"text_input": "", "messages": MESSAGES},
            CONVERSATION,
        ),
        (
            "/v2/models/miller/generate",
            {"text_input": "", "parameters": {"token_ids": [5, 6]}},
            IDS,
        ),
        (
            "/models/miller",
            {"inputs": "x", "parameters": {"messages": None}},
            (b"x", ""),
        ),
    ],
)
def test_it_is_the_input_and_no_parameter(asked, path, document, data):
    reply, calls = asked(path, **document)
    assert reply.status == 200, reply.body
    (call,) = calls
    assert (call.data, call.kind) == data
    assert not call.parameters.keys() & {"messages", "token_ids"}


@pytest.mark.parametrize(
    ("name", "data", "parameters"),
    [
        ("text", ["", ""], {"messages": MESSAGES}),
        ("conversation", [CONVERSATION[0].decode()] * 2, {}),
    ],
)
def test_a_tensor_of_v2_holds_one_in_each_row(asked, name, data, parameters):
    entry = {"name": name, "datatype": "BYTES", "shape": [2], "data": data}
    outputs = [{"name": ANSWER}]
    reply, calls = asked(
        "/v2/models/miller/infer",
        inputs=[entry],
        outputs=outputs,
        parameters=parameters,
    )
    assert reply.status == 200, reply.body
    (call,) = calls
    (tensor,) = call.tensors
    assert (tensor.name, tensor.datatype, tensor.shape) == (
        "conversation",
        "BYTES",
        [2],
    )
    assert elements_of(tensor) == [CONVERSATION[0]] * 2
    assert "messages" not in call.parameters


def test_what_is_none_is_refused_before_it_is_queued(asked):
    parameters = {"messages": [{"role": "user"}]}
    reply, calls = asked("/models/miller", inputs="", parameters=parameters)
    assert (reply.status, calls) == (400, [])
    assert b"message 0 has no content" in reply.body
    both = {"messages": MESSAGES, "token_ids": [5]}
    reply, calls = asked("/models/miller", inputs="", parameters=both)
    assert (reply.status, calls) == (400, [])
    assert (
        b"messages and token_ids are two inputs: send one of them" in reply.body
    )
