"""Calls of v2 beyond plain tensors: the task's raw input, chosen outputs, classification,
parameters.
"""

import base64
import json

import msgspec
import numpy as np
import pytest

from modelmill.errors import Expired
from modelmill.protocols.v2.values import pack_bytes, unpack_bytes
from modelmill.serve.wire import Answer, Tensor
from modelmill.types import TensorSpec
from tests.helpers.gateways import InMemoryApi, a_route
from tests.helpers.v2 import (
    a_mirror,
    binary,
    infer,
    mirror,
    outputs_of,
    refused,
    tensor,
)

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.0, 0.5]], np.float32)
LABELS = ["cat", "dog", "bird: small"]


async def classify(calls):
    """Answers the same scores to every row, and as JSON what the row brought."""
    answers = []
    for call in calls:
        brought = call.tensors[0]
        rows = brought.shape[0]
        scores = np.resize(SCORES, (rows, 3))
        tensors = [Tensor("scores", "FP32", [rows, 3], scores.tobytes())]
        if brought.datatype == "BYTES":
            said = [
                msgspec.json.encode([row.hex(), call.parameters])
                for row in unpack_bytes(brought.data)
            ]
            tensors.append(Tensor("answer", "BYTES", [rows], pack_bytes(said)))
        answers.append(Answer(call.id, tensors=tensors))
    return answers


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    api = InMemoryApi()
    folder = tmp_path_factory.mktemp("v2")
    workers = [
        api.worker(folder / "c", classify),
        api.worker(folder / "m", mirror),
    ]
    there = {"sockets": [workers[0].path]}
    model = {
        "inputs": [
            TensorSpec(name="image", datatype="UINT8", shape=[-1, 2, 2, 1])
        ],
        "outputs": [TensorSpec(name="scores", datatype="FP32", shape=[-1, 3])],
        "labels": LABELS,
    }
    texts = {
        **model,
        "inputs": [TensorSpec(name="ids", datatype="INT64", shape=[-1, 4])],
    }
    api.update(
        a_route("spots", **model, **there),
        a_route(
            "words", kind="text", task="text-classification", **texts, **there
        ),
        a_route(
            "bare", **{**model, "labels": []}, kind="tensor", task="", **there
        ),
        a_mirror(
            "m",
            ("x", "FP32", [-1, 2]),
            ("y", "BYTES", [-1]),
            kind="tensor",
            task="",
            sockets=[workers[1].path],
        ),
    )
    yield api
    for worker in workers:
        api.runner.run(worker.stop())
    api.close()


def raws(*values):
    return pack_bytes(values)


def raw_input(data, shape, name="image"):
    return tensor(
        shape=shape,
        datatype="BYTES",
        name=name,
        parameters={"binary_data_size": len(data)},
    )


# ---- the task's own input


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_a_picture_goes_in_as_its_file(api, shape):
    data = raws(b"\x89PNG", b"\xff\xd8")
    reply = binary(api, "spots", raw_input(data, shape), tail=data)
    assert outputs_of(reply)[0][:3] == ("scores", "FP32", [2, 3])
    reply = binary(
        api,
        "spots",
        raw_input(data, shape),
        tail=data,
        outputs=[{"name": "answer"}],
        parameters={"top_k": 1},
    )
    ((*head, said),) = outputs_of(reply)
    assert head == ["answer", "BYTES", [2]]
    assert [json.loads(one)[0] for one in said] == [
        b"\x89PNG".hex(),
        b"\xff\xd8".hex(),
    ]


def test_the_answer_and_tensors_may_be_requested_together(api):
    data = raws(b"\x89PNG")
    asked = [
        {"name": "answer", "parameters": {"binary_data": True}},
        {"name": "scores"},
    ]
    answer, scores = outputs_of(
        binary(api, "spots", raw_input(data, [1]), tail=data, outputs=asked)
    )
    assert len(unpack_bytes(answer[3])) == 1
    assert scores[3] == pytest.approx([0.1, 0.7, 0.2])


