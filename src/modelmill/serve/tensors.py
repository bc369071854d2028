"""Tensors as they travel, and the arrays they stand for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelmill.engines.base import DATATYPES as KNOWN
from modelmill.engines.base import NUMPY
from modelmill.errors import InvalidInput
from modelmill.serve.wire import Tensor

DATATYPES = {np.dtype(kind): name for name, kind in NUMPY.items()}
LENGTH = 4


def array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The array of a tensor, in its shape; BYTES become an object array of bytes. Raises
    `InvalidInput`.
    """
    if tensor.datatype not in KNOWN:
        raise InvalidInput(
            f"input '{tensor.name}': unknown datatype '{tensor.datatype}'; there are: "
            f"{', '.join(KNOWN)}"
        )
    try:
        if tensor.datatype == "BYTES":
            return _bytes_array(elements_of(tensor)).reshape(tensor.shape)
        return np.frombuffer(tensor.data, NUMPY[tensor.datatype]).reshape(
            tensor.shape
        )
    except ValueError as error:
        raise InvalidInput(
            f"input '{tensor.name}': its data do not fill the shape {tensor.shape}"
        ) from error


def _bytes_array(elements: list[bytes]) -> np.ndarray[Any, Any]:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def tensor_of(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor of an array."""
    if array.dtype.kind in "OSU":
        elements = [_as_bytes(one) for one in array.flat]
        return Tensor(name, "BYTES", list(array.shape), pack_bytes(elements))
    return Tensor(
        name, DATATYPES[array.dtype], list(array.shape), array.tobytes()
    )


def _as_bytes(element: Any) -> bytes:
    if isinstance(element, bytes):
        return element
    return str(element).encode("utf-8", "surrogateescape")


def texts_of(name: str, elements: Sequence[bytes]) -> Tensor:
    """A BYTES tensor of one axis."""
    return Tensor(name, "BYTES", [len(elements)], pack_bytes(elements))


def pack_bytes(elements: Sequence[bytes]) -> bytes:
    """Elements, each after its length."""
    return b"".join(
        [len(one).to_bytes(LENGTH, "little") + one for one in elements]
    )


def elements_of(tensor: Tensor) -> list[bytes]:
    """The elements of a BYTES tensor; raises `InvalidInput` when a length leads beyond the data."""
    data = tensor.data
    at = 0
    elements = []
    while at < len(data):
        end = at + LENGTH + int.from_bytes(data[at : at + LENGTH], "little")
        if at + LENGTH > len(data) or end > len(data):
            raise InvalidInput(
                f"input '{tensor.name}': an element is longer than what was sent"
            )
        elements.append(data[at + LENGTH : end])
        at = end
    return elements
