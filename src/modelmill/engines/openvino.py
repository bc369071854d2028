"""OpenVINO: the same `model.onnx`, faster on processors that multiply bfloat16 themselves."""

import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelmill.engines.base import (
    Arrays,
    Engine,
    Sample,
    Signature,
    check_inputs,
    choose_on_cpu,
)
from modelmill.engines.onnx_file import FILE, write_sample
from modelmill.engines.signal_stack import kept_signal_stack
from modelmill.errors import BundleCorrupt, InvalidInput, MillError, ModelFailed
from modelmill.types import TensorSpec

# Its converter, which nothing here uses, reports every import of OpenVINO over the network, from a
# forked process and without asking. OpenVINO does without a converter that is not installed.
sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
import openvino.properties as properties  # noqa: E402
from openvino.properties import hint  # noqa: E402

DATATYPES = (
    "BOOL",
    "UINT8",
    "UINT16",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
)
"""Its processor plugin computes FP64 as FP32 and all whole numbers as INT32, so larger types are
not offered.

INT64 is, because the ids of tokens have that type; numbers beyond 32 bits are refused.
"""

KINDS = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
}
HINTS = {"fp32": ov.Type.f32, "bf16": ov.Type.bf16}

CACHED_KERNELS = 512
"""A kernel is compiled for each operation and shape, and kept: a quarter of a MiB each, 5000 by
default.
"""

Array = np.ndarray[Any, Any]


class OpenvinoSession:
    """One compiled graph in one stream: all its threads work on the same batch."""

    def __init__(self, path: Path, threads: int, precision: str) -> None:
        compiled = _compiled(path, threads, precision)
        self._inputs = {
            port.node.friendly_name: _input(port) for port in compiled.inputs
        }
        self._int64 = [
            name
            for name, spec in self._inputs.items()
            if spec.datatype == "INT64"
        ]
        self._outputs = [_output(port) for port in compiled.outputs]
        self._request = compiled.create_infer_request()
        self._running = threading.Lock()

    def run(self, arrays: Mapping[str, Array]) -> Arrays:
        """All outputs of one batch; raises `ModelFailed`, or `InvalidInput` for INT64 beyond 32
        bits.
        """
        # OpenVINO itself takes a missing input from the run before, casts other types and allows
        # other shapes.
        check_inputs(self._inputs, arrays)
        for name in self._int64:
            _check_range(name, arrays[name])
        with self._running:  # a request holds the tensors of one run
            try:
                results = self._request.infer(dict(arrays))
            except Exception as error:
                raise ModelFailed(
                    f"the model failed: {_reason(error)}"
                ) from error
        return {name: results[i] for i, name in enumerate(self._outputs)}


class OpenvinoEngine(Engine):
    """Runs `model.onnx` on the processor, and refuses data types that it can't compute exactly."""

    READS = (FILE,)
    PRECISIONS = ("fp32", "bf16")
    DATATYPES = DATATYPES

    def open(
        self,
        folder: Path,
        threads: int,
        device: str = "cpu",
        precision: str = "",
        signature: Signature | None = None,
    ) -> OpenvinoSession:
        """Load `model.onnx` of a bundle.

        Raises `BundleCorrupt`; `InvalidInput` for a device or precision that it, or the processor,
        lacks, and for a signature with data types that it can't compute exactly.
        """
        chosen = choose_on_cpu("openvino", device, precision, self.PRECISIONS)
        return OpenvinoSession(folder / FILE, threads, chosen)

    def signature(self, folder: Path) -> Signature:
        """Inputs and outputs of a bare `model.onnx`; raises `InvalidInput` naming what can't be
        served.
        """
        # It reads more types, and says better what is wrong with a file.
        from modelmill.engines import onnx

        inputs, outputs = onnx.ENGINE.signature(folder)
        for what, specs in (("input", inputs), ("output", outputs)):
            for spec in specs:
                if spec.datatype not in DATATYPES:
                    raise _unfit(what, spec.name, spec.datatype)
        return inputs, outputs

    def sample(self, folder: Path, datatype: str) -> Sample:
        """A graph of one operator."""
        return write_sample(folder, datatype)


ENGINE = OpenvinoEngine()


def _compiled(path: Path, threads: int, precision: str) -> ov.CompiledModel:
    """Raises `BundleCorrupt`, and `InvalidInput` for what the processor or OpenVINO lacks."""
    if not path.is_file():
        raise BundleCorrupt(
            f"{path.name} can't be loaded: there is no such file"
        )
    core = ov.Core()
    _check_precision(core, precision)
    try:
        with kept_signal_stack():
            return core.compile_model(
                core.read_model(path), "CPU", _options(threads, precision)
            )
    except RuntimeError as error:
        raise _not_compiled(path, error) from error


def _check_precision(core: ov.Core, precision: str) -> None:
    """Raises `InvalidInput`: OpenVINO would compute in fp32 without a word, or emulate bf16 slower
    than fp32.
    """
    if precision != "bf16":
        return
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InvalidInput(
            "this processor has no bf16 arithmetic (such as avx512_bf16); use the precision "
            "fp32"
        )


def _not_compiled(path: Path, error: RuntimeError) -> MillError:
    """The error of a graph that OpenVINO refuses."""
    found = re.search(
        r"No conversion rule found for operations: (.*)", str(error)
    )
    if found is None:
        return BundleCorrupt(f"{path.name} can't be loaded: {_reason(error)}")
    return InvalidInput(
        f"the engine 'openvino' lacks operations of this model ({found[1][:100]}); "
        "use the engine 'onnx'"
    )


def _options(threads: int, precision: str) -> dict[str, Any]:
    """Exactly so many threads, on any core that the process may use."""
    return {
        properties.inference_num_threads: threads,
        properties.num_streams: 1,
        hint.enable_cpu_pinning: False,
        hint.enable_hyper_threading: True,
        hint.inference_precision: HINTS[precision],
        "CPU_RUNTIME_CACHE_CAPACITY": str(CACHED_KERNELS),
    }


def _input(port: Any) -> TensorSpec:
    """Type and shape of an input, free axes as -1."""
    datatype = _datatype("input", port)
    axes = port.get_partial_shape()
    if axes.rank.is_dynamic:
        raise InvalidInput(
            f"input '{port.any_name}' has no declared axes; the first has to be the batch"
        )
    shape = [-1 if axis.is_dynamic else axis.get_length() for axis in axes]
    return TensorSpec(
        name=port.node.friendly_name, datatype=datatype, shape=shape
    )


def _datatype(what: str, port: Any) -> str:
    kind = port.element_type.get_type_name()
    if kind not in KINDS:
        raise _unfit(what, port.any_name, kind)
    return KINDS[kind]


def _unfit(what: str, name: str, kind: str) -> InvalidInput:
    return InvalidInput(
        f"{what} '{name}' is of the type {kind}, which the engine 'openvino' can't compute "
        "exactly; "
        f"it has: {', '.join(DATATYPES)}. Use the engine 'onnx'"
    )


def _output(port: Any) -> str:
    """The name in the ONNX file: a tensor that passes through several nodes has several."""
    _datatype("output", port)
    name = str(port.node.friendly_name).removesuffix("/sink_port_0")
    return name if name in port.names else str(port.any_name)


def _check_range(name: str, array: Array) -> None:
    """Raises `InvalidInput` for INT64 beyond 32 bits."""
    if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
        raise InvalidInput(
            f"input '{name}': the engine 'openvino' takes INT64 from {-(2**31)} to "
            f"{2**31 - 1}; the engine 'onnx' takes all"
        )


def _reason(error: Exception) -> str:
    """The last line that says something: before it come places in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
