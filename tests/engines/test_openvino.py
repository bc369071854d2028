"""OpenVINO: honest about precision, about the range of INT64, and silent towards the network."""

import os
import subprocess
import sys

import numpy as np
import pytest

from modelmill.engines.base import engine_named
from modelmill.errors import InvalidInput, NotInstalled
from tests.helpers.bundles import (
    brightness_graph,
    identity_graph,
    picture_bundle,
)


@pytest.fixture
def engine():
    try:
        return engine_named("openvino")
    except NotInstalled as missing:
        pytest.skip(str(missing))


def python(code, *arguments, **environment):
    """What a process of its own prints."""
    run = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        run,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


PREDICT = """
import sys
from pathlib import Path
from modelmill import predictor
from modelmill.errors import MillError
try:
    predictor.load(Path(sys.argv[1]), engine="openvino", precision=sys.argv[2])
    print("ready")
except MillError as error:
    print(error.code, error)
"""


@pytest.mark.parametrize("processor", ["AVX2", "AVX512_CORE"])
def test_bf16_is_refused_where_the_processor_would_compute_something_else(
    engine, tmp_path, processor
):
    folder = picture_bundle(tmp_path / "b")
    said = python(PREDICT, folder, "bf16", OV_CPU_MAX_ISA=processor)
    assert said.startswith(
        "invalid_input this processor has no bf16 arithmetic"
    )
    assert "fp32" in said
    assert python(PREDICT, folder, "fp32", OV_CPU_MAX_ISA=processor) == "ready"


def test_int64_within_32_bits_is_exact_and_beyond_is_refused(engine, tmp_path):
    (tmp_path / "model.onnx").write_bytes(
        identity_graph("INT64").SerializeToString()
    )
    session = engine.open(tmp_path, 1)
    inside = np.array([[-(2**31), 2**31 - 1, 0]])
    np.testing.assert_array_equal(session.run({"x": inside})["y"], inside)
    for number in (2**31, -(2**31) - 1, 2**62):
        with pytest.raises(InvalidInput, match=r"input 'x'.* 2147483647"):
            session.run({"x": np.array([[0, number, 0]])})


def test_a_model_with_operations_that_it_lacks_is_not_called_corrupt(
    engine, tmp_path
):
    from onnx import TensorProto, helper

    options = {
        "max_gram_length": 1,
        "max_skip_count": 0,
        "min_gram_length": 1,
        "mode": "TF",
        "ngram_counts": [0],
        "ngram_indexes": [0, 1],
        "pool_int64s": [2, 3],
    }
    node = helper.make_node("TfIdfVectorizer", ["x"], ["y"], **options)
    x = helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_model(
        helper.make_graph([node], "g", [x], [y]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(
        InvalidInput,
        match=r"lacks operations of this model .TfIdfVectorizer.*use the engine 'onnx'",
    ):
        engine.open(tmp_path, 1)


def test_outputs_have_the_names_of_the_file(engine, tmp_path):
    from onnx import TensorProto, helper

    x, *ys = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])
        for name in ("x", "y", "z", "w")
    )
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Identity", ["z"], ["w"]),
    ]
    graph = helper.make_model(
        helper.make_graph(nodes, "names", [x], ys),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    answer = engine.open(tmp_path, 1).run(
        {"x": np.array([[-1, 2]], np.float32)}
    )
    assert {name: array.tolist() for name, array in answer.items()} == {
        "y": [[-1, 2]],
        "z": [[0, 2]],
        "w": [[0, 2]],
    }


def test_it_reports_to_nobody_and_leaves_no_file_at_home(engine, tmp_path):
    (tmp_path / "model.onnx").write_bytes(
        brightness_graph().SerializeToString()
    )
    code = (
        "import socket, sys; from pathlib import Path\n"
        "def refuse(*arguments): raise AssertionError(arguments)\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from modelmill.engines.base import engine_named\n"
        "engine_named('openvino').open(Path(sys.argv[1]), 1)\n"
        "print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry')))"
    )
    home = tmp_path / "home"
    home.mkdir()
    assert python(code, tmp_path, HOME=str(home)) == "[]"
    assert list(home.iterdir()) == []


def test_a_worker_with_it_does_without_onnxruntime(engine, tmp_path):
    code = (
        PREDICT
        + "assert not {'onnxruntime', 'onnx', 'torch'} & sys.modules.keys()"
    )
    assert python(code, picture_bundle(tmp_path / "b"), "fp32") == "ready"


SIGNALS = """
import os, signal, sys
from pathlib import Path
from modelmill.engines.base import engine_named
engine = engine_named("openvino")
first = engine.open(Path(sys.argv[1]), 1)
second = engine.open(Path(sys.argv[1]), 1)
del first, second
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_signals_are_handled_after_models_have_ended(engine, tmp_path):
    picture_bundle(tmp_path / "b")
    assert python(SIGNALS, tmp_path / "b") == "handled"
