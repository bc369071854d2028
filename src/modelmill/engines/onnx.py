"""ONNX Runtime: the default engine, on every processor."""

import ctypes
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort

from modelmill.engines import base
from modelmill.engines.base import FILE, NUMPY, Arrays, choose
from modelmill.errors import BundleCorrupt, InvalidInput, ModelFailed
from modelmill.types import INT8, TensorSpec

OPSET = 20
PRECISIONS = ("fp32", INT8)
DATATYPES = base.DATATYPES
FREE, FREE_ALONE = 32, 8
"""Length for each row of a batch that axes of no fixed length have when a network is converted: the
sides of a picture, or one alone, such as the words of a text, of which the exporter follows a
recurrent network one by one.
"""
ONNX_BFLOAT16 = 16  # TensorProto.DataType; the package onnx is not needed to serve

KINDS = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""ONNX Runtime's names of tensor types as those of the Open Inference Protocol."""

Array = np.ndarray[Any, Any]

ort.set_default_logger_severity(3)


class OnnxSession:
    """One loaded graph with a fixed number of threads.

    The runtime's memory arena stays on: it holds what the largest batch needed and does not grow
    with the variety of batch sizes, while without it glibc keeps several times as much.
    """

    def __init__(self, path: Path, threads: int) -> None:
        try:
            self._session = _load(path, threads)
        except (
            Exception
        ) as error:  # onnxruntime raises its own kinds, none of them public
            raise BundleCorrupt(
                f"{path.name} can't be loaded: {_reason(error)}"
            ) from error
        self._inputs = {
            one.name: KINDS.get(one.type, "") for one in self._session.get_inputs()
        }
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._plain = {"BF16", "BYTES"}.isdisjoint(self._inputs.values())
        self._bf16_out = _gives_bf16(self._session)

    def run(self, arrays: Mapping[str, Array]) -> Arrays:
        """All outputs of one batch; raises `ModelFailed`, or `InvalidInput` for BYTES that are not
        UTF-8.
        """
        try:
            feed = (
                dict(arrays)
                if self._plain
                else {name: self._value(name, one) for name, one in arrays.items()}
            )
            # numpy has no such type, so the runtime gives it only as a value of its own
            if self._bf16_out:
                feed = {name: _boxed(one) for name, one in feed.items()}
                results = map(
                    _unboxed, self._session.run_with_ort_values(self._outputs, feed)
                )
            else:
                results = map(_bytes, self._session.run(self._outputs, feed))
            return dict(zip(self._outputs, results, strict=True))
        except InvalidInput:
            raise
        except Exception as error:
            raise ModelFailed(f"the model failed: {_reason(error, 300)}") from error

    def _value(self, name: str, array: Array) -> Any:
        """An array as the runtime takes it; raises `InvalidInput` for BYTES that are not UTF-8."""
        datatype = self._inputs.get(name)
        if datatype == "BF16" and array.dtype == ml_dtypes.bfloat16:
            bits = np.ascontiguousarray(array).view(np.uint16)
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, ONNX_BFLOAT16)
        if datatype == "BYTES":
            if (
                array.dtype != object
            ):  # the runtime reads beyond the end of numpy's fixed-size strings
                raise TypeError(
                    f"BYTES come as an array of objects, not of {array.dtype}"
                )
            return _texts(array)
        return array


def open(
    folder: Path, threads: int, device: str = "cpu", precision: str = ""
) -> OnnxSession:
    """Load `model.onnx` of a bundle; raises `BundleCorrupt`, `InvalidInput` for a device or
    precision it lacks.
    """
    choose("onnx", "device", device, ("cpu",))
    choose("onnx", "precision", precision, PRECISIONS[:1])
    return OnnxSession(folder / FILE, threads)


def steps(folder: Path, threads: int, slots: int, precision: str = "") -> Any:
    """Load a model that answers token by token, for up to `slots` texts beside one another.

    Raises `BundleCorrupt`, `InvalidInput` for a precision that it lacks.
    """
    from modelmill.engines._steps import Steps

    if choose("onnx", "precision", precision, PRECISIONS) == INT8:
        folder = folder / INT8
        if not folder.exists():
            raise InvalidInput(
                "the model was made without weights in int8: train it again, or deploy it in fp32"
            )
    return Steps(folder, threads, slots)