def test_in_json_a_text_is_itself_and_a_picture_is_base64(api):
    asked = {"outputs": [{"name": "answer"}]}
    text = tensor(["gut", "schön"], [2, 1], "BYTES", "text")
    assert (
        json.loads(outputs_of(infer(api, "words", text, **asked))[0][3][1])[0]
        == "schön".encode().hex()
    )
    picture = tensor(
        [base64.b64encode(b"\x89PNG").decode()], [1], "BYTES", "image"
    )
    assert (
        json.loads(outputs_of(infer(api, "spots", picture, **asked))[0][3][0])[
            0
        ]
        == b"\x89PNG".hex()
    )
    refused(
        infer(api, "spots", tensor(["not base64!"], [1], "BYTES", "image")),
        "base64",
    )


@pytest.mark.parametrize(
    ("model", "entry"),
    [
        ("spots", tensor(["aaaa"], [1, 2], "BYTES", "image")),
        ("spots", tensor(["aaaa"], [1, 1, 1], "BYTES", "image")),
        ("spots", tensor(["aaaa"], [], "BYTES", "image")),
        ("spots", tensor(["aaaa"], [2], "BYTES", "image")),
        ("spots", tensor(["aaaa"], [-1], "BYTES", "image")),
        ("spots", tensor(["aaaa"], [2**62, 1], "BYTES", "image")),
        ("spots", tensor(["aaaa"], [1], "BYTES", "text")),
        ("words", tensor(["aaaa"], [1], "BYTES", "image")),
        ("words", tensor([1], [1], "INT8", "text")),
        ("bare", tensor(["aaaa"], [1], "BYTES", "image")),
        ("bare", tensor(["aaaa"], [1], "BYTES", "tensor")),
    ],
)
def test_a_raw_input_that_does_not_fit_is_refused(api, model, entry):
    refused(infer(api, model, entry))


def test_a_raw_input_comes_alone(api):
    text = tensor(["a"], [1], "BYTES", "text")
    ids = tensor([1, 2, 3, 4], [1, 4], "INT64", "ids")
    refused(
        infer(api, "words", text, ids),
        "'text' of the datatype BYTES alone",
        "ids, ",
        "text, ids",
    )
    refused(infer(api, "words", text, text), "text, text")


def test_the_answer_needs_the_raw_input(api):
    ids = tensor([1, 2, 3, 4], [1, 4], "INT64", "ids")
    refused(
        infer(api, "words", ids, outputs=[{"name": "answer"}]),
        "scores, not 'answer'",
    )


def test_parameters_of_the_task_reach_it_and_others_do_not(api):
    text = tensor(["a"], [1], "BYTES", "text")
    parameters = {
        "top_k": 2,
        "sequence_id": 7,
        "content_type": "np",
        "binary_data_output": False,
        "priority": 3,
    }
    reply = infer(
        api, "words", text, outputs=[{"name": "answer"}], parameters=parameters
    )
    assert json.loads(outputs_of(reply)[0][3][0])[1] == {"top_k": 2}


def test_metadata_describe_the_raw_input(api):
    assert api.ask("GET", "/v2/models/words").json["task"] == {
        "name": "text-classification",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "answer", "datatype": "BYTES", "shape": [-1]}],
    }
    assert [
        one["name"] for one in api.ask("GET", "/v2/models/words").json["inputs"]
    ] == ["ids"]
    assert "task" not in api.ask("GET", "/v2/models/bare").json


# ---- classification


def classified(api, model, count, rows=2, **how):
    pixels = tensor([0] * 4 * rows, [rows, 2, 2, 1], "UINT8", "image")
    return infer(
        api,
        model,
        pixels,
        outputs=[
            {"name": "scores", "parameters": {"classification": count, **how}}
        ],
    )


