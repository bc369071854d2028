"""The contract of an engine: which files of a bundle it reads, and how it runs them.

An engine is a module `engines/<name>.py` with an instance of a subclass of `Engine`, `ENGINE`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from modelmill import plugins
from modelmill.errors import InvalidInput, ModelFailed, NotInstalled
from modelmill.streams import Piece, Text
from modelmill.types import TensorSpec

Arrays = dict[str, np.ndarray[Any, Any]]
Signature = tuple[list[TensorSpec], list[TensorSpec]]
"""Inputs and outputs of a model, the batch axis first."""

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


class Writer(Session, Protocol):
    """A loaded model whose answers grow token by token, many texts beside one another.

    `run` gives the `logits` after each token of `ids`, for evaluation. One thread calls the
    others.
    """

    slots: int
    """Texts that grow beside one another, which may be lowered; further ones wait."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""

    def add(self, text: Text) -> None:
        """Let a text begin as soon as there is room."""

    def cancel(self, names: Set[Any]) -> None:
        """Let go of texts at once."""

    def tick(self) -> Iterator[Piece]:
        """One step: what it adds to each text. A piece whose `ended` is not empty is the last."""


class Sample(NamedTuple):
    """A small model for the contract tests, and rows with what it answers to them."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    given: Arrays
    answered: Arrays


SAMPLE_WEIGHTS = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
"""The w of `small_sample`."""


def sample_rows(datatype: str) -> np.ndarray[Any, Any]:
    """Small values of a data type [2, 3], for `Engine.sample`."""
    if datatype == "BYTES":
        return np.array([[b"a", b"", b"mill"], [b"\0", b"b", b"c"]], object)
    return np.array([[0, 1, 2], [3, 1, 0]]).astype(NUMPY[datatype])


def small_sample(datatype: str) -> Sample:
    """From `x` [-1, 3] to `y`: tanh(x w) in FP32, x itself in other data types."""
    given = sample_rows(datatype)
    answered = np.tanh(given @ SAMPLE_WEIGHTS) if datatype == "FP32" else given
    inputs = [TensorSpec(name="x", datatype=datatype, shape=[-1, 3])]
    outputs = [TensorSpec(name="y", datatype=datatype, shape=[-1, 3])]
    return Sample(inputs, outputs, {"x": given}, {"y": answered})


class Engine(ABC):
    """One runtime."""

    READS: tuple[str, ...]
    """The files of a bundle that it loads, as patterns: it runs the bundles that have all of
    them.
    """
    PRECISIONS: tuple[str, ...] = ("fp32",)
    """The arithmetic it offers for float models; the first is the default."""
    VARIANTS: tuple[str, ...] = ()
    """Further precisions, whose weights lie beside in a folder of that name, with a golden set of
    their own.
    """
    DATATYPES: tuple[str, ...] = DATATYPES
    """Those of `base.DATATYPES` that may go in and come out."""
    RUNS_CODE: bool = False
    """Whether a file may run code while it is loaded: it needs someone who trusts it."""

    @abstractmethod
    def open(
        self,
        folder: Path,
        threads: int,
        device: str = "cpu",
        precision: str = "",
        signature: Signature | None = None,
    ) -> Session:
        """Load the model in a folder. Files that name no inputs and outputs take the names of the
        bundle's `signature`.

        Raises `BundleCorrupt`, `NotInstalled`, or `InvalidInput` for what the engine can't do.
        """

    def writer(
        self, folder: Path, threads: int, slots: int, precision: str = ""
    ) -> Writer:
        """Load a model that answers token by token, for up to `slots` texts at a time.

        Raises as `open` does, and `InvalidInput` where the engine has none.
        """
        raise InvalidInput(
            "the engine has no models that answer token by token"
        )

    def signature(self, folder: Path) -> Signature:
        """Inputs and outputs of a bare model, free axes as -1.

        Raises `InvalidInput` saying what can't be served, or read.
        """
        raise InvalidInput(
            f"{' and '.join(self.READS)} without a manifest can't be served: import a bundle"
        )

    @abstractmethod
    def sample(self, folder: Path, datatype: str) -> Sample:
        """Write a small model whose first input has a data type; raises `InvalidInput` for one that
        is not in DATATYPES.
        """

    def writes(self) -> bool:
        """Whether it has models that answer token by token."""
        return type(self).writer is not Engine.writer

    def reads(self, folder: Path) -> bool:
        """Whether a folder has all the files that it loads."""
        return all(any(folder.glob(pattern)) for pattern in self.READS)

    def place_of(self, folder: Path, precision: str) -> Path:
        """Where the weights of a precision lie; raises `InvalidInput` for a variant that the bundle
        lacks.
        """
        if precision not in self.VARIANTS:
            return folder
        if not (folder / precision).is_dir():
            raise InvalidInput(
                f"the model was made without weights in {precision}: deploy it in "
                f"{self.PRECISIONS[0]}, or train it again where its recipe makes them"
            )
        return folder / precision


def engine_named(name: str) -> Engine:
    """The engine; raises `NotFound` naming those that exist, `InvalidInput` for a plugin that is
    none.
    """
    engine = getattr(plugins.load("engines", name), "ENGINE", None)
    if not isinstance(engine, Engine):
        raise InvalidInput(
            f"the plugin '{name}' is not an engine: its module needs ENGINE, an instance of a "
            "subclass of modelmill.engines.base.Engine"
        )
    return engine


def engine_for(name: str, folder: Path, *, writes: bool = False) -> Engine:
    """The engine of that name, if it runs the model in a folder, which answers token by token if it
    `writes`.

    Raises `InvalidInput` naming the engines that do.
    """
    engine = engine_named(name)
    if writes and not engine.writes():
        raise InvalidInput(
            "a model that answers token by token runs on the engine "
            f"{_names(Engine.writes)}, not on {name}"
        )
    if not engine.reads(folder):
        raise _unread(name, engine, folder)
    return engine


def _unread(name: str, engine: Engine, folder: Path) -> InvalidInput:
    """The error for an engine that lacks a file."""
    able = _names(lambda one: one.reads(folder))
    return InvalidInput(
        f"the engine '{name}' reads {' and '.join(engine.READS)}, which the model does not "
        f"have; it runs on: {able or 'none that is installed'}"
    )


def _names(able: Callable[[Engine], bool]) -> str:
    """The installed engines that are able to do something."""
    found = []
    for name in plugins.names("engines"):
        try:
            if able(engine_named(name)):
                found.append(name)
        except NotInstalled:
            continue
    return ", ".join(found)


def choose(engine: str, what: str, value: str, offered: Sequence[str]) -> str:
    """The value, or the first that is offered when it is empty; raises `InvalidInput` naming
    those.
    """
    if value and value not in offered:
        raise InvalidInput(
            f"the engine '{engine}' has no {what} '{value}'; it has: {', '.join(offered)}"
        )
    return value or offered[0]


def choose_on_cpu(
    engine: str, device: str, precision: str, offered: Sequence[str]
) -> str:
    """The precision in which an engine for the processor alone runs; raises `InvalidInput` for
    another device, or a precision that is not `offered`.
    """
    choose(engine, "device", device, ("cpu",))
    return choose(engine, "precision", precision, offered)


def check_inputs(
    wanted: Mapping[str, TensorSpec], arrays: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Raises `ModelFailed` for other inputs, data types or shapes than those that are `wanted`."""
    if arrays.keys() != wanted.keys():
        raise ModelFailed(
            f"the model failed: it takes the inputs {', '.join(wanted)}; given: "
            f"{', '.join(arrays)[:200]}"
        )
    for name, spec in wanted.items():
        _check_input(name, spec, arrays[name])


def _check_input(
    name: str, spec: TensorSpec, array: np.ndarray[Any, Any]
) -> None:
    if array.dtype != np.dtype(NUMPY[spec.datatype]):
        raise ModelFailed(
            f"the model failed: input '{name}' wants {spec.datatype}, given: {array.dtype}"
        )
    if not _fits_shape(array.shape, spec.shape):
        raise ModelFailed(
            f"the model failed: input '{name}' wants {spec.shape}, given: "
            f"{list(array.shape)}"
        )


def _fits_shape(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether all axes have the wanted length, where -1 stands for any."""
    return len(shape) == len(wanted) and all(
        side in (-1, length) for side, length in zip(wanted, shape, strict=True)
    )
