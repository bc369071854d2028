"""Every engine that reads `model.onnx`: the same graphs, data types, signatures and errors."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from modelmill.engines.base import DATATYPES, NUMPY, engine_named
from modelmill.errors import (
    BundleCorrupt,
    InvalidInput,
    ModelFailed,
    NotInstalled,
)
from modelmill.exporters.onnx import convert
from modelmill.types import TensorSpec
from tests.helpers.bundles import brightness_graph, identity_graph

ENGINES = ("onnx", "openvino")
ROUNDING = {"fp32": 1e-5, "bf16": 2e-2}


@pytest.fixture(params=ENGINES)
def engine(request):
    try:
        return engine_named(request.param)
    except NotInstalled as missing:
        pytest.skip(str(missing))


@pytest.fixture
def folder(engine, tmp_path):
    """The files of a tiny model in the engine's form."""
    convert(brightness_graph(), [], [], tmp_path)
    assert engine.reads(tmp_path)
    return tmp_path


def pictures(count, height=2, width=2):
    return {
        "image": np.arange(count * height * width, dtype=np.uint8).reshape(
            count, height, width, 1
        )
    }


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_named_arrays_go_in_and_come_out(engine, folder, batch):
    answer = engine.open(folder, 1).run(pictures(batch))
    assert answer.keys() == {"scores"}
    assert answer["scores"].shape == (batch, 2)
    assert answer["scores"].dtype == np.float32
    bright = pictures(batch)["image"].mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(answer["scores"][:, 1], bright, atol=1e-6)


