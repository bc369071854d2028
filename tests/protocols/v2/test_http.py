"""The Open Inference Protocol: tensors as JSON or binary, checked against the model's signature."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.engines.base import NUMPY
from tests.helpers.gateways import InMemoryApi
from tests.helpers.v2 import (
    HEADER,
    a_mirror,
    binary,
    infer,
    mirror,
    refused,
    tensor,
)

KINDS = sorted(NUMPY)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    api = InMemoryApi()
    worker = api.worker(tmp_path_factory.mktemp("v2") / "w", mirror)
    there = {"sockets": [worker.path]}
    api.update(
        *(
            a_mirror(f"m-{kind}", ("x", kind, [-1, 2]), **there)
            for kind in KINDS
        ),
        a_mirror("two", ("a", "FP32", [-1, 2]), ("b", "INT64", [-1]), **there),
        a_mirror("free", ("x", "UINT8", [-1, -1, -1, 3]), **there),
        a_mirror("alone", ("x", "UINT8", [-1])),
        a_mirror("fresh", ("x", "UINT8", [-1]), ready=False, error=""),
    )
    yield api
    api.runner.run(worker.stop())
    api.close()


@pytest.mark.parametrize(
    "data",
    [[1, 2, 3, 4], [[1, 2], [3, 4]], [[1], [2], [3], [4]], [1.0, 2, 3, 4]],
)
def test_numbers_may_be_flat_or_nested(api, data):
    reply = infer(api, "m-FP32", tensor(data, (2, 2)), id="seven")
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


def test_several_inputs_mix_json_and_binary(api):
    a, b = np.array([[1.5, 2.5]], np.float32), [7]
    inputs = (
        tensor(name="a", parameters={"binary_data_size": 8}),
        tensor(b, (1,), "INT64", "b"),
    )
    reply = binary(api, "two", *inputs, tail=a.tobytes())
    assert [out["data"] for out in reply.json["outputs"]] == [[1.5, 2.5], [7]]
    swapped = binary(api, "two", *inputs[::-1], tail=a.tobytes())
    assert {out["name"]: out["data"] for out in swapped.json["outputs"]} == {
        "a_out": [1.5, 2.5],
        "b_out": [7],
    }


def test_only_the_outputs_asked_for_are_sent_in_the_form_asked_for(api):
    inputs = (tensor([1, 2], name="a"), tensor([7], (1,), "INT64", "b"))
    outputs = [{"name": "b_out", "parameters": {"binary_data": True}}]
    reply = infer(api, "two", *inputs, outputs=outputs)
    size = int(reply.headers[HEADER.encode()])
    assert [
        out["name"] for out in json.loads(reply.body[:size])["outputs"]
    ] == ["b_out"]
    assert reply.body[size:] == np.array([7], np.int64).tobytes()
    assert refused(
        infer(api, "two", *inputs, outputs=[{"name": "c"}]),
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
def test_data_that_the_datatype_does_not_hold_is_refused(api, kind, data):
    refused(
        infer(
            api,
            f"m-{kind}",
            tensor([data] if data is None else data, datatype=kind),
        ),
        "'x'",
    )


@pytest.mark.parametrize(
    "number",
    [b"nan", b"inf", b"+Infinity", b"Infinit", b"1e999", b"01", b"0x1", b"1_0"],
)
@pytest.mark.parametrize("kind", ["INT64", "FP32", "UINT8"])
def test_what_is_no_number_of_json_is_refused(api, kind, number):
    body = (
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"%s","data":[1,%s]}]}'
        % (
            kind.encode(),
            number,
        )
    )
    refused(api.ask("POST", f"/v2/models/m-{kind}/infer", body))


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
def test_a_shape_that_does_not_fit_is_refused(api, shape):
    refused(infer(api, "m-FP32", {**tensor([1, 2]), "shape": shape}))


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
def test_a_huge_shape_is_refused_before_anything_of_its_size_is_made(
    api, shape
):
    refused(
        infer(api, "free", tensor([1], shape, "UINT8")), "elements; at most"
    )
    reply = binary(
        api,
        "free",
        tensor(
            shape=shape, datatype="UINT8", parameters={"binary_data_size": 4}
        ),
        tail=b"1234",
    )
    refused(reply, "elements; at most")


@pytest.mark.parametrize("size", [-1, 7, 9, 10**30, 8.0, "8", None, True, [8]])
def test_a_binary_size_that_does_not_fit_is_refused(api, size):
    refused(
        binary(
            api,
            "m-FP32",
            tensor(parameters={"binary_data_size": size}),
            tail=b"12345678",
        )
    )


@pytest.mark.parametrize("tail", [b"", b"1234567", b"123456789"])
def test_binary_data_must_be_whole_and_nothing_may_follow(api, tail):
    refused(
        binary(
            api, "m-FP32", tensor(parameters={"binary_data_size": 8}), tail=tail
        )
    )


@pytest.mark.parametrize(
    "value",
    ["-1", "999999", "nonsense", "1.5", "+5", " ", "²", "9" * 5000, "0", "10"],
)
def test_a_header_length_that_is_wrong_is_refused(api, value):
    refused(infer(api, "m-FP32", tensor([1, 2]), headers={HEADER: value}))


def test_the_header_length_may_cover_the_whole_body(api):
    assert binary(api, "m-FP32", tensor([1, 2])).status == 200


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (
            [tensor([1, 2], datatype="FP64")],
            ["wants the datatype FP32", "FP64"],
        ),
        ([tensor([1, 2], datatype="fp32")], ["wants the datatype FP32"]),
        ([tensor([1, 2], datatype="x" * 900)], ["wants the datatype FP32"]),
        (
            [tensor([1, 2], name="y")],
            ["the model takes the inputs x", "given: y"],
        ),
        ([tensor([1, 2], name="\ud800")], []),
        ([tensor([1, 2], datatype="\ud800")], []),
        ([tensor([1, 2], name="y" * 900)], ["the model takes the inputs x"]),
        ([tensor([1, 2]), tensor([1, 2])], ["given: x, x"]),
        ([], ["the model takes the inputs x"]),
    ],
)
def test_what_the_signature_does_not_have_is_said(api, inputs, says):
    refused(infer(api, "m-FP32", *inputs), *says)


def test_inputs_of_several_batch_sizes_are_refused(api):
    refused(
        infer(
            api,
            "two",
            tensor([1, 2], name="a"),
            tensor([7, 8], (2,), "INT64", "b"),
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
        b'{"parameters": {"a": '
        + b"[" * 5000
        + b"]" * 5000
        + b'}, "inputs": []}',
        b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32"}]}',
    ],
)
def test_a_body_that_is_no_request_is_refused(api, body):
    refused(api.ask("POST", "/v2/models/m-FP32/infer", body))


def test_forty_levels_of_lists_are_refused(api):
    data = [1, 2]
    for _ in range(70):
        data = [data]
    refused(infer(api, "m-FP32", tensor(data)))


@pytest.mark.parametrize(
    "path", ["/v2/models/m-FP32", "/v2/models/m-FP32/versions/1"]
)
def test_a_model_states_its_signature(api, path):
    reply = api.ask("GET", path).json
    assert (reply["name"], reply["versions"]) == ("m-FP32", ["1"])
    assert reply["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    ]
    assert reply["outputs"] == [
        {"name": "x_out", "datatype": "FP32", "shape": [-1, 2]}
    ]


def test_only_the_served_version_answers(api):
    assert (
        api.ask(
            "POST",
            "/v2/models/m-FP32/versions/1/infer",
            json.dumps({"inputs": [tensor([1, 2])]}).encode(),
        ).status
        == 200
    )
    reply = api.ask("GET", "/v2/models/m-FP32/versions/2")
    assert (reply.status, reply.error) == (
        404,
        "'m-FP32' serves version 1, not 2",
    )


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
def test_ready_means_that_a_worker_answers(api, model, status):
    infer(api, "m-FP32", tensor([1, 2]))
    assert api.ask("GET", f"/v2/models/{model}/ready").status == status


def test_the_server_lists_its_extensions(api):
    about = api.ask("GET", "/v2").json
    assert (about["name"], type(about["version"])) == ("modelmill", str)
    assert {
        "binary_tensor_data",
        "classification",
        "statistics",
        "model_repository",
    } <= set(about["extensions"])
    assert "system_shared_memory" not in about["extensions"]
    assert api.ask("GET", "/v2/health/live", key=None).json == {"live": True}
    assert api.ask("GET", "/v2/health/ready", key=None).json == {"ready": True}


def test_a_model_that_is_loading_says_so(api):
    reply = infer(api, "fresh", tensor([1], (1,), "UINT8"))
    assert (reply.status, reply.error) == (503, "'fresh' is loading")


def test_a_deployment_that_goes_while_the_body_arrives_is_no_failure_of_ours():
    api = InMemoryApi()
    try:
        api.update(a_mirror("going", ("x", "UINT8", [-1])))
        head = json.dumps({"inputs": [tensor([1], (1,), "UINT8")]}).encode()

        def undeploy():
            from tests.helpers.gateways import a_snapshot

            api.gateway.update(a_snapshot(keys=api.KEYS))

        reply = api.ask(
            "POST", "/v2/models/going/infer", [head[:9], undeploy, head[9:]]
        )
        assert reply.status in (404, 503)
    finally:
        api.close()


VALID = msgspec.json.encode(
    {
        "id": "1",
        "parameters": {"binary_data_output": False},
        "inputs": [
            {
                "name": "x",
                "shape": [1, 2],
                "datatype": "FP32",
                "data": [[1.5, 2.5]],
            }
        ],
        "outputs": [{"name": "x_out", "parameters": {"binary_data": True}}],
    }
)
BINARY = msgspec.json.encode(
    {"inputs": [tensor(parameters={"binary_data_size": 8})]}
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
        max_size=4,
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
def test_a_damaged_request_is_never_our_failure(
    api, changes, request, shift, kept
):
    head, tail, moved = request
    body = bytearray(head + tail)
    for place, value in changes:
        body[int(place * len(body))] = value
    headers = {HEADER: str(len(head) + (shift if moved else 0))} if tail else {}
    reply = api.ask(
        "POST",
        "/v2/models/m-FP32/infer",
        bytes(body[: round(kept * len(body))]),
        headers,
    )
    assert reply.status in (200, 400), reply.body


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5),
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
def test_any_value_in_any_place_is_answered(api, kind, place, value):
    reply = infer(
        api, f"m-{kind}", {**tensor([1, 0], datatype=kind), place: value}
    )
    assert reply.status in (200, 400), reply.body
