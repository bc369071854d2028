"""Small real bundles: a graph, a manifest and a golden set each."""

from pathlib import Path
from typing import Any

import numpy as np

from modelmill import bundle
from modelmill.predictor import Predictor, write_golden
from modelmill.types import (
    Lineage,
    Manifest,
    TensorSpec,
)
from tests.helpers.pictures import png


def a_manifest(**changed: Any) -> Manifest:
    """A manifest of a classifier of 2x2 grey pictures."""
    lineage = Lineage(
        dataset="spots",
        data_digest="0" * 64,
        recipe="cnn",
        settings={},
        seed=0,
        code_version="0",
        job=1,
        created="",
    )
    values = {
        "task": "image-classification",
        "engine": "onnx",
        "inputs": [
            TensorSpec(name="image", datatype="UINT8", shape=[-1, 2, 2, 1])
        ],
        "outputs": [TensorSpec(name="scores", datatype="FP32", shape=[-1, 2])],
        "preprocessing": {
            "height": 2,
            "width": 2,
            "color": "grey",
            "mean": [0.5],
            "std": [0.5],
        },
        "labels": ["dark", "bright"],
        "lineage": lineage,
        "metrics": {"accuracy": 1.0},
    }
    return Manifest(**(values | changed))


def plain_bundle(target: Path, **changed: Any) -> Path:
    """A sealed bundle that holds bytes only: enough for what never loads it."""
    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    (draft / "model.onnx").write_bytes(b"weights" * 10)
    (draft / "golden.json").write_text("[]")
    bundle.seal(draft, a_manifest(**changed), target)
    return target


def brightness_graph(gain: float = 1.0) -> Any:
    """scores = (1 - mean, mean) of uint8 pictures of any size, 0..1."""
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, *values: float) -> Any:
        return numpy_helper.from_array(np.array(values, np.float32), name)

    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        node("Mul", ["mean", "gain"], ["bright"]),
        node("Sub", ["one", "bright"], ["dark"]),
        node("Concat", ["dark", "bright"], ["scores"], axis=1),
    ]
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    image = helper.make_tensor_value_info(
        "image", TensorProto.UINT8, ["batch", "height", "width", 1]
    )
    scores = helper.make_tensor_value_info(
        "scores", TensorProto.FLOAT, ["batch", 2]
    )
    body = helper.make_graph(
        nodes,
        "brightness",
        [image],
        [scores],
        [axes, constant("gain", gain / 255), constant("one", 1.0)],
    )
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


def identity_graph(datatype: str, *shape: int | str) -> Any:
    """y = x, of any data type of the Open Inference Protocol."""
    from onnx import TensorProto, helper

    other = {
        "FP16": "FLOAT16",
        "BF16": "BFLOAT16",
        "FP32": "FLOAT",
        "FP64": "DOUBLE",
        "BYTES": "STRING",
    }
    kind = TensorProto.DataType.Value(other.get(datatype, datatype))
    axes = list(shape or ("batch", 3))
    x, y = (helper.make_tensor_value_info(name, kind, axes) for name in "xy")
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y]
    )
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


def picture_bundle(target: Path, gain: float = 1.0) -> Path:
    """A sealed bundle that says how bright a 2x2 grey picture is."""
    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    (draft / "model.onnx").write_bytes(
        brightness_graph(gain).SerializeToString()
    )
    manifest = a_manifest()
    inputs = [png(np.full((2, 2), 51)), png(np.full((2, 2), 204))]
    model = Predictor(draft, manifest)
    write_golden(draft, inputs, [model.predict([raw])[0] for raw in inputs])
    bundle.seal(draft, manifest, target)
    return target


def mask_bundle(target: Path) -> Path:
    """A sealed bundle that tells bright pixels from dark ones in grey pictures of 4x6 pixels."""
    from onnx import TensorProto, helper, numpy_helper

    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    node, grey = helper.make_node, ["batch", 4, 6]
    nodes = [
        node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        node("ReduceMax", ["floats", "axes"], ["grey"], keepdims=0),
        node("Div", ["grey", "top"], ["bright"]),
        node("Sub", ["one", "bright"], ["dark"]),
        node("Greater", ["bright", "dark"], ["more"]),
        node("Cast", ["more"], ["mask"], to=TensorProto.UINT8),
        node("Max", ["bright", "dark"], ["scores"]),
    ]
    values = {
        "axes": np.array([3]),
        "top": np.float32(255),
        "one": np.float32(1),
    }
    constants = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in values.items()
    ]
    image = helper.make_tensor_value_info(
        "image", TensorProto.UINT8, [*grey, 1]
    )
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, grey),
        helper.make_tensor_value_info("mask", TensorProto.UINT8, grey),
    ]
    body = helper.make_graph(nodes, "bright", [image], outputs, constants)
    graph = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    (draft / "model.onnx").write_bytes(graph.SerializeToString())
    manifest = a_manifest(
        task="image-segmentation",
        inputs=[
            TensorSpec(name="image", datatype="UINT8", shape=[-1, 4, 6, 1])
        ],
        outputs=[
            TensorSpec(name="scores", datatype="FP32", shape=[-1, 4, 6]),
            TensorSpec(name="mask", datatype="UINT8", shape=[-1, 4, 6]),
        ],
        preprocessing={
            "height": 4,
            "width": 6,
            "color": "grey",
            "mean": [0.5],
            "std": [0.5],
        },
    )
    raw = png(np.full((8, 12), 204))
    write_golden(draft, [raw], Predictor(draft, manifest).predict([raw]))
    bundle.seal(draft, manifest, target)
    return target


HOLES: dict[str, Any] = {
    "inputs": [
        TensorSpec(name="image", datatype="UINT8", shape=[-1, -1, -1, 4])
    ],
    "outputs": [
        TensorSpec(name="repaired", datatype="FP32", shape=[-1, -1, -1, 3])
    ],
}


def hole_bundle(target: Path) -> Path:
    """A sealed bundle that fills pictures in: its answer is the mask it was given, white where
    pixels are missing.
    """
    from onnx import TensorProto, helper, numpy_helper

    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    image = helper.make_tensor_value_info(
        "image", TensorProto.UINT8, ["batch", "height", "width", 4]
    )
    repaired = helper.make_tensor_value_info(
        "repaired", TensorProto.FLOAT, ["batch", "height", "width", 3]
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["levels", "white"], ["values"]),
        helper.make_node("Gather", ["values", "planes"], ["repaired"], axis=3),
    ]
    constants = [
        numpy_helper.from_array(np.array(255, np.float32), "white"),
        numpy_helper.from_array(np.array([3, 3, 3], np.int64), "planes"),
    ]
    body = helper.make_graph(nodes, "holes", [image], [repaired], constants)
    graph = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    (draft / "model.onnx").write_bytes(graph.SerializeToString())
    how = {"repair": "inpaint", "color": "rgb", "multiple": 8}
    manifest = a_manifest(
        task="image-to-image", **HOLES, preprocessing=how, labels=[]
    )
    hole = png(np.dstack([np.full((8, 8, 3), 90), np.eye(8) * 255]))
    write_golden(draft, [hole], Predictor(draft, manifest).predict([hole]))
    bundle.seal(draft, manifest, target)
    return target
