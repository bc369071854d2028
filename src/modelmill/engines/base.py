"""The contract of an engine: open a bundle, run named arrays, convert a trained network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import ml_dtypes
import numpy as np

from modelmill import plugins
from modelmill.errors import InvalidInput
from modelmill.types import TensorSpec

Arrays = dict[str, np.ndarray[Any, Any]]

FILE = "model.onnx"
"""The model in a bundle: every engine here runs the same file."""

NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP32": np.float32,
    "FP64": np.float64,
}
"""Open Inference Protocol data types as numpy types (those of a fixed size)."""

DATATYPES = (*NUMPY, "BYTES")
"""All data types of the Open Inference Protocol; BYTES are arrays of objects, whose elements are
`bytes`.
"""


class Session(Protocol):
    """A loaded model."""

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """Named arrays in and out, the batch axis first; any thread may call it.

        Raises `ModelFailed`, or `InvalidInput` for a value that the engine can't hold.
        """


class Engine(Protocol):
    """One runtime."""

    PRECISIONS: tuple[str, ...]
    """The arithmetic it offers for float models; the first is the default."""
    DATATYPES: tuple[str, ...]
    """Those of `base.DATATYPES` that may go in and come out."""

    def open(
        self, folder: Path, threads: int, device: str = "cpu", precision: str = ""
    ) -> Session:
        """Load the model of a bundle; raises `BundleCorrupt`, or `InvalidInput` for what the engine
        can't do.
        """

    def signature(self, folder: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Inputs and outputs of a bare model; raises `InvalidInput` saying what can't be served, or
        read.
        """

    def convert(
        self,
        network: Any,
        inputs: list[TensorSpec],
        outputs: list[TensorSpec],
        folder: Path,
    ) -> list[str]:
        """Write a trained network in the engine's form into a bundle's draft; returns the files'
        names.
        """


def engine_named(name: str) -> Engine:
    """The engine; raises `NotFound` naming those that exist."""
    return cast(Engine, plugins.load("engines", name))


def choose(engine: str, what: str, value: str, offered: Sequence[str]) -> str:
    """The value, or the first that is offered when it is empty; raises `InvalidInput` naming
    those.
    """
    if value and value not in offered:
        raise InvalidInput(
            f"the engine '{engine}' has no {what} '{value}'; it has: {', '.join(offered)}"
        )
    return value or offered[0]
