"""The short way of a batch whose calls are alike: one tensor each, of one shape. It is most of what
workers see.
"""

from collections.abc import Sequence

import numpy as np

from modelmill.engines.base import NUMPY, Arrays
from modelmill.serve.tensors import DATATYPES
from modelmill.serve.wire import Answer, Call, Tensor
from modelmill.types import Usage


def stacked(calls: Sequence[Call]) -> Arrays | None:
    """All calls as one array by its name, or None when they are not alike."""
    first = calls[0].tensors[0] if len(calls[0].tensors) == 1 else None
    if first is None or first.datatype not in NUMPY or not first.shape:
        return None
    name = first.name
    datatype = first.datatype
    shape = first.shape
    size = len(first.data)
    parts = []
    for call in calls:
        if len(call.tensors) != 1 or call.outputs:
            return None
        tensor = call.tensors[0]
        if (
            tensor.shape != shape
            or tensor.datatype != datatype
            or tensor.name != name
            or len(tensor.data) != size
        ):
            return None
        parts.append(tensor.data)
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return {
        name: np.frombuffer(data, NUMPY[datatype]).reshape(
            len(calls) * shape[0], *shape[1:]
        )
    }


Column = tuple[str, str, list[int], bytes, int]
"""An output of all calls: name, datatype, the shape of each call's part, the data of all, and the
bytes of a part.
"""


def columns_of(calls: Sequence[Call], outputs: Arrays) -> list[Column] | None:
    """The outputs of all calls as bytes, or None when their rows can't be told apart."""
    rows, count = calls[0].tensors[0].shape[0], len(calls)
    columns: list[Column] = []
    for name, array in outputs.items():
        if array.dtype.kind in "OSU" or array.shape[:1] != (rows * count,):
            return None
        columns.append(
            (
                name,
                DATATYPES[array.dtype],
                [rows, *array.shape[1:]],
                array.tobytes(),
                array.nbytes // count,
            )
        )
    return columns


def answers_of(
    calls: Sequence[Call], columns: Sequence[Column], usage: Usage
) -> list[Answer]:
    """An answer for each call, its part of all outputs, each with this usage."""
    return [
        Answer(
            call.id,
            tensors=[_cut(at, *column) for column in columns],
            usage=usage,
        )
        for at, call in enumerate(calls)
    ]


def _cut(
    at: int, name: str, datatype: str, shape: list[int], data: bytes, size: int
) -> Tensor:
    return Tensor(name, datatype, shape, data[at * size : (at + 1) * size])
