"""What all engines for `model.onnx` have in common: no runtime is imported here."""

from pathlib import Path
from typing import TYPE_CHECKING

from modelmill.engines.base import SAMPLE_WEIGHTS, Sample, small_sample

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

FILE = "model.onnx"
"""The model in a bundle."""
ONNX_NAMES = {
    "FP16": "FLOAT16",
    "BF16": "BFLOAT16",
    "FP32": "FLOAT",
    "FP64": "DOUBLE",
    "BYTES": "STRING",
}
"""Data types of the Open Inference Protocol that ONNX calls otherwise."""


def write_sample(folder: Path, datatype: str) -> Sample:
    """A graph from `x` [-1, 3] to `y`: tanh(x w) in FP32, x itself in other data types."""
    import onnx
    from onnx import helper

    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(
        _sample_graph(datatype), opset_imports=opsets, ir_version=10
    )
    onnx.save(model, folder / FILE)
    return small_sample(datatype)


def _sample_graph(datatype: str) -> "GraphProto":
    from onnx import TensorProto, helper

    element = TensorProto.DataType.Value(ONNX_NAMES.get(datatype, datatype))
    x, y = (
        helper.make_tensor_value_info(name, element, ["n", 3]) for name in "xy"
    )
    nodes, weights = _tanh_of_product() if datatype == "FP32" else _copy()
    return helper.make_graph(nodes, "sample", [x], [y], weights)


Nodes = tuple[list["NodeProto"], list["TensorProto"]]
"""Nodes of a graph from x to y, and their weights."""


def _copy() -> Nodes:
    from onnx import helper

    return [helper.make_node("Identity", ["x"], ["y"])], []


def _tanh_of_product() -> Nodes:
    from onnx import helper, numpy_helper

    product = helper.make_node("MatMul", ["x", "w"], ["z"])
    tanh = helper.make_node("Tanh", ["z"], ["y"])
    return [product, tanh], [numpy_helper.from_array(SAMPLE_WEIGHTS, "w")]
