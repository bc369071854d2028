"""ONNX Runtime: the default engine, on every processor."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from modelmill.engines.base import NUMPY, Arrays
from modelmill.errors import BundleCorrupt, InvalidInput, ModelFailed
from modelmill.types import TensorSpec

FILE = "model.onnx"
OPSET = 20

ort.set_default_logger_severity(3)


class OnnxSession:
    """One loaded graph with a fixed number of threads."""

    def __init__(self, path: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads would take the cores from the decoding of the next batch.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own kinds, none of them public
            raise BundleCorrupt(f"{path.name} can't be loaded: {str(error)[:200]}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """All outputs of one batch; raises `ModelFailed`."""
        try:
            return dict(zip(self._outputs, self._session.run(None, dict(arrays)), strict=True))
        except Exception as error:
            raise ModelFailed(f"the model failed: {str(error)[:300]}") from error


def open(folder: Path, threads: int, device: str = "cpu") -> OnnxSession:
    """Load `model.onnx` of a bundle; raises `BundleCorrupt`, `InvalidInput` for a device it can't use."""
    if device != "cpu":
        raise InvalidInput(f"the onnx engine runs on 'cpu', not '{device}'")
    return OnnxSession(folder / FILE, threads)


def signature(folder: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of a bare `model.onnx`; raises `InvalidInput` for one that can't be served."""
    session = OnnxSession(folder / FILE, 1)._session
    return [_spec(node) for node in session.get_inputs()], [_spec(node) for node in session.get_outputs()]


def _spec(node: Any) -> TensorSpec:
    kinds = {"tensor(float)": "FP32", "tensor(int64)": "INT64", "tensor(uint8)": "UINT8", "tensor(int32)": "INT32"}
    if node.type not in kinds:
        raise InvalidInput(f"'{node.name}' is of the type {node.type}, which can't be served")
    shape = [side if isinstance(side, int) else -1 for side in node.shape]
    return TensorSpec(name=node.name, datatype=kinds[node.type], shape=shape)


def convert(network: Any, inputs: list[TensorSpec], outputs: list[TensorSpec], folder: Path) -> list[str]:
    """A torch module as `model.onnx`: one file, with a dynamic batch. An ONNX `ModelProto` is written as it is.

    Raises `ModelFailed` when the graph does not answer as the network does.
    """
    if hasattr(network, "SerializeToString"):
        (folder / FILE).write_bytes(network.SerializeToString())
        return [FILE]
    import torch

    # The exporter misses torchvision, which nothing here uses, and says so at every export.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    network = network.eval()
    examples = [torch.from_numpy(_zeros(spec, 2)) for spec in inputs]
    program = torch.onnx.export(
        network,
        tuple(examples),
        input_names=[spec.name for spec in inputs],
        output_names=[spec.name for spec in outputs],
        dynamic_shapes=tuple({0: torch.export.Dim("batch", min=1, max=65536)} for _ in inputs),
        opset_version=OPSET,
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(folder / FILE), external_data=False)
    _compare(network, inputs, folder)
    return [FILE]


def _compare(network: Any, inputs: list[TensorSpec], folder: Path) -> None:
    """The exported graph must answer as the network, also at a batch it was not exported with."""
    import torch

    session = OnnxSession(folder / FILE, threads=1)
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        arrays = {spec.name: _random(spec, batch, rng) for spec in inputs}
        with torch.inference_mode():
            wanted = network(*[torch.from_numpy(array) for array in arrays.values()]).numpy()
        got = next(iter(session.run(arrays).values()))
        if not np.allclose(wanted, got, atol=1e-3):
            worst = float(np.abs(wanted - got).max())
            raise ModelFailed(f"the exported model differs from the trained one by {worst:.2g}")


def _zeros(spec: TensorSpec, batch: int) -> np.ndarray[Any, Any]:
    return np.zeros([batch, *(max(side, 1) for side in spec.shape[1:])], NUMPY[spec.datatype])


def _random(spec: TensorSpec, batch: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    zeros = _zeros(spec, batch)
    top = 255 if spec.datatype == "UINT8" else 2  # whole numbers are pixels or token ids: 0 and 1 always exist
    if zeros.dtype.kind in "iu":
        return np.asarray(rng.integers(0, top, zeros.shape), zeros.dtype)
    return np.asarray(rng.normal(size=zeros.shape), zeros.dtype)
