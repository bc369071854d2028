"""The Open Inference Protocol: tensors as JSON or binary, checked against the model's signature."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.engines.base import NUMPY
from tests.helpers.gateways import Door
from tests.protocols.v2 import HEADER, a_mirror, binary, infer, mirror, refused, tensor

KINDS = sorted(NUMPY)


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    door = Door()
    worker = door.worker(tmp_path_factory.mktemp("v2") / "w", mirror)
    there = {"sockets": [worker.path]}
    door.update(
        *(a_mirror(f"m-{kind}", ("x", kind, [-1, 2]), **there) for kind in KINDS),
        a_mirror("two", ("a", "FP32", [-1, 2]), ("b", "INT64", [-1]), **there),
        a_mirror("free", ("x", "UINT8", [-1, -1, -1, 3]), **there),
        a_mirror("alone", ("x", "UINT8", [-1])),
        a_mirror("fresh", ("x", "UINT8", [-1]), ready=False, error=""),
    )
    yield door
    door.runner.run(worker.stop())
    door.close()


@pytest.mark.parametrize(
    "data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[1], [2], [3], [4]], [1.0, 2, 3, 4]]
)
def test_numbers_may_be_flat_or_nested(door, data):
    reply = infer(door, "m-FP32", tensor(data, (2, 2)), id="seven")
    assert reply.status == 200
    assert reply.json == {
        "model_name": "m-FP32",
        "model_version": "1",
        "id": "seven",
        "outputs": [
            {
                "name": "x_out",
                "datatype": "FP32",
                "shape": [2, 2],
                "data": [1.0, 2.0, 3.0, 4.0],
            }
        ],
    }


def test_several_inputs_mix_json_and_binary(door):
    a, b = np.array([[1.5, 2.5]], np.float32), [7]
    inputs = (
        tensor(name="a", parameters={"binary_data_size": 8}),
        tensor(b, (1,), "INT64", "b"),
    )
    reply = binary(door, "two", *inputs, tail=a.tobytes())
    assert [out["data"] for out in reply.json["outputs"]] == [[1.5, 2.5], [7]]
    swapped = binary(door, "two", *inputs[::-1], tail=a.tobytes())
    assert {out["name"]: out["data"] for out in swapped.json["outputs"]} == {
        "a_out": [1.5, 2.5],
        "b_out": [7],
    }


def test_only_the_outputs_asked_for_are_sent_in_the_form_asked_for(door):
    inputs = (tensor([1, 2], name="a"), tensor([7], (1,), "INT64", "b"))
    outputs = [{"name": "b_out", "parameters": {"binary_data": True}}]
    reply = infer(door, "two", *inputs, outputs=outputs)
    size = int(reply.headers[HEADER.encode()])
    assert [out["name"] for out in json.loads(reply.body[:size])["outputs"]] == [
        "b_out"
    ]
    assert reply.body[size:] == np.array([7], np.int64).tobytes()
    assert refused(
        infer(door, "two", *inputs, outputs=[{"name": "c"}]),
        "not 'c'",
        "a_out, b_out",
    )


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("INT64", [0, 2**63]),
        ("INT64", [0, -(2**63) - 1]),
        ("UINT64", [0, 2**64]),
        ("UINT64", [0, -1]),
        ("UINT8", [0, 256]),
        ("UINT8", [-1, 0]),
        ("INT8", [0, 128]),
        ("INT32", [0, 10**30]),
        ("INT64", [1, 2.5]),
        ("INT64", [1, None]),
        ("INT64", [1, "2"]),
        ("FP32", [1, None]),
        ("FP32", [1, "NaN"]),
        ("FP32", [1, 1e300]),
        ("FP16", [1, 2]),
        ("BOOL", [0, 1]),
        ("BOOL", ["true", "false"]),
        ("FP32", {"a": 1}),
        ("FP32", "12"),
        ("FP32", None),
        ("FP32", [[1, 2], [3]]),
        ("FP32", [[], []]),
        ("FP32", []),
        ("FP32", [1]),
        ("FP32", [1, 2, 3]),
        ("FP32", 1),
    ],
)
def test_data_that_the_datatype_does_not_hold_is_refused(door, kind, data):
    refused(
        infer(
            door, f"m-{kind}", tensor([data] if data is None else data, datatype=kind)
        ),
        "'x'",
    )


@pytest.mark.parametrize(
    "number",
    [b"nan", b"inf", b"+Infinity", b"Infinit", b"1e999", b"01", b"0x1", b"1_0"],
)
@pytest.mark.parametrize("kind", ["INT64", "FP32", "UINT8"])
def test_what_is_no_number_of_json_is_refused(door, kind, number):
    body = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"%s","data":[1,%s]}]}' % (
        kind.encode(),
        number,
    )
    refused(door.ask("POST", f"/v2/models/m-{kind}/infer", body))


MISFITS = [
    [2],
    [2, 2],
    [1, 2, 1],
    [],
    [0, 2],
    [1, 3],
    [-1, 2],
    [-1, -2],
    [2**31, 2],
    [2**31 + 1, 2],
    [2**64, 2],
    [2**200, 2],
    [10**4000, 2],
    [1.5, 2],
    ["1", "2"],
    None,
    "12",
    [[1, 2]],
    [1, None],
    [1] * 100,
]


@pytest.mark.parametrize("shape", MISFITS)
def test_a_shape_that_does_not_fit_is_refused(door, shape):
    refused(infer(door, "m-FP32", {**tensor([1, 2]), "shape": shape}))


@pytest.mark.parametrize(
    "shape",
    [
        [2**31, 2**31, 2**31, 3],
        [1, 2**20, 2**20, 3],
        [2**28, 1, 1, 3],
        [0, 2**62, 2**62, 3],
        [10**4000] * 3 + [3],
    ],
)
def test_a_huge_shape_is_refused_before_anything_of_its_size_is_made(door, shape):
    refused(infer(door, "free", tensor([1], shape, "UINT8")), "elements; at most")
    reply = binary(
        door,
        "free",
        tensor(shape=shape, datatype="UINT8", parameters={"binary_data_size": 4}),
        tail=b"1234",
    )
    refused(reply, "elements; at most")


@pytest.mark.parametrize("size", [-1, 7, 9, 10**30, 8.0, "8", None, True, [8]])
def test_a_binary_size_that_does_not_fit_is_refused(door, size):
    refused(
        binary(
            door,
            "m-FP32",
            tensor(parameters={"binary_data_size": size}),
            tail=b"12345678",
        )
    )


@pytest.mark.parametrize("tail", [b"", b"1234567", b"123456789"])
def test_binary_data_must_be_whole_and_nothing_may_follow(door, tail):
    refused(
        binary(door, "m-FP32", tensor(parameters={"binary_data_size": 8}), tail=tail)
    )


@pytest.mark.parametrize(
    "value", ["-1", "999999", "nonsense", "1.5", "+5", " ", "²", "9" * 5000, "0", "10"]
)
def test_a_header_length_that_is_wrong_is_refused(door, value):
    refused(infer(door, "m-FP32", tensor([1, 2]), headers={HEADER: value}))


def test_the_header_length_may_cover_the_whole_body(door):
    assert binary(door, "m-FP32", tensor([1, 2])).status == 200


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([tensor([1, 2], datatype="FP64")], ["wants the datatype FP32", "FP64"]),
        ([tensor([1, 2], datatype="fp32")], ["wants the datatype FP32"]),
        ([tensor([1, 2], datatype="x" * 900)], ["wants the datatype FP32"]),
        ([tensor([1, 2], name="y")], ["the model takes the inputs x", "given: y"]),
        ([tensor([1, 2], name="\ud800")], []),
        ([tensor([1, 2], datatype="\ud800")], []),
        ([tensor([1, 2], name="y" * 900)], ["the model takes the inputs x"]),
        ([tensor([1, 2]), tensor([1, 2])], ["given: x, x"]),
        ([], ["the model takes the inputs x"]),
    ],
)
def test_what_the_signature_does_not_have_is_said(door, inputs, says):
    refused(infer(door, "m-FP32", *inputs), *says)


def test_inputs_of_several_batch_sizes_are_refused(door):
    refused(
        infer(
            door, "two", tensor([1, 2], name="a"), tensor([7, 8], (2,), "INT64", "b")
        ),
        "batch size: [1, 2]",
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"inputs": {}}',
        b'{"inputs": [[]]}',
        b'{"inputs": [{}]}',
        b'{"inputs": [{"name": 5}]}',
        b"\xff\xfe",
        b'{"inputs": [{"name": "\xff", "shape": [1], "datatype": "FP32"}]}',
        b'{"inputs": [], "id": 5}',
        b'{"inputs": [], "parameters": []}',
        b"[" * 100_000,
        b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": '
        + b"[" * 5000
        + b"]" * 5000
        + b"}]}",
        b'{"inputs": [{"name": "x", "shape": [1'
        + b"0" * 9000
        + b', 2], "datatype": "FP32", "data": [1, 2]}]}',
        b'{"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1'
        + b"0" * 9000
        + b"]}]}",
        b'{"parameters": {"a": ' + b"[" * 5000 + b"]" * 5000 + b'}, "inputs": []}',
        b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32"}]}',
    ],
)
def test_a_body_that_is_no_request_is_refused(door, body):
    refused(door.ask("POST", "/v2/models/m-FP32/infer", body))


def test_forty_levels_of_lists_are_refused(door):
    data = [1, 2]
    for _ in range(70):
        data = [data]
    refused(infer(door, "m-FP32", tensor(data)))


@pytest.mark.parametrize("path", ["/v2/models/m-FP32", "/v2/models/m-FP32/versions/1"])
def test_a_model_tells_its_signature(door, path):
    reply = door.ask("GET", path).json
    assert (reply["name"], reply["versions"]) == ("m-FP32", ["1"])
    assert reply["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert reply["outputs"] == [{"name": "x_out", "datatype": "FP32", "shape": [-1, 2]}]


def test_only_the_served_version_answers(door):
    assert (
        door.ask(
            "POST",
            "/v2/models/m-FP32/versions/1/infer",
            json.dumps({"inputs": [tensor([1, 2])]}).encode(),
        ).status
        == 200
    )
    reply = door.ask("GET", "/v2/models/m-FP32/versions/2")
    assert (reply.status, reply.error) == (404, "'m-FP32' serves version 1, not 2")


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("m-FP32", 200),
        ("alone", 400),
        ("fresh", 400),
        ("nothing", 400),
        ("m-FP32/versions/9", 400),
    ],
)
def test_ready_means_that_a_worker_answers(door, model, status):
    infer(door, "m-FP32", tensor([1, 2]))
    assert door.ask("GET", f"/v2/models/{model}/ready").status == status


def test_the_server_tells_what_it_speaks(door):
    about = door.ask("GET", "/v2").json
    assert (about["name"], type(about["version"])) == ("modelmill", str)
    assert {
        "binary_tensor_data",
        "classification",
        "statistics",
        "model_repository",
    } <= set(about["extensions"])
    assert "system_shared_memory" not in about["extensions"]
    assert door.ask("GET", "/v2/health/live", key=None).json == {"live": True}
    assert door.ask("GET", "/v2/health/ready", key=None).json == {"ready": True}


def test_a_model_that_is_loading_says_so(door):
    reply = infer(door, "fresh", tensor([1], (1,), "UINT8"))
    assert (reply.status, reply.error) == (503, "'fresh' is loading")


def test_a_deployment_that_goes_while_the_body_arrives_is_no_failure_of_ours():
    door = Door()
    try:
        door.update(a_mirror("going", ("x", "UINT8", [-1])))
        head = json.dumps({"inputs": [tensor([1], (1,), "UINT8")]}).encode()

        def undeploy():
            from tests.helpers.gateways import a_snapshot

            door.gateway.update(a_snapshot(keys=door.KEYS))

        reply = door.ask(
            "POST", "/v2/models/going/infer", [head[:9], undeploy, head[9:]]
        )
        assert reply.status in (404, 503)
    finally:
        door.close()


VALID = msgspec.json.encode(
    {
        "id": "1",
        "parameters": {"binary_data_output": False},
        "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1.5, 2.5]]}
        ],
        "outputs": [{"name": "x_out", "parameters": {"binary_data": True}}],
    }
)
BINARY = msgspec.json.encode({"inputs": [tensor(parameters={"binary_data_size": 8})]})


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4
    ),
    st.sampled_from(
        [
            (VALID, b"", None),
            (BINARY, b"12345678", None),
            (BINARY, b"12345678", "moved"),
        ]
    ),
    st.integers(-3, 3),
    st.floats(0.5, 1) | st.just(1.0),
)
def test_a_damaged_request_is_never_our_failure(door, changes, request, shift, kept):
    head, tail, moved = request
    body = bytearray(head + tail)
    for place, value in changes:
        body[int(place * len(body))] = value
    headers = {HEADER: str(len(head) + (shift if moved else 0))} if tail else {}
    reply = door.ask(
        "POST",
        "/v2/models/m-FP32/infer",
        bytes(body[: round(kept * len(body))]),
        headers,
    )
    assert reply.status in (200, 400), reply.body


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(["shape", "data", "parameters", "name", "datatype"]),
    ANYTHING,
)
def test_any_value_in_any_place_is_answered(door, kind, place, value):
    reply = infer(door, f"m-{kind}", {**tensor([1, 0], datatype=kind), place: value})
    assert reply.status in (200, 400), reply.body
