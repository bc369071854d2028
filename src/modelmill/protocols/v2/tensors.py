"""What the Open Inference Protocol v2 is on every wire: tensors against a signature, outputs,
classification.

HTTP and gRPC read their bytes into `RawInput` and `RequestedOutput`, and write the `Tensor`s of
`chosen_outputs` into theirs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from modelmill.errors import InvalidInput, ModelFailed
from modelmill.protocols.base import is_number
from modelmill.protocols.v2.values import SIZES, check_bytes, classification
from modelmill.serve.wire import ANSWER, Answer, Tensor
from modelmill.tasks.kinds import TENSOR
from modelmill.types import ServedVersion, TensorSpec

MAX_ELEMENTS = 1 << 28
MAX_RANK = 16
CLASSIFIED = 1 << 14
"""Bytes of an answer from which on its classes are named outside the event loop."""
NAME_LENGTH = 128

RESERVED = frozenset(
    {
        "binary_data_output",
        "content_type",
        "headers",
        "priority",
        "timeout",
        "version",
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "triton_enable_empty_final_response",
    }
)
"""Parameters of a request that are the protocol's, not the task's."""
RESERVED_ONLY = RESERVED - {"priority", "timeout", "version"}
"""Those that only the wire needs."""


class RawInput(NamedTuple):
    """A tensor of a request, unchecked."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes


class MemoryRange(NamedTuple):
    """A stretch of a registered shared-memory region, in bytes."""

    region: str
    byte_size: int
    offset: int = 0


class RequestedOutput(NamedTuple):
    """An output in a request: raw or not, as so many classes (0: as it is), and the shared memory
    to leave it in.
    """

    name: str
    binary: bool = False
    classes: int = 0
    memory: MemoryRange | None = None


class Options(NamedTuple):
    """The request's parameters that have a meaning here; `timeout` in seconds, `task` holds the
    rest.
    """

    priority: int = 0
    timeout: float | None = None
    version: str | None = None
    task: Mapping[str, Any] = {}


NO_OPTIONS = Options()


class Input:
    """One input of a signature; `row` is the bytes of one row, 0 when its size is not fixed."""

    __slots__ = ("datatype", "name", "rank", "row", "shape", "size", "tail")

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self.datatype = spec.datatype
        self.shape = spec.shape
        self.rank = len(spec.shape)
        self.size = SIZES.get(spec.datatype, 0)
        self.tail = spec.shape[1:]
        fixed = bool(spec.shape) and spec.shape[0] == -1 and -1 not in self.tail
        self.row = self.size * math.prod(self.tail) if fixed else 0


class Signature:
    """What the requests to a version are checked against, made once."""

    def __init__(self, version: ServedVersion) -> None:
        self.version = version
        self.inputs = {spec.name: Input(spec) for spec in version.inputs}
        self.sole = (
            next(iter(self.inputs.values())) if len(self.inputs) == 1 else None
        )
        self.outputs = tuple(spec.name for spec in version.outputs)
        self.names = frozenset(self.outputs)
        self.datatypes = frozenset(spec.datatype for spec in version.inputs)
        self.numberless = _numberless(version.outputs)
        self.head = _answer_head(version)
        self.plans: dict[bytes, Any] = {}  # what heads of requests mean
        is_task = version.task and version.kind != TENSOR
        self.task_input = version.kind if is_task else ""
        raw = _raw_names(version, self.inputs) if self.task_input else []
        self.raw = frozenset(raw)


def _raw_names(
    version: ServedVersion, inputs: Mapping[str, Input]
) -> list[str]:
    """The inputs that are raw task input when they come as BYTES: those that the model itself does
    not take as such.
    """
    return [
        name
        for name in (version.kind, *version.also)
        if name not in inputs or inputs[name].datatype != "BYTES"
    ]


def _numberless(outputs: Sequence[TensorSpec]) -> frozenset[str]:
    """The outputs that JSON has no form for."""
    return frozenset(
        spec.name for spec in outputs if spec.datatype in ("FP16", "BF16")
    )


def _answer_head(version: ServedVersion) -> bytes:
    """How every answer in JSON begins."""
    named = msgspec.json.encode(
        {
            "model_name": version.deployment,
            "model_version": str(version.version),
        }
    )
    return named[:-1]


_signatures: dict[int, Signature] = {}
_REMEMBERED = 512


def signature(version: ServedVersion) -> Signature:
    """The signature of a version in the gateway's snapshot."""
    # The entry holds the version, so that no other gets its id
    known = _signatures.get(id(version))
    if known is None:
        if len(_signatures) >= _REMEMBERED:
            _signatures.clear()  # most are of earlier snapshots
        known = _signatures[id(version)] = Signature(version)
    return known