def test_classes_are_named_best_first(api):
    said = [
        "0.700000:1:dog",
        "0.200000:2:bird: small",
        "0.500000:0:cat",
        "0.500000:2:bird: small",
    ]
    assert outputs_of(classified(api, "spots", 2)) == [
        ("scores", "BYTES", [2, 2], said)
    ]
    raw = outputs_of(classified(api, "spots", 2, binary_data=True))[0][3]
    assert unpack_bytes(raw) == [one.encode() for one in said]
    assert outputs_of(classified(api, "bare", 1))[0][3] == [
        "0.700000:1",
        "0.500000:0",
    ]


def test_no_more_classes_are_named_than_there_are(api):
    assert outputs_of(classified(api, "spots", 2**30))[0][2] == [2, 3]
    assert outputs_of(classified(api, "spots", 1, rows=0))[0][2:] == (
        [0, 1],
        [],
    )


@pytest.mark.parametrize("count", [-1, 2**31, 2**70, 1.5, "2", True, [], None])
def test_a_strange_number_of_classes_is_refused(api, count):
    refused(classified(api, "spots", count))


def test_only_numbers_are_classified(api):
    inputs = (tensor([1, 2]), tensor(["a"], [1], "BYTES", "y"))
    refused(
        infer(
            api,
            "m",
            *inputs,
            outputs=[{"name": "y_out", "parameters": {"classification": 1}}],
        ),
        "'y_out'",
    )
    two = [{"name": "x_out", "parameters": {"classification": 1}}]
    assert outputs_of(infer(api, "m", *inputs, outputs=two))[0][3] == [
        "2.000000:1"
    ]


# ---- parameters, versions, names


def test_an_output_is_requested_once(api):
    refused(
        infer(
            api,
            "m",
            tensor([1, 2]),
            tensor(["a"], [1], "BYTES", "y"),
            outputs=[{"name": "x_out"}] * 2,
        ),
        "twice",
    )


class Overheard:
    """What the gateway is asked, on its way."""

    def __init__(self, api):
        self.api, self.said = api, []

    def __enter__(self):
        self.predict = self.api.gateway.predict

        async def listen(*arguments, **named):
            self.said.append(named)
            return await self.predict(*arguments, **named)

        self.api.gateway.predict = listen
        return self.said

    def __exit__(self, *_):
        self.api.gateway.predict = self.predict


def test_what_a_request_says_of_itself_reaches_the_gateway(api):
    pixels = tensor([0] * 4, [1, 2, 2, 1], "UINT8", "image")
    parameters = {
        "priority": 2,
        "timeout": 1_500_000,
        "other": [1],
        "sequence_id": 9,
    }
    with Overheard(api) as said:
        assert (
            infer(api, "spots", pixels, id="a", parameters=parameters).status
            == 200
        )
        assert (
            infer(
                api, "spots", pixels, headers={"x-request-id": "b"}, id="a"
            ).status
            == 200
        )
        assert infer(api, "spots", pixels, id="a\nb").status == 200
        data = raws(b"\x89PNG")
        assert (
            binary(
                api,
                "spots",
                raw_input(data, [1]),
                tail=data,
                outputs=[{"name": "answer"}],
            ).status
            == 200
        )
    first, second, third, fourth = said
    assert (
        first["priority"],
        first["timeout"],
        first["request_id"],
        first["outputs"],
    ) == (2, 1.5, "a", ())
    assert not first["parameters"]
    assert (second["priority"], second["timeout"], second["request_id"]) == (
        0,
        None,
        "b",
    )
    assert third["request_id"] == ""
    assert list(fourth["outputs"]) == ["answer"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"priority": -1},
        {"priority": 1.5},
        {"priority": "1"},
        {"priority": True},
        {"priority": 2**64},
        {"timeout": -1},
        {"timeout": "1"},
        {"timeout": 10**400},
        {"timeout": None},
        {"version": 1.5},
        {"version": []},
        {"version": True},
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(api, parameters):
    pixels = tensor([0] * 4, [1, 2, 2, 1], "UINT8", "image")
    refused(
        infer(api, "spots", pixels, parameters=parameters),
        f"parameter {next(iter(parameters))}",
    )


