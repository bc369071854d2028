"""The Open Inference Protocol over gRPC, as gRPC's own clients see it."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from modelmill.engines.base import NUMPY
from modelmill.errors import BY_CODE
from modelmill.protocols.v2.grpc import call as grpc_call
from modelmill.protocols.v2.grpc import serve
from modelmill.protocols.v2.grpc.messages import message
from modelmill.protocols.v2.grpc.service import PUBLIC, methods
from modelmill.protocols.v2.values import pack_bytes
from modelmill.serve.wire import Answer
from modelmill.settings import Limits
from tests.helpers.grpc_api import (
    KEY,
    SERVICE,
    Client,
    GrpcApi,
    a_request,
    stub,
)
from tests.helpers.v2 import a_mirror, mirrored
from tests.helpers.workers import until

KINDS = sorted(NUMPY)
ROOT = Path(__file__).parents[3]


HELD = set()
"""What calls with such a parameter `hold` wait for to be let go."""


async def mirror(calls):
    """Answers the inputs themselves: when they are let go, or after as many seconds as the
    parameter `sleep` says.
    """
    await asyncio.sleep(
        max(call.parameters.get("sleep", 0.0) for call in calls)
    )
    while any(call.parameters.get("hold") in HELD for call in calls):
        await asyncio.sleep(0.002)
    return [
        Answer(call.id, code="model_failed", message="it broke: ü" * 300)
        if call.parameters.get("fail")
        else mirrored(call)
        for call in calls
    ]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    api = GrpcApi(body_bytes=40 << 20)
    there = {
        "sockets": [
            api.worker(tmp_path_factory.mktemp("grpc") / "w", mirror).path
        ]
    }
    api.update(
        *(
            a_mirror(f"m-{kind}", ("x", kind, [-1, -1]), **there)
            for kind in [*KINDS, "BF16", "BYTES"]
        ),
        a_mirror(
            "two",
            ("a", "FP32", [-1, 2]),
            ("b", "INT64", [-1]),
            labels=["cat", "dog"],
            **there,
        ),
        a_mirror("theirs", ("x", "FP32", [-1]), project="other", **there),
        a_mirror("fresh", ("x", "FP32", [-1]), ready=False),
    )
    api.run(
        until(
            lambda: api.gateway.connected(api.gateway.route(caller(api), "two"))
        )
    )
    yield api
    api.close()


def caller(api):
    return api.gateway.authorise("admin-key")


@pytest.fixture(scope="module")
def client(api):
    client = Client(api.address)
    yield client
    client.close()


ROW = np.array([[1.5, -2.0]], np.float32)


def ask(client, *inputs, model="m-FP32", **options):
    return client.call(
        "ModelInfer",
        a_request(model, *(inputs or [("x", "FP32", ROW)])),
        **options,
    )


def refused(error, status, *says):
    assert error.code() == status, error
    for words in says:
        assert words in error.details()
    assert 0 < len(error.details()) <= 1000
    return True


# ---- inference


@pytest.mark.parametrize("kind", [*KINDS, "BF16"])
def test_raw_tensors_of_every_datatype_come_back_as_they_went(client, kind):
    array = (
        np.arange(6)
        .reshape(3, 2)
        .astype(np.uint16 if kind == "BF16" else NUMPY[kind])
    )
    answer = ask(client, ("x", kind, array), model=f"m-{kind}")
    assert (answer.model_name, answer.model_version) == (f"m-{kind}", "1")
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("x_out", kind, [3, 2])
    ]
    assert list(answer.raw_output_contents) == [array.tobytes()]
    assert not answer.outputs[0].HasField("contents")


TYPED = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 2**16 - 1]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [1.5, float("inf")]),
    "FP64": ("fp64_contents", [1e300, -5e-324]),
    "BYTES": ("bytes_contents", [b"", b"nul\0 \xff"]),
}


def typed(kind, field, values, shape=None):
    request = a_request(f"m-{kind}")
    one = request.inputs.add(
        name="x", datatype=kind, shape=shape or [1, len(values)]
    )
    getattr(one.contents, field).extend(values)
    return request


@pytest.mark.parametrize("kind", TYPED)
def test_typed_contents_mean_the_same_as_raw_ones(client, kind):
    field, values = TYPED[kind]
    answer = client.call("ModelInfer", typed(kind, field, values))
    expected = (
        pack_bytes(values)
        if kind == "BYTES"
        else np.array(values, NUMPY[kind]).tobytes()
    )
    assert list(answer.raw_output_contents) == [expected]


@pytest.mark.parametrize(
    ("kind", "field", "values", "says"),
    [
        ("INT8", "int_contents", [0, 128], "INT8"),
        ("UINT8", "uint_contents", [256, 0], "UINT8"),
        (
            "INT64",
            "int_contents",
            [1, 2],
            "go into int64_contents, given: int_contents",
        ),
        ("FP32", "fp64_contents", [1, 2], "go into fp32_contents"),
        ("FP16", "fp32_contents", [1, 2], "use raw_input_contents"),
        ("BF16", "fp32_contents", [1, 2], "use raw_input_contents"),
        ("FP32", "fp32_contents", [], "bytes, given 0"),
    ],
)
def test_typed_contents_that_do_not_fit_are_refused(
    client, kind, field, values, says
):
    request = typed(kind, field, values, [1, 2])
    assert refused(
        client.refusal("ModelInfer", request), StatusCode.INVALID_ARGUMENT, says
    )


def test_raw_and_typed_contents_can_not_be_mixed(client):
    request = a_request("two", ("a", "FP32", ROW))
    one = request.inputs.add(name="b", datatype="INT64", shape=[1])
    one.contents.int64_contents.append(1)
    assert refused(
        client.refusal("ModelInfer", request),
        StatusCode.INVALID_ARGUMENT,
        "can't be mixed",
    )
    request.ClearField("inputs")
    assert refused(
        client.refusal("ModelInfer", request),
        StatusCode.INVALID_ARGUMENT,
        "1 entries for 0 inputs",
    )


A, B = ("a", "FP32", ROW), ("b", "INT64", np.array([7]))


def test_the_id_and_only_the_outputs_asked_for_come_back(client):
    request = a_request("two", A, B, id="seven")
    request.outputs.add(name="b_out")
    answer = client.call("ModelInfer", request)
    assert answer.id == "seven"
    assert [out.name for out in answer.outputs] == ["b_out"]
    assert list(answer.raw_output_contents) == [np.array([7]).tobytes()]


def test_scores_come_back_as_classes_on_request(client):
    request = a_request("two", A, B)
    request.outputs.add(name="a_out").parameters[
        "classification"
    ].int64_param = 1
    answer = client.call("ModelInfer", request)
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == (
        "BYTES",
        [1, 1],
    )
    assert answer.raw_output_contents[0][4:] == b"1.500000:0:cat"


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([A], "the model takes the inputs a, b"),
        ([A, ("z", "INT64", [1])], "given: a, z"),
        (
            [A, ("b", "INT32", np.array([1], np.int32))],
            "wants the datatype INT64",
        ),
        (
            [("a", "FP32", np.zeros((1, 3), np.float32)), B],
            "wants the shape [-1, 2]",
        ),
        ([("a", "FP32", np.zeros((2, 2), np.float32)), B], "batch size"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_refused(client, inputs, says):
    assert refused(
        client.refusal("ModelInfer", a_request("two", *inputs)),
        StatusCode.INVALID_ARGUMENT,
        says,
    )


@pytest.mark.parametrize("data", [b"", b"1234567", b"123456789"])
@pytest.mark.parametrize("shape", [[1, 2], [-1, 2], [2**62, 2], [2**62, 2**62]])
def test_data_and_shape_must_agree(client, shape, data):
    request = a_request("m-FP32")
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    request.raw_input_contents.append(data)
    assert refused(
        client.refusal("ModelInfer", request), StatusCode.INVALID_ARGUMENT
    )


def test_an_unknown_output_is_refused(client):
    request = a_request("two", A, B)
    request.outputs.add(name="zzz")
    assert refused(
        client.refusal("ModelInfer", request),
        StatusCode.INVALID_ARGUMENT,
        "a_out, b_out, not 'zzz'",
    )


def test_parameters_of_every_kind_reach_the_model_and_those_of_the_protocol_do_not(
    client, api
):
    request = a_request("m-FP32", ("x", "FP32", ROW))
    request.parameters["s"].string_param = "v"
    request.parameters["i"].int64_param = -3
    request.parameters["b"].bool_param = True
    request.parameters["f"].double_param = 0.5
    request.parameters["priority"].uint64_param = 1
    request.parameters["timeout"].int64_param = 5_000_000
    request.parameters["sequence_id"].int64_param = 7
    client.call("ModelInfer", request)
    got = [
        call
        for worker in api._workers
        for batch in worker.got
        for call in batch
    ][-1]
    assert got.parameters == {"s": "v", "i": -3, "b": True, "f": 0.5}
    request.parameters["empty"].SetInParent()
    assert refused(
        client.refusal("ModelInfer", request),
        StatusCode.INVALID_ARGUMENT,
        "'empty' has no value",
    )
    del request.parameters["empty"]
    request.parameters["timeout"].string_param = "soon"
    assert refused(
        client.refusal("ModelInfer", request),
        StatusCode.INVALID_ARGUMENT,
        "timeout",
    )


def test_priority_timeout_and_id_are_passed_on(api, client, monkeypatch):
    asked = []
    predict = api.gateway.predict

    async def listening(*given, **named):
        asked.append(named)
        return await predict(*given, **named)

    monkeypatch.setattr(api.gateway, "predict", listening)
    request = a_request("m-FP32", ("x", "FP32", ROW), id="seven")
    request.parameters["priority"].uint64_param = 2
    request.parameters["timeout"].int64_param = 3_000_000
    client.call("ModelInfer", request, timeout=100)
    client.call("ModelInfer", request, timeout=2)
    client.call(
        "ModelInfer", a_request("m-FP32", ("x", "FP32", ROW)), timeout=None
    )
    assert [named["priority"] for named in asked] == [2, 2, 0]
    assert asked[0]["timeout"] == 3
    assert 0 < asked[1]["timeout"] < 3  # grpc rounds it up
    assert asked[2]["timeout"] is None
    assert asked[0]["request_id"] == "seven"
    assert asked[0]["gone"]()  # it has been answered


def test_large_messages_pass_both_ways_in_every_encoding(client):
    array = (
        np.random.default_rng(0)
        .integers(0, 9, (1, 4_000_000))
        .astype(np.float32)
    )
    for how in (
        grpc.Compression.NoCompression,
        grpc.Compression.Gzip,
        grpc.Compression.Deflate,
    ):
        answer = ask(client, ("x", "FP32", array), compression=how)
        assert answer.raw_output_contents[0] == array.tobytes()


def test_a_message_beyond_the_limit_is_refused_before_it_is_taken(client, api):
    array = np.zeros((1, 11 << 20), np.float32)
    error = client.refusal(
        "ModelInfer", a_request("m-FP32", ("x", "FP32", array))
    )
    assert refused(
        error, StatusCode.RESOURCE_EXHAUSTED, "at most 42,991,616 are taken"
    )
    error = client.refusal(
        "ModelInfer",
        a_request("m-FP32", ("x", "FP32", array)),
        compression=grpc.Compression.Gzip,
    )
    assert refused(error, StatusCode.RESOURCE_EXHAUSTED, "when it is unpacked")
    assert api.server.budget.held == 0


# ---- models and settings


def test_server_and_model_metadata(client):
    assert client.call("ServerLive").live
    assert client.call("ServerReady").ready
    about = client.call("ServerMetadata")
    assert about.name == "modelmill"
    assert "binary_tensor_data" in about.extensions
    model = client.call("ModelMetadata", {"name": "two"})
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [
        ("a", "FP32", [-1, 2]),
        ("b", "INT64", [-1]),
    ]
    assert (model.name, list(model.versions)) == ("two", ["1"])
    config = client.call("ModelConfig", {"name": "two"}).config
    assert [
        (one.name, one.data_type, list(one.dims)) for one in config.input
    ] == [
        ("a", 11, [2]),
        ("b", 9, []),
    ]
    assert config.max_batch_size == 64


def test_statistics_and_index_name_the_models_of_the_caller(client):
    ask(client)
    assert {
        each.name for each in client.call("ModelStatistics").model_stats
    } >= {
        "two",
        "m-FP32",
    }
    assert [
        each.name
        for each in client.call("ModelStatistics", {"name": "two"}).model_stats
    ] == ["two"]
    names = {
        each.name: each.state for each in client.call("RepositoryIndex").models
    }
    assert (names["two"], names["fresh"], "theirs" in names) == (
        "READY",
        "LOADING",
        False,
    )
    assert "fresh" not in {
        each.name
        for each in client.call("RepositoryIndex", {"ready": True}).models
    }


@pytest.mark.parametrize(
    "name", ["no-such-model", "theirs", "", "x" * 5000, "../two", "\0"]
)
def test_a_model_that_does_not_exist_is_not_found_and_not_ready(client, name):
    assert not client.call("ModelReady", {"name": name}).ready
    for call in ("ModelMetadata", "ModelConfig"):
        assert (
            client.refusal(call, {"name": name}).code() == StatusCode.NOT_FOUND
        )
    error = client.refusal("ModelInfer", a_request(name, ("x", "FP32", ROW)))
    assert refused(error, StatusCode.NOT_FOUND, name[:50])


def test_only_what_is_served_is_ready(client):
    assert client.call("ModelReady", {"name": "two"}).ready
    assert client.call("ModelReady", {"name": "two", "version": "1"}).ready
    assert not client.call("ModelReady", {"name": "two", "version": "2"}).ready
    assert not client.call("ModelReady", {"name": "fresh"}).ready
    error = client.refusal("ModelInfer", a_request("fresh", ("x", "FP32", ROW)))
    assert refused(error, StatusCode.UNAVAILABLE, "'fresh' is loading")
    assert ("grpc-retry-pushback-ms", "1000") in error.trailing_metadata()
    error = client.refusal(
        "ModelInfer", a_request("two", A, B, model_version="9")
    )
    assert refused(error, StatusCode.NOT_FOUND, "serves version 1, not 9")


def test_models_are_loaded_and_unloaded_by_admins_only():
    done = []

    async def operate(gateway, caller, name, load):
        done.append((caller.role, name, load))

    api = GrpcApi(operator=operate)
    client = Client(api.address)
    client.call("RepositoryModelUnload", {"model_name": "two"})
    client.call("RepositoryModelLoad", {"model_name": "two"})
    assert done == [("admin", "two", False), ("admin", "two", True)]
    user = Client(api.address, "other-key")
    for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
        assert (
            user.refusal(name, {"model_name": "two"}).code()
            == StatusCode.PERMISSION_DENIED
        )
    user.close()
    request = message("inference.RepositoryModelLoadRequest")(model_name="two")
    request.parameters["config"].string_param = "{}"
    assert refused(
        client.refusal("RepositoryModelLoad", request),
        StatusCode.INVALID_ARGUMENT,
        "config",
    )
    client.close()
    api.close()


def test_settings_are_read_and_changed(client):
    request = message("inference.TraceSettingRequest")()
    assert list(
        client.call("TraceSetting", request).settings["trace_rate"].value
    ) == ["1000"]
    request.settings["trace_rate"].value.append("700")
    assert list(
        client.call("TraceSetting", request).settings["trace_rate"].value
    ) == ["700"]
    request.settings["trace_rate"].ClearField("value")
    assert list(
        client.call("TraceSetting", request).settings["trace_rate"].value
    ) == ["1000"]
    logs = client.call("LogSettings").settings
    assert logs["log_verbose_level"].uint32_param in (0, 1)
    assert logs["log_error"].WhichOneof("parameter_choice") == "bool_param"
    change = message("inference.LogSettingsRequest")()
    change.settings["log_nothing"].bool_param = True
    assert refused(
        client.refusal("LogSettings", change),
        StatusCode.INVALID_ARGUMENT,
        "log_nothing",
    )


def test_tensors_may_lie_in_shared_memory_when_the_operator_allows_it(
    client, api, monkeypatch
):
    region = {
        "name": "r",
        "key": f"/modelmill-test-{os.getpid()}",
        "byte_size": 16,
    }
    path = Path("/dev/shm") / region["key"][1:]
    path.write_bytes(ROW.tobytes() + bytes(8))
    try:
        error = client.refusal("SystemSharedMemoryRegister", region)
        assert refused(
            error, StatusCode.PERMISSION_DENIED, "shared memory is off"
        )
        monkeypatch.setattr(api.gateway, "shared_memory", True)
        client.call("SystemSharedMemoryRegister", region)
        assert (
            dict(client.call("SystemSharedMemoryStatus").regions)["r"].byte_size
            == 16
        )
        request = a_request("m-FP32", ("x", "FP32", ROW), raw=False)
        _point(request.inputs[0], 0)
        _point(request.outputs.add(name="x_out"), 8)
        answer = client.call("ModelInfer", request)
        assert (
            answer.outputs[0].parameters["shared_memory_region"].string_param
            == "r"
        )
        assert list(answer.raw_output_contents) == [b""]
        assert path.read_bytes() == ROW.tobytes() * 2
        request.inputs[0].parameters[
            "shared_memory_byte_size"
        ].string_param = "8"
        assert refused(
            client.refusal("ModelInfer", request),
            StatusCode.INVALID_ARGUMENT,
            "shared_memory_byte_size",
        )
        client.call("SystemSharedMemoryUnregister", {"name": "r"})
        assert not client.call("SystemSharedMemoryStatus").regions
    finally:
        path.unlink()


def _point(tensor, offset):
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_byte_size"].int64_param = 8
    tensor.parameters["shared_memory_offset"].int64_param = offset


@pytest.mark.parametrize("name", ["Status", "Register", "Unregister"])
def test_cuda_shared_memory_is_not_offered(client, name):
    assert refused(
        client.refusal(f"CudaSharedMemory{name}"),
        StatusCode.UNIMPLEMENTED,
        "CUDA",
    )


# ---- keys


def status_of(channel, path, metadata):
    call = channel.stream_stream(path)(
        iter([b""]), metadata=metadata, timeout=10
    )
    try:
        next(call)
    except StopIteration:
        return call.code()
    except grpc.RpcError as error:
        return error.code()
    call.cancel()
    return StatusCode.OK


@pytest.mark.parametrize(
    "path",
    [*methods(), "/nothing.Of/TheKind", f"/{SERVICE}/Nothing", "/", "//", "/x"],
)
@pytest.mark.parametrize(
    "value", [None, "Bearer wrong", "Bearer ", "admin-key", "Bearer admin-key2"]
)
def test_only_health_is_answered_without_a_key(client, path, value):
    metadata = [] if value is None else [("authorization", value)]
    expected = StatusCode.OK if path in PUBLIC else StatusCode.UNAUTHENTICATED
    assert status_of(client.channel, path, metadata) == expected


@pytest.mark.parametrize(
    "keys", [("wrong", "admin-key"), ("admin-key", "wrong")]
)
def test_two_keys_are_none(client, keys):
    metadata = [("authorization", f"Bearer {key}") for key in keys]
    for path in (f"/{SERVICE}/ServerMetadata", f"/{SERVICE}/Nothing"):
        assert (
            status_of(client.channel, path, metadata)
            == StatusCode.INVALID_ARGUMENT
        )


def test_health_is_all_that_is_public():
    names = {path.rpartition("/")[2] for path in PUBLIC}
    assert names == {"ServerLive", "ServerReady", "Check", "List", "Watch"}
    assert methods().keys() >= PUBLIC


def test_a_method_that_does_not_exist_is_not_implemented(client):
    assert (
        status_of(client.channel, f"/{SERVICE}/Nothing", list(KEY.items()))
        == StatusCode.UNIMPLEMENTED
    )


def test_before_the_first_snapshot_callers_may_try_again(tmp_path):
    api = GrpcApi()
    api.gateway._snapshot = None
    client = Client(api.address)
    assert not client.call("ServerReady").ready
    assert client.refusal("ServerMetadata").code() == StatusCode.UNAVAILABLE
    client.close()
    api.close()


# ---- errors


def test_every_error_code_has_its_status():
    assert grpc_call.STATUS.keys() == BY_CODE.keys()
    known = {code.value[0] for code in StatusCode} - {
        StatusCode.OK.value[0],
        StatusCode.UNKNOWN.value[0],
    }
    assert set(grpc_call.STATUS.values()) <= known


def test_the_words_of_an_error_survive_the_way(client):
    request = a_request("m-FP32", ("x", "FP32", ROW))
    request.parameters["fail"].bool_param = True
    error = client.refusal("ModelInfer", request)
    assert refused(error, StatusCode.INTERNAL)
    assert error.details() == ("it broke: ü" * 300)[:1000]


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"\x0a\xff",
        b"\x0a\x01\xff",
        b"\x2a\x03\x0a\x01\xff",
        b"\x00" * 100,
    ],
)
def test_what_is_no_message_is_refused(client, body):
    call = client.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        call(body, metadata=client.metadata, timeout=10)
    assert refused(
        caught.value, StatusCode.INVALID_ARGUMENT, "inference.ModelInferRequest"
    )


def test_an_internal_error_says_nothing_but_that(
    client, api, monkeypatch, caplog
):
    async def broken(*given, **named):
        raise RuntimeError("secret")

    monkeypatch.setattr(api.gateway, "predict", broken)
    error = client.refusal(
        "ModelInfer", a_request("m-FP32", ("x", "FP32", ROW))
    )
    assert refused(error, StatusCode.INTERNAL, "its log says why")
    assert "secret" not in error.details()
    assert "secret" in caplog.text


# ---- deadlines and cancelling


def sleeping(seconds, **fields):
    request = a_request("m-FP32", ("x", "FP32", ROW), **fields)
    request.parameters["sleep"].double_param = seconds
    return request


@pytest.fixture
def held():
    """A request that is not answered before the test lets go of it."""
    HELD.add("it")
    request = a_request("m-FP32", ("x", "FP32", ROW))
    request.parameters["hold"].string_param = "it"
    yield request
    HELD.discard("it")


def test_the_deadline_of_the_caller_is_the_servers_too(client, api):
    before = pool_of(api).series.failure
    error = client.refusal("ModelInfer", sleeping(0.3), timeout=0.1)
    assert error.code() == StatusCode.DEADLINE_EXCEEDED
    api.run(until(lambda: pool_of(api).series.failure == before + 1))


def pool_of(api):
    return next(
        pool for place, pool in api.gateway.pools() if place[1] == "m-FP32"
    )


def test_a_call_that_is_cancelled_is_given_up(client, api, held):
    pool, infer = pool_of(api), stub(client.channel, f"/{SERVICE}/ModelInfer")
    running = [infer.future(held, metadata=client.metadata)]
    while not pool.waiting:  # the worker has all that it may hold
        running.append(infer.future(sleeping(0), metadata=client.metadata))
        api.run(asyncio.sleep(0.02))
    waiting = infer.future(sleeping(0), metadata=client.metadata)
    api.run(until(lambda: pool.waiting >= 2))
    waiting.cancel()
    api.run(until(lambda: pool.waiting <= 1))
    HELD.clear()
    assert all(call.result(timeout=10).outputs for call in running)
    assert api.run(_settled(api)) == 0


async def _settled(api):
    await until(
        lambda: (
            not any(
                connection.streams for connection in api.server._connections
            )
        )
    )
    return api.server.budget.held


# ---- the stream


def stream_of(client, requests, **options):
    options = {"metadata": client.metadata, "timeout": 20, **options}
    return stub(client.channel, f"/{SERVICE}/ModelStreamInfer")(
        iter(requests), **options
    )


def final(response):
    return response.infer_response.parameters[
        "triton_final_response"
    ].bool_param


def test_a_stream_answers_every_request_and_goes_on_after_errors(client):
    requests = [
        a_request("m-FP32", ("x", "FP32", ROW * n), id=str(n))
        for n in range(100)
    ]
    requests[50].model_name = "no-such-model"
    got = {one.infer_response.id: one for one in stream_of(client, requests)}
    assert len(got) == 100
    assert "no-such-model" in got["50"].error_message
    assert not got["50"].infer_response.outputs
    for number, one in got.items():
        assert final(one)
        if number != "50":
            assert one.error_message == ""
            assert (
                one.infer_response.raw_output_contents[0]
                == (ROW * int(number)).tobytes()
            )


def test_a_request_draws_its_version_once(api, client, monkeypatch):
    draws = []

    def draw():
        draws.append(0.25)
        return 0.25 if len(draws) % 2 else 0.75

    kept = api.gateway._snapshot
    sockets = kept.routes["default/m-FP32"].sockets
    canary = a_mirror(
        "twice", ("x", "FP32", [-1, -1]), version=2, weight=0.5, sockets=sockets
    )
    spec = ("x", "FP32", [-1, -1])
    main = a_mirror("twice", spec, sockets=sockets, others=[canary])
    api.update(*kept.routes.values(), main)
    monkeypatch.setattr("modelmill.serve.gateway.random.random", draw)
    assert ask(client, model="twice").model_version == "2"
    assert ask(client, model="twice").model_version == "1"
    named = a_request("twice", ("x", "FP32", ROW))
    named.outputs.add(
        name="text_output"
    )  # the model writes no text: it is refused
    (answer,) = stream_of(client, [named])
    assert "text_output" in answer.error_message
    assert len(draws) == 3
    api.update(*kept.routes.values())


def test_a_slow_request_of_a_stream_holds_up_no_other(
    api, client, tmp_path, held
):
    fast = api.worker(tmp_path / "fast", mirror)
    snapshot = api.gateway._snapshot
    api.update(
        *snapshot.routes.values(),
        a_mirror("quick", ("x", "FP32", [-1, 2]), sockets=[fast.path]),
    )
    held.id = "slow"
    got = stream_of(
        client, [held, a_request("quick", ("x", "FP32", ROW), id="quick")]
    )
    assert next(got).infer_response.id == "quick"
    HELD.clear()
    assert [one.infer_response.id for one in got] == ["slow"]


def test_the_request_for_an_empty_final_answer_is_met(client, api):
    request = a_request("m-FP32", ("x", "FP32", ROW), id="e")
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    got = list(stream_of(client, [request]))
    assert [
        (one.infer_response.id, final(one), len(one.infer_response.outputs))
        for one in got
    ] == [("e", True, 1)]


def test_more_requests_than_are_answered_at_once_wait_their_turn(client):
    array = np.ones((1, 100_000), np.float32)
    requests = (
        a_request("m-FP32", ("x", "FP32", array), id=str(n)) for n in range(300)
    )
    assert {one.infer_response.id for one in stream_of(client, requests)} == {
        str(n) for n in range(300)
    }


def test_the_deadline_of_a_stream_ends_it(client):
    never = threading.Event()

    def waiting():
        yield sleeping(0)
        never.wait(10)

    got = stream_of(client, waiting(), timeout=0.5)
    assert final(next(got))
    with pytest.raises(grpc.RpcError) as caught:
        next(got)
    never.set()
    assert caught.value.code() == StatusCode.DEADLINE_EXCEEDED


def test_a_stream_that_is_cancelled_gives_up_its_calls(client, api, held):
    pool, never = pool_of(api), threading.Event()

    def many():
        yield held
        while not never.wait(0.02):
            yield sleeping(0)

    got = stream_of(client, many())
    api.run(until(lambda: pool.waiting >= 2))
    got.cancel()
    never.set()
    api.run(until(lambda: pool.waiting == 0))


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_the_asynchronous_client_is_served_as_well(api, compression):
    async def scene():
        async with grpc.aio.insecure_channel(
            api.address, compression=compression
        ) as channel:
            call = stub(channel, f"/{SERVICE}/ModelInfer")
            asked = [
                call(
                    a_request("m-FP32", ("x", "FP32", ROW), id=str(n)),
                    metadata=KEY.items(),
                )
                for n in range(400)
            ]
            assert [one.id for one in await asyncio.gather(*asked)] == [
                str(n) for n in range(400)
            ]
            talk = stub(channel, f"/{SERVICE}/ModelStreamInfer")(
                metadata=KEY.items()
            )
            await talk.write(a_request("m-FP32", ("x", "FP32", ROW), id="one"))
            assert (await talk.read()).infer_response.id == "one"
            await talk.done_writing()
            assert await talk.read() is grpc.aio.EOF

    asyncio.run(scene())


# ---- health, reflection, TLS, the end


def test_health_is_answered_by_check_and_by_watch(client, api):
    check = stub(client.channel, "/grpc.health.v1.Health/Check")
    ask_for = message("grpc.health.v1.HealthCheckRequest")
    assert [check(ask_for(service=name)).status for name in ("", SERVICE)] == [
        1,
        1,
    ]
    with pytest.raises(grpc.RpcError) as caught:
        check(ask_for(service="nothing"))
    assert caught.value.code() == StatusCode.NOT_FOUND
    watching = stub(client.channel, "/grpc.health.v1.Health/Watch")(
        ask_for(), timeout=20
    )
    assert next(watching).status == 1
    api.gateway.draining = True
    assert next(watching).status == 2
    assert check(ask_for()).status == 2
    api.gateway.draining = False
    assert next(watching).status == 1
    watching.cancel()
    assert (
        next(
            stub(client.channel, "/grpc.health.v1.Health/Watch")(
                ask_for(service="nothing")
            )
        ).status
        == 3
    )
    everything = stub(client.channel, "/grpc.health.v1.Health/List")(
        message("grpc.health.v1.HealthListRequest")()
    )
    assert everything.statuses[SERVICE].status == 1


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_everything_that_is_served(client, version):
    package = f"grpc.reflection.{version}"
    ask_for = message(f"{package}.ServerReflectionRequest")
    talk = stub(
        client.channel, f"/{package}.ServerReflection/ServerReflectionInfo"
    )
    questions = [
        ask_for(list_services=""),
        ask_for(file_containing_symbol=SERVICE),
        ask_for(file_containing_symbol=f"{package}.ServerReflection"),
        ask_for(
            file_by_filename="modelmill/protocols/v2/grpc/proto/health.proto"
        ),
        ask_for(file_containing_symbol="nothing"),
        ask_for(all_extension_numbers_of_type="inference.ModelConfig"),
        ask_for(),
    ]
    got = list(talk(iter(questions), metadata=client.metadata, timeout=10))
    names = {one.name for one in got[0].list_services_response.service}
    assert names == {path[1:].partition("/")[0] for path in methods()}
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    packages = [
        FileDescriptorProto.FromString(
            one.file_descriptor_response.file_descriptor_proto[0]
        ).package
        for one in got[1:4]
    ]
    assert packages == ["inference", package, "grpc.health.v1"]
    assert [one.error_response.error_code for one in (got[4], got[6])] == [5, 5]
    assert (
        got[5].all_extension_numbers_response.base_type_name
        == "inference.ModelConfig"
    )


class Tracing:
    """Notes what is traced."""

    def __init__(self):
        self.started, self.ended = [], 0
        self.response_headers = (
            ("traceparent", "00-1-2-01"),
            ("x-request-id", "mine"),
        )

    def start(self, name, metadata, attributes):
        self.started.append(
            (name, metadata.get("traceparent"), attributes["rpc.method"])
        )
        return self

    def set(self, attributes):
        assert attributes

    def phase(self, *given):
        assert given

    def fail(self, code, message):
        self.failed = code

    def end(self):
        self.ended += 1


def test_a_call_is_traced_and_its_answer_names_the_trace(
    client, api, monkeypatch
):
    tracing = Tracing()
    monkeypatch.setattr(api.gateway, "tracing", tracing)
    metadata = [
        *client.metadata,
        ("traceparent", "00-9-9-01"),
        ("x-request-id", "mine"),
    ]
    call = stub(client.channel, f"/{SERVICE}/ModelInfer")
    _, done = call.with_call(
        a_request("m-FP32", ("x", "FP32", ROW)), metadata=metadata, timeout=10
    )
    assert dict(done.initial_metadata())["x-request-id"] == "mine"
    assert tracing.started == [
        (f"{SERVICE}/ModelInfer", "00-9-9-01", "ModelInfer")
    ]
    api.run(until(lambda: tracing.ended == 1))  # once the answer has left


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext "
        "subjectAltName=DNS:localhost"
    )
    paths = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [*command.split(), "-out", paths[0], "-keyout", paths[1]],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return paths


def test_calls_may_be_encrypted(certificate):
    api = GrpcApi(tls=certificate)
    secure = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    with grpc.secure_channel(f"localhost:{api.server.port}", secure) as channel:
        assert stub(channel, f"/{SERVICE}/ServerLive")(
            message("inference.ServerLiveRequest")(), timeout=20
        ).live
    plain = Client(api.address)
    assert plain.refusal("ServerLive", timeout=2).code() in (
        StatusCode.UNAVAILABLE,
        StatusCode.DEADLINE_EXCEEDED,
    )
    plain.close()
    api.close()


def test_files_that_are_no_certificate_are_named(tmp_path):
    (tmp_path / "cert.pem").write_text("nothing")

    async def scene():
        with pytest.raises(BY_CODE["invalid_input"], match=r"cert\.pem"):
            await serve(
                None,
                ("127.0.0.1", 0),
                (tmp_path / "cert.pem", tmp_path / "key.pem"),
            )

    asyncio.run(scene())


def test_a_server_that_stops_answers_what_it_has_taken(tmp_path):
    api = GrpcApi()
    worker = api.worker(tmp_path / "w", mirror)
    api.update(
        a_mirror("m-FP32", ("x", "FP32", [-1, 2]), sockets=[worker.path])
    )
    client = Client(api.address)
    call = stub(client.channel, f"/{SERVICE}/ModelInfer").future(
        sleeping(0.3), metadata=client.metadata
    )
    never = threading.Event()

    def waiting():
        yield sleeping(0, id="one")
        never.wait(10)

    talk = stream_of(client, waiting())
    api.run(until(lambda: worker.got))
    api.run(api.server.stop(10))
    assert call.result(timeout=5).outputs
    assert next(talk).infer_response.id == "one"
    with pytest.raises(grpc.RpcError) as caught:
        next(talk)
    never.set()
    assert refused(
        caught.value, StatusCode.UNAVAILABLE, "open the stream again"
    )
    assert (
        client.refusal("ServerLive", timeout=5).code() == StatusCode.UNAVAILABLE
    )
    client.close()
    api.close()


def test_a_server_that_must_stop_at_once_leaves_nobody_waiting(tmp_path):
    api = GrpcApi()
    worker = api.worker(tmp_path / "w", mirror)
    api.update(
        a_mirror("m-FP32", ("x", "FP32", [-1, 2]), sockets=[worker.path])
    )
    client = Client(api.address)
    call = stub(client.channel, f"/{SERVICE}/ModelInfer").future(
        sleeping(3), metadata=client.metadata
    )
    api.run(until(lambda: worker.got))
    api.run(api.server.stop(0))
    assert call.exception(timeout=5).code() == StatusCode.UNAVAILABLE
    client.close()
    api.close()


def test_one_port_can_be_shared_and_several_can_be_served(tmp_path):
    import socket

    async def scene():
        from modelmill.serve.gateway import Gateway

        gateway = Gateway(Limits())
        first = await serve(gateway, [("127.0.0.1", 0)])
        free = socket.create_server(("127.0.0.1", 0))
        port = free.getsockname()[1]
        second = await serve(gateway, free)
        assert second.port == port
        await second.stop(0)
        one, other = [
            await serve(gateway, ("127.0.0.1", port)) for _ in range(2)
        ]
        for server in (first, one, other):
            await server.stop(0)

    asyncio.run(scene())


# ---- the descriptors


def test_the_descriptors_are_those_of_the_proto_files(tmp_path):
    pytest.importorskip("grpc_tools")
    source = ROOT / "src/modelmill/protocols/v2/grpc/proto"
    target = tmp_path / "descriptors"
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I",
        "src",
        f"--descriptor_set_out={target}",
    ]
    files = sorted(
        str(path.relative_to(ROOT)) for path in source.glob("*.proto")
    )
    subprocess.run([*command, *files], cwd=ROOT, check=True, timeout=60)
    assert target.read_bytes() == (source / "descriptors.binpb").read_bytes(), (
        "run `make proto`"
    )


OTHERS = """
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from modelmill.protocols.v2.grpc import messages
file = FileDescriptorProto(name="grpc_service.proto", package="inference", syntax="proto3")
file.message_type.add(name="ModelInferRequest").field.add(name="other", number=1, type=9, label=1)
descriptor_pool.Default().Add(file)
theirs = descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
assert [field.name for field in theirs.fields] == ["other"]
assert messages.message("inference.ModelInferRequest")(model_name="x").SerializeToString() == b"\\n\\x01x"
"""


def test_our_messages_live_beside_those_of_other_packages():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OTHERS],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_grpc_is_not_loaded_before_it_is_served():
    code = (
        "import sys, modelmill.protocols.v2.grpc; sys.exit(any(m in sys.modules for m in "
        "('google.protobuf', 'hpack')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    )
