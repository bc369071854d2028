"""Tensors as nested lists of JSON: one entry a row (`instances`), or one list a tensor
(`inputs`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from modelmill.engines.base import NUMPY
from modelmill.errors import InvalidInput, ModelFailed
from modelmill.serve.wire import Answer, Tensor
from modelmill.types import ServedVersion, TensorSpec

ROWS = 4096
"""Most rows in one request."""


def from_rows(rows: Sequence[Any], route: ServedVersion) -> list[Tensor]:
    """Rows of the model's only input, or objects by input name, as tensors; raises
    `InvalidInput`.
    """
    names = [spec.name for spec in route.inputs]
    objects = [isinstance(row, dict) for row in rows]
    if any(objects):
        if not all(objects):
            raise InvalidInput(
                "either all instances are objects by input name, or none is"
            )
        return from_columns(_turned(rows, names), route)
    if len(names) != 1:
        raise InvalidInput(
            f"every instance is an object with the inputs {', '.join(names)}"
        )
    return from_columns({names[0]: rows}, route)


def _turned(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, list[Any]]:
    """Rows by input name as columns; raises `InvalidInput` for other names."""
    for number, row in enumerate(rows):
        _check_names(f"instance {number}: ", row, names, "nothing")
    return {name: [row[name] for row in rows] for name in names}


def _check_names(
    where: str, given: Mapping[str, Any], names: Sequence[str], none: str
) -> None:
    """Raises `InvalidInput` unless the names given are those of the inputs."""
    if given.keys() != set(names):
        those = ", ".join(map(str, given))[:200] or none
        raise InvalidInput(
            f"{where}the model takes the inputs {', '.join(names)}; given: {those}"
        )


def from_columns(columns: Any, route: ServedVersion) -> list[Tensor]:
    """Whole tensors by input name, or the model's only one by itself; raises `InvalidInput`."""
    names = [spec.name for spec in route.inputs]
    if not isinstance(columns, dict):
        columns = {names[0]: columns} if len(names) == 1 else {}
    _check_names("", columns, names, "no names")
    tensors = [_tensor(spec, columns[spec.name]) for spec in route.inputs]
    _check_counts(tensors)
    return tensors


def _check_counts(tensors: Sequence[Tensor]) -> None:
    if len({tensor.shape[0] for tensor in tensors}) > 1:
        counts = ", ".join(
            f"{tensor.name} {tensor.shape[0]}" for tensor in tensors
        )
        raise InvalidInput(
            f"the inputs disagree on the number of rows: {counts}"
        )


def _tensor(spec: TensorSpec, values: Any) -> Tensor:
    if spec.datatype not in NUMPY or not spec.shape:
        raise InvalidInput(
            f"input '{spec.name}' ({spec.datatype} {spec.shape}) has no form here; send it over /v2"
        )
    array = _array(spec, values)
    _check_shape(spec, array.shape)
    if _is_float(spec) and np.isinf(array).any():
        # JSON has no infinity: it was a number
        raise InvalidInput(
            f"input '{spec.name}': a number is too large for {spec.datatype}"
        )
    return Tensor(spec.name, spec.datatype, list(array.shape), array.tobytes())


def _array(spec: TensorSpec, values: Any) -> np.ndarray[Any, Any]:
    """Nested lists in the datatype of an input; raises `InvalidInput`."""
    try:
        # Checked whole before numpy sees it: depth, and the type of every value.
        checked = msgspec.convert(values, _nested_lists(spec))
        with np.errstate(over="ignore"):
            return np.array(checked, NUMPY[spec.datatype])
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        shape = f"shape {spec.shape} of {spec.datatype}"
        raise InvalidInput(
            f"input '{spec.name}' wants the {shape}: {error}"
        ) from error


def _is_float(spec: TensorSpec) -> bool:
    return spec.datatype.startswith(("FP", "BF"))


def _nested_lists(spec: TensorSpec) -> Any:
    """The type of an input in JSON: as many lists as it has axes."""
    wanted: Any = int
    if _is_float(spec):
        wanted = float
    elif spec.datatype == "BOOL":
        wanted = bool
    for _ in spec.shape:
        wanted = list[wanted]
    return wanted


def _check_shape(spec: TensorSpec, shape: Sequence[int]) -> None:
    """Raises `InvalidInput` for a shape that is not that of the signature, or has too many rows."""
    if not _fits(shape, spec.shape) or 0 in shape:
        raise InvalidInput(
            f"input '{spec.name}' wants the shape {spec.shape}, given: {list(shape)}"
        )
    if shape[0] > ROWS:
        raise InvalidInput(
            f"input '{spec.name}' has {shape[0]:,} rows; at most {ROWS:,} are taken"
        )


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(
        side in (-1, given) for given, side in zip(shape, wanted, strict=True)
    )


def to_rows(answer: Answer, count: int) -> list[Any]:
    """One row of the model's only output per instance, or an object by output name."""
    columns = {tensor.name: _rows(tensor, count) for tensor in answer.tensors}
    if len(columns) == 1:
        return list(next(iter(columns.values())))
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _rows(tensor: Tensor, count: int) -> list[Any]:
    """The values of an output that has so many rows; raises `ModelFailed`."""
    values = _values(tensor)
    if not isinstance(values, list) or len(values) != count:
        raise ModelFailed(
            f"the output '{tensor.name}' does not have a row per instance: ask with inputs instead"
        )
    return values


def to_columns(answer: Answer) -> Any:
    """The model's only output, or all by name."""
    columns: Mapping[str, Any] = {
        tensor.name: _values(tensor) for tensor in answer.tensors
    }
    return next(iter(columns.values())) if len(columns) == 1 else columns


def _values(tensor: Tensor) -> Any:
    if tensor.datatype not in NUMPY:
        raise InvalidInput(
            f"output '{tensor.name}': {tensor.datatype} has no form here; ask over /v2"
        )
    return (
        np.frombuffer(tensor.data, NUMPY[tensor.datatype])
        .reshape(tensor.shape)
        .tolist()
    )
