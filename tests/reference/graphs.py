"""Reference models as ONNX graphs, each written as one file; and two tiny bundles with a task."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from modelmill import bundle
from modelmill.predictor import Predictor, write_golden
from modelmill.tasks.decoding import text_tokenizer
from modelmill.tasks.decoding.tokenizer import TOKENIZER, load_tokenizer
from modelmill.types import TensorSpec
from tests.helpers.bundles import a_manifest
from tests.helpers.pictures import png

ONNX = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
"""Every datatype of the Open Inference Protocol."""

COLOURS = ["red", "green", "blue"]
FEELINGS = ["negative", "positive"]
CLASSES = ["low", "middling", "high", "highest"]


def addsub(path: Path) -> Path:
    """`a`, `b` FP32 [n, m] -> `sum`, `diff`."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["diff"]),
    ]
    return _write(
        path,
        nodes,
        [_tensor("a"), _tensor("b")],
        [_tensor("sum"), _tensor("diff")],
    )


def marked_addsub(path: Path, mark: int) -> Path:
    """The same, and `mark` FP32 [n, 1], which tells which version has answered."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["diff"]),
        helper.make_node("Sub", ["a", "a"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros", "axis"], ["zero"], keepdims=1),
        helper.make_node("Add", ["zero", "number"], ["mark"]),
    ]
    outputs = [_tensor("sum"), _tensor("diff"), _tensor("mark", width=1)]
    constants = [
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array([mark], np.float32), "number"),
    ]
    return _write(path, nodes, [_tensor("a"), _tensor("b")], outputs, constants)


def identity(path: Path, datatype: str) -> Path:
    """`input` [n, m] of any datatype -> `output`, the very same."""
    node = helper.make_node("Identity", ["input"], ["output"])
    return _write(
        path,
        [node],
        [_tensor("input", datatype)],
        [_tensor("output", datatype)],
    )


def classifier(path: Path) -> Path:
    """`features` FP32 [n, 4] -> `scores` FP32 [n, 4], their softmax; the classes are `CLASSES`."""
    node = helper.make_node("Softmax", ["features"], ["scores"], axis=1)
    return _write(
        path,
        [node],
        [_tensor("features", width=4)],
        [_tensor("scores", width=4)],
    )


def colour_bundle(target: Path) -> Path:
    """A sealed bundle that says which of `COLOURS` a picture has most of."""
    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node(
            "ReduceMean", ["floats", "axes"], ["mean"], keepdims=0
        ),
        helper.make_node("Softmax", ["mean"], ["scores"], axis=1),
    ]
    image = helper.make_tensor_value_info(
        "image", TensorProto.UINT8, ["n", 8, 8, 3]
    )
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    _write(
        draft / "model.onnx",
        nodes,
        [image],
        [_tensor("scores", width=3)],
        [axes],
    )
    manifest = a_manifest(
        inputs=[
            TensorSpec(name="image", datatype="UINT8", shape=[-1, 8, 8, 3])
        ],
        outputs=[TensorSpec(name="scores", datatype="FP32", shape=[-1, 3])],
        preprocessing={
            "height": 8,
            "width": 8,
            "color": "rgb",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        labels=COLOURS,
    )
    inputs = [picture(colour) for colour in COLOURS]
    write_golden(draft, inputs, Predictor(draft, manifest).predict(inputs))
    bundle.seal(draft, manifest, target)
    return target


def picture(colour: str, side: int = 16) -> bytes:
    """A PNG of one of `COLOURS`."""
    pixels = np.full((side, side, 3), 40, np.uint8)
    pixels[..., COLOURS.index(colour)] = 200
    return png(pixels)


def feeling_bundle(target: Path) -> Path:
    """A sealed bundle that finds texts with the word `love` positive and those with `hate`
    negative.
    """
    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    how = text_tokenizer.prepare(
        ["i love this .", "i hate this ."] * 3,
        text_tokenizer.Preprocessing(max_length=8),
        draft,
    )
    known = load_tokenizer(draft / TOKENIZER)
    table = np.zeros((how.tokens, 2), np.float32)
    table[known.id_of("hate")] = (3, -3)
    table[known.id_of("love")] = (-3, 3)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axes"], ["sum"], keepdims=0),
        helper.make_node("Softmax", ["sum"], ["scores"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 8])
    _write(
        draft / "model.onnx",
        nodes,
        [ids],
        [_tensor("scores", width=2)],
        constants,
    )
    manifest = a_manifest(
        task="text-classification",
        inputs=[TensorSpec(name="ids", datatype="INT64", shape=[-1, 8])],
        outputs=[TensorSpec(name="scores", datatype="FP32", shape=[-1, 2])],
        preprocessing=msgspec.to_builtins(how),
        labels=FEELINGS,
    )
    inputs = ["i love this", "i hate this"]
    write_golden(draft, inputs, Predictor(draft, manifest).predict(inputs))
    bundle.seal(draft, manifest, target)
    return target


def _tensor(name: str, datatype: str = "FP32", width: int | str = "m") -> Any:
    return helper.make_tensor_value_info(name, ONNX[datatype], ["n", width])


def _write(
    path: Path,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    constants: Any = (),
) -> Path:
    graph = helper.make_graph(
        nodes, path.stem, inputs, outputs, list(constants)
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path