def is_task_level(version: ServedVersion, inputs: Sequence[RawInput]) -> bool:
    """Whether a request brings the task's raw input (an encoded picture, a text) and not the
    model's tensors.
    """
    return (
        len(inputs) == 1
        and inputs[0].datatype == "BYTES"
        and inputs[0].name in signature(version).raw
    )


def checked_inputs(
    version: ServedVersion, inputs: Sequence[RawInput]
) -> list[Tensor]:
    """Every input of the model, checked: names, datatypes, shapes, and that shape and data agree.

    A task-level BYTES input comes out with the shape [n]. Raises `InvalidInput` saying what would
    be right.
    """
    own = signature(version)
    if len(inputs) == 1:
        tensor = inputs[0]
        if (
            (sole := own.sole) is not None
            and tensor.name == sole.name
            and tensor.datatype == sole.datatype
        ):
            return [_fitting(tensor, sole)]
        if tensor.datatype == "BYTES" and tensor.name in own.raw:
            return [_raw_inputs(tensor)]
    return _checked_together(inputs, own)


def _checked_together(
    inputs: Sequence[RawInput], own: Signature
) -> list[Tensor]:
    """Several inputs, which have to be of one batch."""
    _check_names(inputs, own)
    checked = [_fitting(tensor, own.inputs[tensor.name]) for tensor in inputs]
    batches = {tensor.shape[0] for tensor in checked if tensor.shape}
    if len(batches) > 1:
        raise InvalidInput(
            f"the inputs disagree on the batch size: {sorted(batches)}"
        )
    return checked


def _check_names(inputs: Sequence[RawInput], own: Signature) -> None:
    names = [tensor.name for tensor in inputs]
    if len(names) == len(own.inputs) and own.inputs.keys() == set(names):
        return
    task = (
        f", or '{own.task_input}' of the datatype BYTES alone"
        if own.task_input
        else ""
    )
    wanted = ", ".join(own.inputs) or "none"
    raise InvalidInput(
        f"the model takes the inputs {wanted}{task}; given: {', '.join(names)[:200] or 'none'}"
    )


def _fitting(tensor: RawInput, spec: Input) -> Tensor:
    """The tensor of one input; raises `InvalidInput`."""
    shape, row = tensor.shape, spec.row
    if (
        row
        and tensor.datatype == spec.datatype
        and shape
        and shape[1:] == spec.tail
        and shape[0] * row == len(tensor.data)
    ):
        return Tensor(tensor.name, tensor.datatype, shape, tensor.data)  # type: ignore[arg-type]
    return _counted(tensor, spec)


def _counted(tensor: RawInput, spec: Input) -> Tensor:
    """The tensor of one input whose rows have no fixed size, or that does not fit; raises
    `InvalidInput`.
    """
    shape = list(tensor.shape)
    count = _expected(tensor.name, tensor.datatype, shape, spec)
    if not spec.size:
        check_bytes(tensor.name, tensor.data, count)
    elif len(tensor.data) != count * spec.size:
        raise InvalidInput(
            f"input '{tensor.name}': shape {shape} of {tensor.datatype} is {count * spec.size} "
            f"bytes, given {len(tensor.data)}"
        )
    return Tensor(tensor.name, tensor.datatype, shape, tensor.data)


def expect(
    own: Signature, name: str, datatype: str, shape: Sequence[int]
) -> int:
    """How many values an input of this name, datatype and shape has; raises `InvalidInput` when it
    can't be tensor.
    """
    spec = own.inputs.get(name)
    if spec is not None and (
        spec.datatype == datatype or datatype != "BYTES" or name not in own.raw
    ):
        return _expected(name, datatype, shape, spec)
    if spec is None and name not in own.raw:
        _check_names([RawInput(name, datatype, shape, b"")], own)
    return elements(name, shape)


def _expected(
    name: str, datatype: str, shape: Sequence[int], spec: Input
) -> int:
    if datatype != spec.datatype:
        raise InvalidInput(
            f"input '{name}' wants the datatype {spec.datatype}, given: {datatype[:20]!r}"
        )
    if (
        spec.row
        and shape
        and shape[1:] == spec.tail
        and 0 <= (size := shape[0] * spec.row) <= MAX_ELEMENTS
    ):
        return size // spec.size
    if not _is_shape(shape, spec):
        raise InvalidInput(
            f"input '{name}' wants the shape {spec.shape}, given: {str(shape)[:200]}"
        )
    return elements(name, shape)


def _is_shape(shape: Sequence[int], spec: Input) -> bool:
    return len(shape) == spec.rank and all(
        side == wanted if wanted >= 0 else side >= 0
        for side, wanted in zip(shape, spec.shape, strict=True)
    )


