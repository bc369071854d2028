"""PyTorch: programs of `torch.export` (`model.pt2`), run by torch itself.

Loading such a file may run code that is in it: `torch.export.load` reads pickled constants and
evaluates expressions, and torch has no safe way to do it. So a bundle of this engine is opened only
if whoever brought it vouched for it.
"""

import threading
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ml_dtypes
import numpy as np

from modelmill import plugins
from modelmill.engines.base import (
    SAMPLE_WEIGHTS,
    Arrays,
    Engine,
    Sample,
    Signature,
    check_inputs,
    choose_on_cpu,
    small_sample,
)
from modelmill.errors import BundleCorrupt, InvalidInput, ModelFailed
from modelmill.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.nn import Module

FILE = "model.pt2"
KINDS = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
"""Torch's names of data types as those of the Open Inference Protocol."""

Array = np.ndarray[Any, Any]


def torch_of() -> Any:
    """The package; raises `NotInstalled`."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise plugins.missing("torch", error) from error
    return torch


class TorchSession:
    """One exported program; its runs take turns, each on all of the threads."""

    def __init__(
        self, path: Path, threads: int, signature: Signature | None = None
    ) -> None:
        self._torch = torch_of()
        self._threads = threads
        program = loaded(path)
        try:
            own_inputs, own_outputs = signature_of(program)
        except InvalidInput as error:
            raise BundleCorrupt(error.message) from error
        inputs, outputs = signature or ([], [])
        self._inputs = dict(
            zip(_names("inputs", own_inputs, inputs), own_inputs, strict=True)
        )
        self._outputs = _names("outputs", own_outputs, outputs)
        self._module = program.module()
        self._keywords = _keywords(program)
        self._running = threading.Lock()
        self._warm_up(program, path)

    def run(self, arrays: Mapping[str, Array]) -> Arrays:
        """All outputs of one batch; raises `ModelFailed`."""
        given = self._in_order(arrays)
        rows = len(given[0])
        if not rows:  # programs are exported for one row and more
            given = [np.zeros((1, *one.shape[1:]), one.dtype) for one in given]
        found = self._answers(given)
        return {
            name: _own(array, given)[: rows if not rows else None]
            for name, array in zip(self._outputs, found, strict=True)
        }

    def _in_order(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The arrays in the program's order, checked: its own errors speak of guards and
        symbols.
        """
        check_inputs(self._inputs, arrays)
        given = [arrays[name] for name in self._inputs]
        if len({len(array) for array in given}) > 1:
            raise ModelFailed(
                "the model failed: its inputs have other numbers of rows"
            )
        return given

    def _answers(self, given: Sequence[Array]) -> list[Array]:
        with self._running:
            try:
                answer = self._call(
                    [_tensor(self._torch, one) for one in given]
                )
                return [_array(self._torch, one) for one in answer]
            except Exception as error:
                raise ModelFailed(
                    f"the model failed: {_reason(error)}"
                ) from error

    def _call(self, tensors: "Sequence[Tensor]") -> "Sequence[Tensor]":
        torch = self._torch
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        first = len(tensors) - len(self._keywords)
        keywords = dict(zip(self._keywords, tensors[first:], strict=True))
        with torch.inference_mode():
            answer = self._module(*tensors[:first], **keywords)
        return cast("Sequence[Tensor]", torch.utils._pytree.tree_leaves(answer))

    def _warm_up(self, program: "ExportedProgram", path: Path) -> None:
        """The first run allocates and chooses kernels: it is not a caller's."""
        if program.example_inputs is None:
            return
        tensors = self._torch.utils._pytree.tree_leaves(program.example_inputs)
        try:
            self._call(tensors)
        except Exception as error:
            raise BundleCorrupt(
                f"{path.name} can't be run: {_reason(error)}"
            ) from error


class TorchEngine(Engine):
    """Runs `model.pt2` on the processor."""

    READS = (FILE,)
    DATATYPES = tuple(KINDS.values())
    RUNS_CODE = True

    def open(
        self,
        folder: Path,
        threads: int,
        device: str = "cpu",
        precision: str = "",
        signature: Signature | None = None,
    ) -> TorchSession:
        """Load `model.pt2`, which has to be trusted; its inputs and outputs get the names of the
        `signature`, in order.

        Raises `BundleCorrupt`, `NotInstalled`, and `InvalidInput` for a device or precision it
        lacks.
        """
        choose_on_cpu("torch", device, precision, self.PRECISIONS)
        return TorchSession(folder / FILE, threads, signature)

    def signature(self, folder: Path) -> Signature:
        """Inputs and outputs of a trusted `model.pt2`, free axes as -1: named as the arguments of
        `forward`, and as the keys of what it returns.
        """
        try:
            return signature_of(loaded(folder / FILE))
        except BundleCorrupt as error:
            raise InvalidInput(error.message) from error

    def sample(self, folder: Path, datatype: str) -> Sample:
        """tanh(x w) in FP32, a copy of x in other data types."""
        torch = torch_of()
        sample = small_sample(datatype)
        program = torch.export.export(
            _sample_network(datatype),
            (_tensor(torch, sample.given["x"]),),
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
        )
        torch.export.save(program, folder / FILE)
        return sample


