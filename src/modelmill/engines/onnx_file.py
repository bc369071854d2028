"""What all engines for `model.onnx` have in common: no runtime is imported here."""

from pathlib import Path

import numpy as np

from modelmill.engines.base import Sample, sample_rows
from modelmill.types import TensorSpec

FILE = "model.onnx"
"""The model in a bundle."""


def write_sample(folder: Path, datatype: str) -> Sample:
    """A graph from `x` [-1, 3] to `y`: tanh(x w) in FP32, x itself in other data types."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    usual = {"FP16": "FLOAT16", "BF16": "BFLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE"}
    kind = {**usual, "BYTES": "STRING"}.get(datatype, datatype)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.DataType.Value(kind), ["n", 3])
        for name in "xy"
    )
    given = sample_rows(datatype)
    if datatype == "FP32":
        weights = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["z"]),
            helper.make_node("Tanh", ["z"], ["y"]),
        ]
        constants = [numpy_helper.from_array(weights, "w")]
        answered = np.tanh(given @ weights)
    else:
        nodes, constants = [helper.make_node("Identity", ["x"], ["y"])], []
        answered = given
    body = helper.make_graph(nodes, "sample", [x], [y], constants)
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / FILE)
    inputs = [TensorSpec(name="x", datatype=datatype, shape=[-1, 3])]
    outputs = [TensorSpec(name="y", datatype=datatype, shape=[-1, 3])]
    return Sample(inputs, outputs, {"x": given}, {"y": answered})
