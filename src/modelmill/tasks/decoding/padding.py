"""Rows of one length, as batches need them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def padded(
    values: Sequence[Any] | Array, length: int, kind: type, fill: int = 0
) -> Array:
    """Values as a row [length] of this kind of number: cut, or filled up at the end."""
    row: Array = np.full(length, fill, kind)
    row[: len(values)] = values[:length]
    return row
