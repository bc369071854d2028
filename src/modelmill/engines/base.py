"""The contract of an engine: open a bundle, run named arrays, convert a trained network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from modelmill import plugins
from modelmill.types import TensorSpec

Arrays = dict[str, np.ndarray[Any, Any]]

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
    "FP32": np.float32,
    "FP64": np.float64,
}
"""Open Inference Protocol data types as numpy types (those of a fixed size)."""


class Session(Protocol):
    """A loaded model."""

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """Named arrays in and out, the batch axis first; raises `ModelFailed`."""


class Engine(Protocol):
    """One runtime."""

    def open(self, folder: Path, threads: int, device: str = "cpu") -> Session:
        """Load the model of a bundle; raises `BundleCorrupt`."""

    def signature(self, folder: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Inputs and outputs of a bare model file; raises `InvalidInput` for one that can't be served."""

    def convert(self, network: Any, inputs: list[TensorSpec], outputs: list[TensorSpec], folder: Path) -> list[str]:
        """Write a trained network in the engine's form into a bundle's draft; returns the files' names."""


def engine_named(name: str) -> Engine:
    """The engine; raises `NotFound` naming those that exist."""
    return cast(Engine, plugins.load("engines", name))
