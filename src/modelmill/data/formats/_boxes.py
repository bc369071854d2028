"""Shared by the formats of boxes: validation of boxes and names of pictures."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from modelmill.data.base import Box
from modelmill.data.magic import BY_EXTENSION, extension
from modelmill.data.names import shown
from modelmill.errors import InvalidInput

SIDE = 1_000_000
"""Longest side of a picture in pixels; a larger size is an error of the file."""


def is_picture(name: str) -> bool:
    """Whether a name is that of a picture."""
    return extension(name) in BY_EXTENSION


def stem(name: str) -> str:
    """A name without folders and extension."""
    return name.rpartition("/")[2].rpartition(".")[0] or name.rpartition("/")[2]


def clipped_box(
    label: str,
    corners: Sequence[float],
    size: tuple[float, float] | None,
    ignored: bool,
) -> Box:
    """A box (xmin, ymin, xmax, ymax) clipped to its picture (width, height; None if unknown).

    Raises `InvalidInput` for a box that is empty, outside the picture, or not of finite numbers.
    """
    if not label:
        raise InvalidInput("has a box without a class")
    if not all(math.isfinite(value) and abs(value) <= SIDE for value in corners):
        raise InvalidInput(
            f"has a box of '{shown(label, 40)}' whose corners are no sensible numbers"
        )
    xmin, ymin, xmax, ymax = corners
    if not (xmin < xmax and ymin < ymax):
        raise InvalidInput(
            f"has a box of '{shown(label, 40)}' without area: {_numbers(corners)}"
        )
    width, height = size or (SIDE, SIDE)
    clipped = (max(0.0, xmin), max(0.0, ymin), min(width, xmax), min(height, ymax))
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        raise InvalidInput(
            f"has a box of '{shown(label, 40)}' outside the picture of {width:g}x{height:g} "
            f"pixels: {_numbers(corners)}"
        )
    return Box(label, *clipped, ignored)


def size_of(width: Any, height: Any) -> tuple[float, float] | None:
    """A declared size (width, height); None where it is 0 or missing. Raises `InvalidInput` for a
    size that can't be right.
    """
    try:
        size = float(width or 0), float(height or 0)
    except (TypeError, ValueError):
        size = (math.nan, 0.0)
    if not all(0 <= side <= SIDE for side in size):
        raise InvalidInput(
            f"declares a senseless size: {shown(str(width), 20)} x {shown(str(height), 20)} pixels"
        )
    return size if all(size) else None


def main_label(boxes: Iterable[Box]) -> str:
    """The most frequent class of a picture's boxes, by which splits are balanced; "" without
    any.
    """
    counts = Counter(box.label for box in boxes if not box.ignored)
    return min(counts, key=lambda label: (-counts[label], label)) if counts else ""


def _numbers(corners: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in corners)