def signature(folder: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of a bare `model.onnx`, free axes as -1.

    Raises `InvalidInput` naming what can't be served, or what is wrong with the file.
    """
    try:
        session = _load(folder / FILE, 1, optimise=False)
    except Exception as error:
        raise InvalidInput(f"{FILE} can't be served: {_reason(error)}") from error
    inputs = [_spec("input", one) for one in session.get_inputs()]
    outputs = [_spec("output", one) for one in session.get_outputs()]
    _gives_bf16(session)
    if not inputs:
        raise InvalidInput(f"{FILE} has no inputs: there is nothing to ask it")
    return inputs, outputs


def _load(path: Path, threads: int, optimise: bool = True) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads spin between the operators of a run (sleeping there costs a tenth of the rate), but
    # not between runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _reason(error: Exception, limit: int = 200) -> str:
    """What the runtime says, without its code and our path; the common mistakes in plain words."""
    text = re.sub(
        r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?",
        "",
        str(error),
        flags=re.S,
    )
    if "Protobuf parsing failed" in text or "No graph was found" in text:
        return "it is no ONNX model, or it was cut off"
    if found := re.search(r'External data path does not exist: "(.*?)"', text):
        return f"its external data are missing: {Path(found[1]).name}"
    if found := re.search(
        r"External initializer: (.*?) offset: .* out of bounds", text, re.S
    ):
        return (
            f"its external data are too short: the weight '{found[1]}' is not in them"
        )
    if "escapes model directory" in text or "Absolute path not allowed" in text:
        return "it names external data outside its folder"
    if "doesn't exist" in text:
        return "there is no such file"
    return text[:limit]


def _spec(what: str, one: Any) -> TensorSpec:
    if one.type not in KINDS:
        hint = ""
        if one.type.startswith("seq(map("):
            hint = "; convert a scikit-learn classifier with the option zipmap=False"
        raise InvalidInput(
            f"{what} '{one.name}' is of the type {one.type}, which can't be served: "
            f"tensors of {', '.join(DATATYPES)} can{hint}"
        )
    # the runtime says the same of a scalar and of a tensor whose axes are not declared
    if not one.shape:
        raise InvalidInput(
            f"{what} '{one.name}' has no declared axes; the first has to be the batch"
        )
    shape = [side if isinstance(side, int) else -1 for side in one.shape]
    return TensorSpec(name=one.name, datatype=KINDS[one.type], shape=shape)


def _texts(array: Array) -> Array:
    """BYTES as str: ONNX strings are UTF-8 (onnx.proto, `string_data`), and the runtime takes only
    such.
    """
    texts = np.empty(array.size, object)
    try:
        texts[:] = [str(element, "utf-8") for element in array.flat]
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"an element of BYTES is not valid UTF-8 (byte {error.start}: {error.reason}); "
            "an ONNX model takes texts, not arbitrary bytes"
        ) from error
    except TypeError as error:
        raise InvalidInput("the elements of BYTES have to be bytes") from error
    return texts.reshape(array.shape)


def _bytes(array: Array) -> Array:
    """Texts as BYTES; other arrays as they are."""
    if array.dtype != object:
        return array
    elements = np.empty(array.size, object)
    elements[:] = [text.encode() for text in array.flat]
    return elements.reshape(array.shape)


def _boxed(value: Any) -> Any:
    return (
        ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
        if isinstance(value, np.ndarray)
        else value
    )


def _unboxed(value: Any) -> Array:
    """One of the runtime's values as an array of our own."""
    if value.data_type() != "tensor(bfloat16)":
        return _bytes(value.numpy())
    size = value.tensor_size_in_bytes()
    data = bytearray(ctypes.string_at(value.data_ptr(), size) if size else b"")
    return np.frombuffer(data, ml_dtypes.bfloat16).reshape(value.shape())


def _gives_bf16(session: Any) -> bool:
    """Whether an output is BF16; raises `InvalidInput` when an input is BYTES too: nothing in
    Python runs both.
    """
    gives = any(one.type == "tensor(bfloat16)" for one in session.get_outputs())
    if gives and any(one.type == "tensor(string)" for one in session.get_inputs()):
        raise InvalidInput(
            "a model with BYTES inputs can't have BF16 outputs: give them out as FP32 (a Cast node)"
        )
    return gives


def convert(
    network: Any, inputs: list[TensorSpec], outputs: list[TensorSpec], folder: Path
) -> list[str]:
    """A torch module as `model.onnx`: one file, with a dynamic batch. An ONNX `ModelProto` is
    written as it is.

    Raises `ModelFailed` when the graph does not answer as the network does.
    """
    if hasattr(network, "SerializeToString"):
        (folder / FILE).write_bytes(network.SerializeToString())
        return [FILE]
    import torch

    # The exporter misses torchvision, which nothing here uses, and says so at every export.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(
        logging.ERROR
    )
    # What torch keeps of the first recurrent layer that was exported makes it unroll the next one,
    # at one length.
    for layer in (torch.ops.aten.gru.input, torch.ops.aten.lstm.input):
        getattr(layer, "_dispatch_cache", {}).clear()
    network = network.eval()
    examples = [torch.from_numpy(_zeros(spec, 2)) for spec in inputs]
    program = torch.onnx.export(
        network,
        tuple(examples),
        input_names=[spec.name for spec in inputs],
        output_names=[spec.name for spec in outputs],
        dynamic_shapes=tuple(_free(spec, torch) for spec in inputs),
        opset_version=OPSET,
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    _own_names(program.model, {spec.name for spec in outputs})
    program.save(str(folder / FILE), external_data=False)
    _compare(network, inputs, folder)
    return [FILE]


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
    import torch

    session = OnnxSession(folder / FILE, threads=1)
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        arrays = {spec.name: _random(spec, batch, rng) for spec in inputs}
        with torch.inference_mode():
            answer = network(*[torch.from_numpy(array) for array in arrays.values()])
            wanted = (answer if isinstance(answer, torch.Tensor) else answer[0]).numpy()
        got = next(iter(session.run(arrays).values()))
        if not np.allclose(wanted, got, atol=1e-3):
            worst = float(np.abs(wanted - got).max())
            raise ModelFailed(
                f"the exported model differs from the trained one by {worst:.2g}"
            )


def _zeros(spec: TensorSpec, batch: int) -> Array:
    free = batch * (
        FREE_ALONE if sum(side < 0 for side in spec.shape[1:]) == 1 else FREE
    )
    return np.zeros(
        [batch, *(side if side >= 0 else free for side in spec.shape[1:])],
        NUMPY[spec.datatype],
    )


def _random(spec: TensorSpec, batch: int, rng: np.random.Generator) -> Array:
    zeros = _zeros(spec, batch)
    # Whole numbers are pixels or token ids: 0 and 1 always exist
    top = 255 if spec.datatype == "UINT8" else 2
    if zeros.dtype.kind in "iu":
        return np.asarray(rng.integers(0, top, zeros.shape), zeros.dtype)
    return np.asarray(rng.normal(size=zeros.shape), zeros.dtype)