ENGINE = TorchEngine()


def _sample_network(datatype: str) -> "Module":
    """The network of `small_sample`."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.Buffer(
                torch.from_numpy(SAMPLE_WEIGHTS.copy())
            )

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            if datatype == "FP32":
                return {"y": torch.tanh(x @ self.weights)}
            return {"y": x.clone()}

    return Net()


def loaded(path: Path) -> "ExportedProgram":
    """The program in a file that is trusted; raises `BundleCorrupt`, `NotInstalled`."""
    torch = torch_of()
    if not path.is_file():
        raise _not_loaded(path, "there is no such file")
    if not zipfile.is_zipfile(path):
        raise _not_loaded(
            path, "it is no program of torch.export, or it was cut off"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own insides
            return cast("ExportedProgram", torch.export.load(path))
    except Exception as error:  # torch raises whatever comes
        why = f"{_reason(error)}; it has to be a program of torch.export.save"
        raise _not_loaded(path, why) from error


def _not_loaded(path: Path, why: str) -> BundleCorrupt:
    return BundleCorrupt(f"{path.name} can't be loaded: {why}")


def signature_of(program: "ExportedProgram") -> Signature:
    """Inputs and outputs, free axes as -1; raises `InvalidInput` for what are no tensors by
    name.
    """
    _check_arguments(program)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return _inputs_of(program, values), _outputs_of(program, values)


def _inputs_of(
    program: "ExportedProgram", values: Mapping[str, Any]
) -> list[TensorSpec]:
    inputs = [
        _spec("input", name, values[name])
        for name in program.graph_signature.user_inputs
        if isinstance(name, str)
    ]
    if len(inputs) != program.call_spec.in_spec.num_leaves or not inputs:
        raise InvalidInput(
            f"{FILE} takes other things than tensors, or nothing"
        )
    return inputs


def _outputs_of(
    program: "ExportedProgram", values: Mapping[str, Any]
) -> list[TensorSpec]:
    answers = program.graph_signature.user_outputs
    return [
        _spec(
            "output", name, values[answer] if isinstance(answer, str) else None
        )
        for name, answer in zip(_output_names(program), answers, strict=True)
    ]


def _check_arguments(program: "ExportedProgram") -> None:
    positional, keywords = program.call_spec.in_spec.children()
    if any(
        not one.is_leaf()
        for one in (*positional.children(), *keywords.children())
    ):
        raise InvalidInput(
            f"{FILE} takes lists or dictionaries: export a module whose arguments are tensors"
        )


def _output_names(program: "ExportedProgram") -> list[str]:
    """The keys of a dictionary; others are numbered."""
    spec = program.call_spec.out_spec
    if spec.type is dict and all(one.is_leaf() for one in spec.children()):
        return [str(key) for key in spec.context]
    if spec.num_leaves == 1:
        return ["output"]
    return [f"output_{at}" for at in range(spec.num_leaves)]


def _keywords(program: "ExportedProgram") -> list[str]:
    """The inputs that are given by name: the last ones."""
    _, keywords = program.call_spec.in_spec.children()
    return [str(key) for key in keywords.context or ()]


def _spec(what: str, name: str, value: Any) -> TensorSpec:
    kind = str(getattr(value, "dtype", type(value).__name__)).removeprefix(
        "torch."
    )
    if kind not in KINDS:
        raise _unfit(what, name, kind)
    if not value.ndim:
        raise InvalidInput(
            f"{what} '{name}' of {FILE} has no axes; the first has to be the batch"
        )
    shape = [side if isinstance(side, int) else -1 for side in value.shape]
    return TensorSpec(name=name, datatype=KINDS[kind], shape=shape)


def _unfit(what: str, name: str, kind: str) -> InvalidInput:
    return InvalidInput(
        f"{what} '{name}' of {FILE} is of the type {kind}, which can't be served: tensors of "
        f"{', '.join(KINDS.values())} can"
    )


def _names(
    what: str, own: Sequence[TensorSpec], wanted: Sequence[TensorSpec]
) -> list[str]:
    """The bundle's names in the order of the program's: its own, or others in their places."""
    names = [spec.name for spec in own]
    others = [spec.name for spec in wanted]
    if not others or set(others) == set(names):
        return names
    if len(others) != len(names):
        raise BundleCorrupt(
            f"{FILE} has the {what} {', '.join(names)}, the manifest {', '.join(others)}"
        )
    return others


def _tensor(torch: Any, array: Array) -> "Tensor":
    """An array as a tensor; shared where it can be written, which torch insists on."""
    own = np.require(array, requirements=["C", "W"])
    if own.dtype == ml_dtypes.bfloat16:
        return cast(
            "Tensor", torch.from_numpy(own.view(np.int16)).view(torch.bfloat16)
        )
    return cast("Tensor", torch.from_numpy(own))


def _array(torch: Any, tensor: "Tensor") -> Array:
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy()).view(
            ml_dtypes.bfloat16
        )
    return np.asarray(tensor.numpy())


def _own(array: Array, given: Sequence[Array]) -> Array:
    """An answer that no later input can change: a program may give back what it was given."""
    return (
        array.copy()
        if any(np.may_share_memory(array, one) for one in given)
        else array
    )


def _reason(error: Exception) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