def elements(name: str, shape: Sequence[int]) -> int:
    """How many elements a shape has; raises `InvalidInput` for more than anybody may send."""
    if len(shape) > MAX_RANK or any(side < 0 for side in shape):
        raise InvalidInput(
            f"input '{name}': a shape has at most {MAX_RANK} sides, none below 0, not "
            f"{shape!s:.200}"
        )
    # Whole numbers of any size: nothing overflows
    extent = math.prod(side or 1 for side in shape)
    if extent > MAX_ELEMENTS:
        raise InvalidInput(
            f"input '{name}' has too many elements; at most {MAX_ELEMENTS} are taken"
        )
    return 0 if 0 in shape else extent


def _raw_inputs(tensor: RawInput) -> Tensor:
    """The task's inputs, one a row: shape [n] or [n, 1]."""
    shape = list(tensor.shape)
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
        raise InvalidInput(
            f"input '{tensor.name}' of the datatype BYTES wants the shape [n] or [n, 1], given: "
            f"{shape!s:.200}"
        )
    check_bytes(tensor.name, tensor.data, elements(tensor.name, shape))
    return Tensor(tensor.name, "BYTES", shape[:1], tensor.data)


# ---- outputs


def checked_outputs(
    version: ServedVersion,
    requested: Sequence[RequestedOutput],
    *,
    task_level: bool = False,
    binary: bool = False,
) -> Sequence[RequestedOutput]:
    """The outputs to send, in their order; by default all of the model's, `binary` or not. Raises
    `InvalidInput`.
    """
    own = signature(version)
    if not requested:
        return [RequestedOutput(name, binary) for name in own.outputs]
    for output in requested:
        if output.name not in own.names and not (
            task_level and output.name == ANSWER
        ):
            raise _unknown_output(own, output.name, task_level)
    if len({output.name for output in requested}) != len(requested):
        names = ", ".join(output.name for output in requested)
        raise InvalidInput(f"an output is requested twice: {names[:200]}")
    return requested


def _unknown_output(
    own: Signature, name: str, task_level: bool
) -> InvalidInput:
    known = ", ".join([*own.outputs, ANSWER] if task_level else own.outputs)
    return InvalidInput(f"the model has the outputs {known}, not '{name[:80]}'")


def output_names(
    version: ServedVersion, requested: Sequence[RequestedOutput]
) -> Sequence[str]:
    """The names for `Gateway.predict`: none when all of the model's outputs are requested."""
    own = signature(version)
    if len(requested) == len(own.outputs) and all(
        output.name in own.names for output in requested
    ):
        return ()
    return [output.name for output in requested]


def chosen_outputs(
    version: ServedVersion, answer: Answer, requested: Sequence[RequestedOutput]
) -> list[Tensor]:
    """The tensors to send for `requested`, classified where it says so; raises `ModelFailed`,
    `InvalidInput`.
    """
    by_name = {tensor.name: tensor for tensor in answer.tensors}
    chosen = []
    for output in requested:
        tensor = by_name.get(output.name)
        if tensor is None:
            raise ModelFailed(
                f"the model did not answer the output '{output.name}'"
            )
        chosen.append(
            classification(tensor, output.classes, version.labels)
            if output.classes
            else tensor
        )
    return chosen


# ---- parameters


def read_options(parameters: Mapping[str, Any]) -> Options:
    """The meaning of a request's parameters; raises `InvalidInput`. Unknown ones are the task's."""
    if parameters.keys() <= RESERVED_ONLY:
        return NO_OPTIONS
    priority = _whole(
        parameters,
        "priority",
        "0 (the default) or a level from 1, the most urgent",
    )
    microseconds = _whole(
        parameters,
        "timeout",
        "microseconds that the request may wait, from 0 (no limit)",
    )
    task = {
        name: value
        for name, value in parameters.items()
        if name not in RESERVED
    }
    return Options(
        priority, microseconds / 1e6 or None, _version_of(parameters), task
    )


def _version_of(parameters: Mapping[str, Any]) -> str | None:
    version = parameters.get("version")
    if version is None:
        return None
    if not isinstance(version, (str, int)) or not is_number(str(version)):
        raise InvalidInput(
            f"the parameter version is a version's number, not {version!r:.40}"
        )
    return str(version)


def _whole(parameters: Mapping[str, Any], name: str, meaning: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise InvalidInput(
            f"the parameter {name} is {meaning}, not {value!r:.40}"
        )
    return value


def request_name(header: bytes | None, id: str) -> str:
    """The name of a request in logs, by its header or its id: nothing that could forge a line."""
    name = id if header is None else header.decode("latin-1")
    return name if len(name) <= NAME_LENGTH and name.isprintable() else ""
