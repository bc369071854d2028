"""Trained networks as `model.onnx`."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelmill.engines.base import NUMPY
from modelmill.engines.onnx import OnnxSession
from modelmill.engines.onnx_file import FILE
from modelmill.errors import ModelFailed
from modelmill.types import TensorSpec

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

OPSET = 20
FREE = 32
"""Example length of a dynamic axis during export, for each row of a batch: long enough for the
sides of an image.
"""

Array = np.ndarray[Any, Any]


def convert(
    network: Any,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    folder: Path,
) -> list[str]:
    """A torch module as `model.onnx`: one file, with a dynamic batch. An ONNX `ModelProto` is
    written as it is.

    Raises `ModelFailed` when the graph does not answer as the network does.
    """
    if hasattr(network, "SerializeToString"):
        (folder / FILE).write_bytes(network.SerializeToString())
        return [FILE]
    network = network.eval()
    _quieten_exporter()
    program = _exported(network, inputs, outputs)
    _own_names(program.model, {spec.name for spec in outputs})
    program.save(str(folder / FILE), external_data=False)
    _compare(network, inputs, folder)
    return [FILE]


def _quieten_exporter() -> None:
    # It misses torchvision, which nothing here uses, and says so at every export.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(
        logging.ERROR
    )


def _exported(
    network: Any, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> "ONNXProgram":
    import torch

    from modelmill.exporters.recurrent import recurrent_layers_as_nodes

    with recurrent_layers_as_nodes() as translations:
        program = torch.onnx.export(
            network,
            tuple(torch.from_numpy(_zeros(spec, 2)) for spec in inputs),
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_shapes=tuple(_free(spec, torch) for spec in inputs),
            custom_translation_table=translations,
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program


def _own_names(model: Any, outputs: set[str]) -> None:
    """The exporter may call a value inside like an output, such as `embedding`: a graph that can't
    be loaded.
    """
    for node in model.graph:
        for value in node.outputs:
            if value.name in outputs and not value.is_graph_output():
                value.name = f"inner_{value.name}"


def _free(spec: TensorSpec, torch: Any) -> dict[int, Any]:
    """The axes of an input that the graph leaves open: the batch, and those whose length the
    signature does not say.
    """
    axes = {
        axis: torch.export.Dim.DYNAMIC
        for axis, side in enumerate(spec.shape)
        if axis and side < 0
    }
    return {0: torch.export.Dim("batch", min=1, max=65536), **axes}


def _compare(network: Any, inputs: list[TensorSpec], folder: Path) -> None:
    """The exported graph must answer as the network, also at a batch it was not exported with.

    The first output tells: of several, the others may be ranked by it, and near-equal ranks swap.
    """
    session = OnnxSession(folder / FILE, threads=1)
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        arrays = {spec.name: _random(spec, batch, rng) for spec in inputs}
        wanted = _first_output(network, list(arrays.values()))
        _check_close(next(iter(session.run(arrays).values())), wanted)


def _check_close(got: Array, wanted: Array) -> None:
    """Raises `ModelFailed`."""
    if not np.allclose(wanted, got, atol=1e-3):
        worst = float(np.abs(wanted - got).max())
        raise ModelFailed(
            f"the exported model differs from the trained one by {worst:.2g}"
        )


def _first_output(network: Any, arrays: list[Array]) -> Array:
    """The first output of a torch module."""
    import torch

    with torch.inference_mode():
        answer = network(*[torch.from_numpy(array) for array in arrays])
    first = answer if isinstance(answer, torch.Tensor) else answer[0]
    return np.asarray(first.numpy())


def _zeros(spec: TensorSpec, batch: int) -> Array:
    """An example of an input, with lengths for its free axes."""
    lengths = [side if side >= 0 else batch * FREE for side in spec.shape[1:]]
    return np.zeros([batch, *lengths], NUMPY[spec.datatype])


def _random(spec: TensorSpec, batch: int, rng: np.random.Generator) -> Array:
    zeros = _zeros(spec, batch)
    # Whole numbers are pixels or token ids: 0 and 1 always exist
    top = 255 if spec.datatype == "UINT8" else 2
    if zeros.dtype.kind in "iu":
        return np.asarray(rng.integers(0, top, zeros.shape), zeros.dtype)
    return np.asarray(rng.normal(size=zeros.shape), zeros.dtype)