def test_unknown_parameters_are_accepted(api):
    pixels = tensor([0] * 4, [1, 2, 2, 1], "UINT8", "image")
    parameters = {
        "s": "v",
        "i": 3,
        "b": True,
        "f": 0.5,
        "n": None,
        "l": [1],
        "o": {"a": 1},
        "big": 2**70,
    }
    assert (
        infer(
            api,
            "spots",
            {**pixels, "parameters": {"content_type": "np"}},
            parameters=parameters,
        ).status
        == 200
    )
    assert (
        infer(api, "spots", {**pixels, "more": 1}, more=[], outputs=None).status
        == 200
    )


def test_a_version_may_be_pinned_in_three_places(api):
    pixels = tensor([0] * 4, [1, 2, 2, 1], "UINT8", "image")
    for version in (1, "1"):
        assert (
            infer(api, "spots", pixels, parameters={"version": version}).status
            == 200
        )
        assert (
            infer(
                api,
                "spots",
                pixels,
                headers={"x-modelmill-version": str(version)},
            ).status
            == 200
        )
    assert infer(api, "spots/versions/1", pixels).status == 200
    assert infer(api, "spots", pixels, parameters={"version": 9}).status == 404
    assert (
        infer(api, "spots", pixels, headers={"x-modelmill-version": "9"}).status
        == 404
    )
    assert infer(api, "spots/versions/9", pixels).status == 404
    refused(
        infer(api, "spots/versions/1", pixels, parameters={"version": 9}),
        "1",
        "9",
    )


@pytest.mark.parametrize(
    ("parameters", "status"), [({"timeout": 1000}, 503), ({}, 504)]
)
def test_a_request_that_waited_longer_than_it_allowed_is_503(
    api, parameters, status
):
    async def expire(*_, **__):
        raise Expired("it waited too long")

    kept, api.gateway.predict = api.gateway.predict, expire
    reply = infer(
        api,
        "spots",
        tensor([0] * 4, [1, 2, 2, 1], "UINT8", "image"),
        parameters=parameters,
    )
    api.gateway.predict = kept
    assert (reply.status, reply.error) == (status, "it waited too long")


def test_a_known_head_with_another_body_is_looked_at_again(api):
    entry = tensor(
        shape=[1, 2, 2, 1],
        datatype="UINT8",
        name="image",
        parameters={"binary_data_size": 4},
    )
    assert binary(api, "spots", entry, tail=b"1234").status == 200
    for tail in (b"", b"123", b"12345", b"12345678"):
        refused(binary(api, "spots", entry, tail=tail))
    assert binary(api, "spots", entry, tail=b"4321").status == 200


def test_many_heads_do_not_gather(api):
    for number in range(200):
        entry = tensor(
            shape=[1, 2, 2, 1],
            datatype="UINT8",
            name="image",
            parameters={"binary_data_size": 4},
        )
        reply = binary(
            api,
            "spots",
            entry,
            tail=b"1234",
            id=str(number) * (number % 2),
            nonce=number,
        )
        assert reply.status == 200
        assert reply.body.count(b'"id":') == (number % 2)


def test_a_rolled_version_is_checked_by_its_own_signature(tmp_path):
    own = InMemoryApi()
    worker = own.worker(tmp_path / "own", mirror)
    for width in (2, 3, 2):
        own.update(
            a_mirror("m", ("x", "UINT8", [-1, width]), sockets=[worker.path])
        )
        entry = tensor(
            shape=[1, 2], datatype="UINT8", parameters={"binary_data_size": 2}
        )
        reply = binary(own, "m", entry, tail=b"12")
        assert reply.status == (200 if width == 2 else 400)
    own.runner.run(worker.stop())
    own.close()
