"""Values of v2's tensors: Python's numbers, bools and texts to raw bytes and back, and
classification.

A tensor's data is its raw little-endian form; an element of BYTES is its length as uint32 and that
many bytes.
"""

import math
from array import array
from collections.abc import Sequence
from struct import Struct as Packer
from struct import error as PackingError
from struct import pack
from typing import Any

import numpy as np

from modelmill.engines.base import NUMPY
from modelmill.errors import InvalidInput
from modelmill.serve.tensors import pack_bytes
from modelmill.serve.wire import Tensor

SIZES = {
    name: int(np.dtype(kind).itemsize)
    for name, kind in NUMPY.items()
    if name != "BYTES"
}
"""Bytes of one element; BYTES has none."""
CODES = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
"""Letters of Python's `array`."""

# ---- BYTES

_length = Packer("<I")


def check_bytes(name: str, data: bytes, count: int) -> None:
    """Raises `InvalidInput` unless `data` is exactly `count` elements, each after its length."""
    at = 0
    end = len(data)
    read = _length.unpack_from
    if count * 4 > end:
        raise InvalidInput(
            f"input '{name}': {count} elements of BYTES need {count * 4} bytes or more, given {end}"
        )
    for number in range(count):
        if end - at < 4:
            raise _cut_off(name, number, at, end)
        at += 4 + read(data, at)[0]
        if at > end:
            raise _cut_off(name, number, at, end)
    if at != end:
        raise InvalidInput(
            f"input '{name}': {end - at} bytes follow its {count} elements"
        )


def _cut_off(name: str, number: int, at: int, end: int) -> InvalidInput:
    """The error of an element whose length, or whose end, is not in the data."""
    if at > end:
        return InvalidInput(
            f"input '{name}': element {number} ends {at - end} bytes after the data"
        )
    return InvalidInput(
        f"input '{name}': the data end before the length of element {number}"
    )


def unpack_bytes(data: bytes) -> list[bytes]:
    """The elements of a BYTES tensor that has been checked."""
    found = []
    at = 0
    end = len(data)
    read = _length.unpack_from
    while at < end:
        start = at + 4
        at = start + read(data, at)[0]
        found.append(data[start:at])
    return found


# ---- values


def packed(name: str, datatype: str, values: Sequence[Any]) -> bytes:
    """Flat Python values (numbers, bools, texts or bytes) as a tensor's data; raises
    `InvalidInput`.

    Whole numbers must be in the datatype's range, and no finite number may become infinite.
    """
    if datatype == "BYTES":
        return pack_bytes(
            [
                value.encode() if isinstance(value, str) else value
                for value in values
            ]
        )
    if datatype == "BOOL":
        return bytes(values)
    if (code := CODES.get(datatype)) is None:
        raise InvalidInput(
            f"input '{name}': {datatype} has no form as numbers; send it as binary data"
        )
    try:
        return pack(f"<{len(values)}{code}", *values)
    except (OverflowError, PackingError) as error:
        raise _not_packed(name, datatype, error) from error


def _not_packed(name: str, datatype: str, error: Exception) -> InvalidInput:
    if isinstance(error, OverflowError):
        return InvalidInput(
            f"input '{name}': a number is too large for {datatype}"
        )
    return InvalidInput(
        f"input '{name}': data does not hold values of {datatype}: {error}"
    )


def unpacked(tensor: Tensor) -> list[Any]:
    """The flat Python values of an output: numbers, bools or bytes; raises `InvalidInput` for FP16
    and BF16.
    """
    if tensor.datatype == "BYTES":
        return unpack_bytes(tensor.data)
    if tensor.datatype == "BOOL":
        return list(map(bool, tensor.data))
    if (code := CODES.get(tensor.datatype)) is None:
        raise InvalidInput(
            f"output '{tensor.name}' is {tensor.datatype}, which has no form as numbers: ask for "
            "binary data"
        )
    return array(code, tensor.data).tolist()


def classification(tensor: Tensor, count: int, labels: Sequence[str]) -> Tensor:
    """The best `count` of each row as BYTES "score:index[:label]", shape [rows, count]; raises
    `InvalidInput`.
    """
    if tensor.datatype in ("BYTES", "BOOL"):
        raise InvalidInput(
            f"output '{tensor.name}' is {tensor.datatype}: only numbers can be classified"
        )
    rows = tensor.shape[0] if tensor.shape else 1
    scores = numbers_of(tensor).reshape(rows, math.prod(tensor.shape[1:]))
    best = _best(scores, count)
    texts = _named(scores, best, labels)
    return Tensor(
        tensor.name, "BYTES", [rows, best.shape[1]], pack_bytes(texts)
    )


def _named(
    scores: "np.ndarray[Any, Any]",
    best: "np.ndarray[Any, Any]",
    labels: Sequence[str],
) -> list[bytes]:
    """The best of each row as texts; with labels where there is one for each class."""
    named = [f":{label}" for label in labels]
    if len(named) != scores.shape[1]:
        named = [""] * scores.shape[1]
    return [
        f"{scores[row, index]:f}:{index}{named[index]}".encode()
        for row, indices in enumerate(best.tolist())
        for index in indices
    ]


def _best(scores: "np.ndarray[Any, Any]", count: int) -> "np.ndarray[Any, Any]":
    """The indices of the best scores of each row, at most `count`; NaN comes last."""
    order = np.argsort(
        -np.nan_to_num(scores, nan=-np.inf), axis=1, kind="stable"
    )
    return order[:, :count]


def numbers_of(tensor: Tensor) -> "np.ndarray[Any, Any]":
    """An output's numbers as float64, flat."""
    if tensor.datatype == "BF16":  # the upper half of an FP32
        return (
            (np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16)
            .view(np.float32)
            .astype(np.float64)
        )
    return np.frombuffer(tensor.data, NUMPY[tensor.datatype]).astype(np.float64)