def test_threads_change_nothing(engine, folder):
    one, two = (
        engine.open(folder, threads).run(pictures(5))["scores"]
        for threads in (1, 2)
    )
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(
    "arrays",
    [
        {"image": np.zeros((2, 2), np.uint8)},
        {"image": np.zeros((1, 2, 2, 3), np.uint8)},
        {"image": np.zeros((1, 2, 2, 1), np.float32)},
        {"picture": np.zeros((1, 2, 2, 1), np.uint8)},
        {},
    ],
)
def test_arrays_of_another_signature_fail_in_words(engine, folder, arrays):
    session = engine.open(folder, 1)
    with pytest.raises(ModelFailed, match="the model failed"):
        session.run(arrays)
    assert session.run(pictures(1))["scores"].shape == (
        1,
        2,
    )  # and the session lives on


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "garbage"])
def test_a_file_that_is_no_model_is_corrupt(engine, folder, how):
    for path in folder.iterdir():
        data = path.read_bytes()
        path.write_bytes(
            {
                "empty": b"",
                "cut": data[: len(data) // 2],
                "garbage": b"\xff" * 64,
            }.get(how, b"")
        )
        if how == "missing":
            path.unlink()
    with pytest.raises(BundleCorrupt):
        engine.open(folder, 1)


def test_a_device_that_it_can_not_use_is_refused(engine, folder):
    with pytest.raises(InvalidInput, match="abacus"):
        engine.open(folder, 1, "abacus")


def test_a_torch_network_is_converted_with_a_free_batch(engine, tmp_path):
    import warnings

    import torch

    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Softmax(1))
    inputs = [TensorSpec(name="x", datatype="FP32", shape=[-1, 3])]
    outputs = [TensorSpec(name="scores", datatype="FP32", shape=[-1, 2])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert(network, inputs, outputs, tmp_path)
    session = engine.open(tmp_path, 1)
    for batch in (1, 7):
        x = (
            np.random.default_rng(batch)
            .normal(size=(batch, 3))
            .astype(np.float32)
        )
        with torch.inference_mode():
            wanted = network(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(
            session.run({"x": x})["scores"], wanted, atol=1e-5
        )


def opened(engine, folder, precision):
    """A session, where this processor has the precision."""
    try:
        return engine.open(folder, 2, precision=precision)
    except InvalidInput as lacks:
        if "this processor" not in str(lacks):
            raise
        pytest.skip(str(lacks))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_answers_as_the_onnx_engine(engine, tmp_path, precision):
    if precision not in engine.PRECISIONS:
        pytest.skip(f"the engine does not offer {precision}")
    layers(tmp_path)
    session = opened(engine, tmp_path, precision)
    other = engine_named("onnx").open(tmp_path, 1)
    for batch in (1, 3, 33):
        x = (
            np.random.default_rng(batch)
            .normal(size=(batch, 64))
            .astype(np.float32)
        )
        got, wanted = session.run({"x": x}), other.run({"x": x})
        assert got.keys() == wanted.keys()
        assert got["y"].dtype == np.float32
        np.testing.assert_allclose(
            got["y"], wanted["y"], atol=ROUNDING[precision]
        )


def layers(folder, width=64, count=4):
    """A graph of dense layers that keeps its values between -1 and 1."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = rng.normal(size=(count, width, width)).astype(
        np.float32
    ) / np.float32(np.sqrt(width))
    nodes = []
    for i in range(count):
        nodes.append(
            helper.make_node(
                "MatMul", ["x" if i == 0 else f"t{i - 1}", f"w{i}"], [f"m{i}"]
            )
        )
        nodes.append(
            helper.make_node(
                "Tanh", [f"m{i}"], ["y" if i == count - 1 else f"t{i}"]
            )
        )
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name in "xy"
    )
    constants = [
        numpy_helper.from_array(weights[i], f"w{i}") for i in range(count)
    ]
    body = helper.make_graph(nodes, "layers", [x], [y], constants)
    graph = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    (folder / "model.onnx").write_bytes(graph.SerializeToString())


@pytest.mark.parametrize("precision", ["int3", "FP32", "*"])
def test_a_precision_that_it_does_not_offer_is_refused_with_those_it_does(
    engine, folder, precision
):
    with pytest.raises(
        InvalidInput,
        match=f"{precision if precision != '*' else '[*]'}.*{engine.PRECISIONS[0]}",
    ):
        engine.open(folder, 1, precision=precision)


def values(datatype):
    """An array [2, 3] with the ends of the data type's range."""
    if datatype == "BYTES":
        few = [
            [b"a\0b", b"", "\u00fc".encode()],
            [b"\0", "\U0001f600".encode(), b"x" * 70_000],
        ]
        return np.array(few, object)
    kind = np.dtype(NUMPY[datatype])
    if kind.kind in "iu":
        ends = np.iinfo(kind)
        return np.array([[0, 1, ends.max], [ends.min, 77, ends.max - 1]], kind)
    if kind.kind == "b":
        return np.array([[True, False, True], [False, False, True]])
    info = ml_dtypes.finfo(kind)
    return np.array(
        [[0.1, -0.0, info.max], [info.min, np.inf, info.tiny]], kind
    )


def same(one, other):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert (
        one.tolist() == other.tolist()
        if one.dtype == object
        else one.tobytes() == other.tobytes()
    )


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_it_claims_comes_back_to_the_bit(
    engine, tmp_path, datatype
):
    (tmp_path / "model.onnx").write_bytes(
        identity_graph(datatype).SerializeToString()
    )
    if datatype not in engine.DATATYPES:
        for refused in (
            lambda: engine.open(tmp_path, 1),
            lambda: engine.signature(tmp_path),
        ):
            with pytest.raises(InvalidInput, match="'x' is of the type"):
                refused()
        return
    session = engine.open(tmp_path, 1)
    small = (
        np.full((2, 3), b"z", object)
        if datatype == "BYTES"
        else np.zeros((2, 3), NUMPY[datatype])
    )
    same(session.run({"x": small})["y"], small)
    full = values(datatype)
    try:
        same(session.run({"x": full})["y"], full)
    except (
        InvalidInput
    ) as refusal:  # what it can't hold it may refuse, but not change
        if "'x'" not in str(refusal):
            raise
    same(session.run({"x": np.asfortranarray(small)})["y"], small)
    frozen = small.copy()
    frozen.flags.writeable = False  # as a tensor from a request is
    same(session.run({"x": frozen})["y"], small)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_no_rows_are_answered_with_no_rows(engine, tmp_path, datatype):
    if datatype not in engine.DATATYPES:
        pytest.skip(f"the engine does not offer {datatype}")
    (tmp_path / "model.onnx").write_bytes(
        identity_graph(datatype).SerializeToString()
    )
    kind = np.dtype(NUMPY.get(datatype, object))
    answer = engine.open(tmp_path, 1).run({"x": np.zeros((0, 3), kind)})["y"]
    assert (answer.shape, answer.dtype) == ((0, 3), kind)


def test_an_answer_is_not_changed_by_the_next(engine, tmp_path):
    layers(tmp_path)
    session = engine.open(tmp_path, 1)
    ones, zeros = (np.full((2, 64), value, np.float32) for value in (1, 0))
    first = session.run({"x": ones})["y"]
    kept = first.copy()
    session.run({"x": zeros})
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(ones, np.ones((2, 64), np.float32))


def test_threads_can_share_a_session(engine, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    layers(tmp_path)
    session = engine.open(tmp_path, 1)
    batches = [
        np.random.default_rng(i).normal(size=(i % 5 + 1, 64)).astype(np.float32)
        for i in range(40)
    ]
    wanted = [session.run({"x": batch})["y"] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for got, alone in zip(
            pool.map(lambda batch: session.run({"x": batch})["y"], batches),
            wanted,
            strict=True,
        ):
            np.testing.assert_allclose(got, alone, atol=1e-6)


BUSY = """
import json, os, pathlib, sys, time
import numpy as np
from modelmill.engines.base import engine_named

name, folder, threads = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
allowed = os.sched_getaffinity(0)
session = engine_named(name).open(folder, threads)
batch = {"x": np.ones((256, 512), np.float32)}
def used():
    stats = [(task, open(f"/proc/self/task/{task}/stat").read().rpartition(")")[2].split()) for task in tasks()]
    return {task: int(stat[11]) + int(stat[12]) for task, stat in stats}
def tasks():
    return os.listdir("/proc/self/task")
before = used()
until = time.process_time() + 1
while time.process_time() < until:
    session.run(batch)
spent = {task: ticks - before.get(task, 0) for task, ticks in used().items()}
busy = sum(ticks > 0.1 * sum(spent.values()) for ticks in spent.values())
pinned = [task for task in tasks() if os.sched_getaffinity(int(task)) != allowed]
print(json.dumps({"busy": busy, "pinned": pinned}))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_no_more_threads_work_than_it_was_given(engine, tmp_path, threads):
    layers(tmp_path, width=512, count=8)
    name = type(engine).__module__.rpartition(".")[2]
    run = [sys.executable, "-c", BUSY, name, str(tmp_path), str(threads)]
    found = json.loads(
        subprocess.run(run, check=True, capture_output=True, timeout=120).stdout
    )
    assert found["pinned"] == []
    assert found["busy"] in (
        {1} if threads == 1 or os.cpu_count() == 1 else {1, 2}
    )


MANY_SIZES = """
import pathlib, sys
import numpy as np
from modelmill.engines.base import engine_named

session = engine_named(sys.argv[1]).open(pathlib.Path(sys.argv[2]), 1)
full, rng, pages = np.ones((256, 512), np.float32), np.random.default_rng(0), []
for _ in range(4):
    for size in rng.permutation(256):
        session.run({"x": full[: size + 1]})
    pages.append(int(pathlib.Path("/proc/self/statm").read_text().split()[1]))
print((pages[3] - pages[1]) * 4096 / 2**20)
"""


def test_batches_of_many_sizes_leak_no_memory(engine, tmp_path):
    layers(tmp_path, width=512, count=3)
    run = [
        sys.executable,
        "-c",
        MANY_SIZES,
        type(engine).__module__.rpartition(".")[2],
        str(tmp_path),
    ]
    grown = float(
        subprocess.run(run, check=True, capture_output=True, timeout=200).stdout
    )
    assert grown < 16, (
        f"{grown:.0f} MiB more after every size was seen twice again"
    )


def test_its_signature_is_read_from_the_file(engine, folder):
    inputs, outputs = engine.signature(folder)
    assert inputs == [
        TensorSpec(name="image", datatype="UINT8", shape=[-1, -1, -1, 1])
    ]
    assert outputs == [
        TensorSpec(name="scores", datatype="FP32", shape=[-1, 2])
    ]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "there is no such file"),
        ("empty", "no ONNX model, or it was cut off"),
        ("cut", "no ONNX model, or it was cut off"),
        ("garbage", "no ONNX model, or it was cut off"),
        ("operator", "Foo"),
    ],
)
def test_a_signature_that_can_not_be_read_says_why(engine, tmp_path, how, says):
    graph = identity_graph("FP32")
    data = graph.SerializeToString()
    graph.graph.node[0].op_type = "Foo"
    content = {
        "empty": b"",
        "cut": data[:-9],
        "garbage": b"\xff" * 64,
        "operator": graph.SerializeToString(),
    }
    if how in content:
        (tmp_path / "model.onnx").write_bytes(content[how])
    with pytest.raises(InvalidInput, match=says) as failed:
        engine.signature(tmp_path)
    assert str(tmp_path) not in str(failed.value)


@pytest.mark.parametrize(
    ("place", "size", "says"),
    [
        ("weights.bin", None, "external data are missing: weights.bin"),
        (
            "weights.bin",
            4,
            "external data are too short: the weight 'w' is not in them",
        ),
        ("../weights.bin", 12, "external data outside its folder"),
        ("/etc/hostname", None, "external data outside its folder"),
    ],
)
def test_external_data_that_are_missing_or_not_its_own_are_refused(
    engine, tmp_path, place, size, says
):
    folder = tmp_path / "model"
    folder.mkdir()
    if size is not None:
        (folder / place).write_bytes(bytes(size))
    (folder / "model.onnx").write_bytes(external(place).SerializeToString())
    with pytest.raises(InvalidInput, match=says) as failed:
        engine.signature(folder)
    assert str(tmp_path) not in str(failed.value)
    with pytest.raises((BundleCorrupt, InvalidInput)):
        engine.open(folder, 1)


def external(place):
    """y = x + w, with w in another file."""
    from onnx import TensorProto, helper

    weight = TensorProto(
        name="w",
        data_type=TensorProto.FLOAT,
        dims=[3],
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", place), ("length", "12")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    graph = identity_graph("FP32")
    graph.graph.initializer.append(weight)
    graph.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "w"], ["y"]))
    return graph


@pytest.mark.parametrize(
    "kind", ["sequence", "optional", "map", "int4", "scalar"]
)
def test_a_signature_that_can_not_be_served_names_the_tensor(
    engine, tmp_path, kind
):
    (tmp_path / "model.onnx").write_bytes(strange(kind).SerializeToString())
    with pytest.raises(InvalidInput, match="output 'y'"):
        engine.signature(tmp_path)


def strange(kind):
    """A graph whose output is no tensor with a batch axis and a data type of ours."""
    from onnx import TensorProto, helper

    rows = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 3])
    probabilities = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    ml = {"domain": "ai.onnx.ml", "classlabels_int64s": [1, 2, 3]}
    node, type_of = {
        "sequence": (
            helper.make_node("SequenceConstruct", ["x"], ["y"]),
            helper.make_sequence_type_proto(rows),
        ),
        "optional": (
            helper.make_node("Optional", ["x"], ["y"]),
            helper.make_optional_type_proto(rows),
        ),
        "map": (
            helper.make_node("ZipMap", ["x"], ["y"], **ml),
            helper.make_sequence_type_proto(probabilities),
        ),
        "int4": (
            helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT4),
            helper.make_tensor_type_proto(TensorProto.INT4, ["batch", 3]),
        ),
        "scalar": (
            helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0),
            helper.make_tensor_type_proto(TensorProto.FLOAT, []),
        ),
    }[kind]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    body = helper.make_graph(
        [node], kind, [x], [helper.make_value_info("y", type_of)]
    )
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(body, opset_imports=sets, ir_version=10)
