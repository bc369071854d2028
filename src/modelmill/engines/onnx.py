"""ONNX Runtime: the default engine, on every processor."""

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort

from modelmill.engines.base import (
    DATATYPES,
    Arrays,
    Engine,
    Sample,
    Signature,
    Writer,
    choose,
    choose_on_cpu,
)
from modelmill.engines.onnx_file import FILE, write_sample
from modelmill.engines.onnx_runtime import load, open_graph, reason
from modelmill.errors import InvalidInput, ModelFailed
from modelmill.types import TensorSpec

INT8 = "int8"
"""The variant of models that answer token by token: weights in 8 bits."""
ONNX_BFLOAT16 = (
    16  # TensorProto.DataType; the package onnx is not needed to serve
)

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


class OnnxSession:
    """One loaded graph with a fixed number of threads.

    The runtime's memory arena stays on: it holds what the largest batch needed and does not grow
    with the variety of batch sizes, while without it glibc keeps several times as much.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._session = open_graph(path, threads)
        self._inputs = {
            one.name: KINDS.get(one.type, "")
            for one in self._session.get_inputs()
        }
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._plain = {"BF16", "BYTES"}.isdisjoint(self._inputs.values())
        self._bf16_out = _gives_bf16(self._session)

    def run(self, arrays: Mapping[str, Array]) -> Arrays:
        """All outputs of one batch; raises `ModelFailed`, or `InvalidInput` for BYTES that are not
        UTF-8.
        """
        try:
            results = self._results(arrays)
            return dict(zip(self._outputs, results, strict=True))
        except InvalidInput:
            raise
        except Exception as error:
            raise ModelFailed(
                f"the model failed: {reason(error, 300)}"
            ) from error

    def _results(self, arrays: Mapping[str, Array]) -> Iterator[Array]:
        """The outputs, in order."""
        feed = (
            dict(arrays)
            if self._plain
            else {name: self._value(name, one) for name, one in arrays.items()}
        )
        if not self._bf16_out:
            return map(_bytes, self._session.run(self._outputs, feed))
        # numpy has no such type, so the runtime gives it only as a value of its own
        boxed = {name: _boxed(one) for name, one in feed.items()}
        return map(
            _unboxed, self._session.run_with_ort_values(self._outputs, boxed)
        )

    def _value(self, name: str, array: Array) -> Any:
        """An array as the runtime takes it; raises `InvalidInput` for BYTES that are not UTF-8."""
        datatype = self._inputs.get(name)
        if datatype == "BF16" and array.dtype == ml_dtypes.bfloat16:
            bits = np.ascontiguousarray(array).view(np.uint16)
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
                bits, ONNX_BFLOAT16
            )
        return _texts(array) if datatype == "BYTES" else array


class OnnxEngine(Engine):
    """Runs `model.onnx` on the processor."""

    READS = (FILE,)
    VARIANTS = (INT8,)

    def open(
        self,
        folder: Path,
        threads: int,
        device: str = "cpu",
        precision: str = "",
        signature: Signature | None = None,
    ) -> OnnxSession:
        """Load `model.onnx`; raises `BundleCorrupt`, `InvalidInput` for a device or precision it
        lacks.
        """
        choose_on_cpu("onnx", device, precision, self.PRECISIONS)
        return OnnxSession(folder / FILE, threads)

    def writer(
        self, folder: Path, threads: int, slots: int, precision: str = ""
    ) -> Writer:
        """Load a graph that keeps keys and values between its steps (`engines/onnx_steps.py`)."""
        from modelmill.engines.onnx_steps import Steps, StepWriter

        choose("onnx", "precision", precision, self.PRECISIONS)
        return StepWriter(Steps(folder, threads, slots))

    def signature(self, folder: Path) -> Signature:
        """Inputs and outputs of a bare `model.onnx`, free axes as -1.

        Raises `InvalidInput` naming what can't be served, or what is wrong with the file.
        """
        try:
            session = load(folder / FILE, 1, optimise=False)
        except Exception as error:
            raise InvalidInput(
                f"{FILE} can't be served: {reason(error)}"
            ) from error
        return _signature(session)

    def sample(self, folder: Path, datatype: str) -> Sample:
        """A graph of one operator."""
        return write_sample(folder, datatype)


ENGINE = OnnxEngine()


def _signature(session: Any) -> Signature:
    inputs = [_spec("input", one) for one in session.get_inputs()]
    outputs = [_spec("output", one) for one in session.get_outputs()]
    _gives_bf16(session)
    if not inputs:
        raise InvalidInput(f"{FILE} has no inputs: there is nothing to ask it")
    return inputs, outputs


def _spec(what: str, one: Any) -> TensorSpec:
    if one.type not in KINDS:
        raise _unfit(what, one)
    # the runtime says the same of a scalar and of a tensor whose axes are not declared
    if not one.shape:
        raise InvalidInput(
            f"{what} '{one.name}' has no declared axes; the first has to be the batch"
        )
    shape = [side if isinstance(side, int) else -1 for side in one.shape]
    return TensorSpec(name=one.name, datatype=KINDS[one.type], shape=shape)


def _unfit(what: str, one: Any) -> InvalidInput:
    hint = ""
    if one.type.startswith("seq(map("):
        hint = (
            "; convert a scikit-learn classifier with the option zipmap=False"
        )
    return InvalidInput(
        f"{what} '{one.name}' is of the type {one.type}, which can't be served: "
        f"tensors of {', '.join(DATATYPES)} can{hint}"
    )


def _texts(array: Array) -> Array:
    """BYTES as str: ONNX strings are UTF-8 (onnx.proto, `string_data`), and the runtime takes only
    such.
    """
    # the runtime reads beyond the end of numpy's fixed-size strings
    if array.dtype != object:
        raise TypeError(
            f"BYTES come as an array of objects, not of {array.dtype}"
        )
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
    if gives and any(
        one.type == "tensor(string)" for one in session.get_inputs()
    ):
        raise InvalidInput(
            "a model with BYTES inputs can't have BF16 outputs: give them out as FP32 (a Cast node)"
        )
    return gives
