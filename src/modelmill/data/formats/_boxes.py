"""Shared by the formats of boxes: validation of boxes and names of pictures."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from modelmill.data.base import Box
from modelmill.data.magic import BY_EXTENSION, extension
from modelmill.data.names import base_of, shown
from modelmill.errors import InvalidInput

Corners = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax."""
SIDE = 1_000_000
"""Longest side of a picture in pixels; a larger size is an error of the file."""


def is_picture(name: str) -> bool:
    """Whether a name is that of a picture."""
    return extension(name) in BY_EXTENSION


def stem(name: str) -> str:
    """A name without folders and extension."""
    return base_of(name).rpartition(".")[0] or base_of(name)


def clipped_box(
    label: str,
    corners: Corners,
    size: tuple[float, float] | None,
    ignored: bool,
) -> Box:
    """A box (xmin, ymin, xmax, ymax) clipped to its picture (width, height; None if unknown).

    Raises `InvalidInput` for a box that is empty, outside the picture, or not of finite numbers.
    """
    _check_box(label, corners)
    width, height = size or (SIDE, SIDE)
    xmin, ymin, xmax, ymax = corners
    clipped = (
        max(0.0, xmin),
        max(0.0, ymin),
        min(width, xmax),
        min(height, ymax),
    )
    if not _has_area(clipped):
        where = f"outside the picture of {width:g}x{height:g} pixels"
        raise _bad_box(label, f"{where}: {_numbers(corners)}")
    return Box(label, *clipped, ignored)


def _check_box(label: str, corners: Corners) -> None:
    if not label:
        raise InvalidInput("has a box without a class")
    if not all(
        math.isfinite(value) and abs(value) <= SIDE for value in corners
    ):
        raise _bad_box(label, "whose corners are no sensible numbers")
    if not _has_area(corners):
        raise _bad_box(label, f"without area: {_numbers(corners)}")


def _bad_box(label: str, problem: str) -> InvalidInput:
    return InvalidInput(f"has a box of '{shown(label, 40)}' {problem}")


def _has_area(corners: Corners) -> bool:
    xmin, ymin, xmax, ymax = corners
    return xmin < xmax and ymin < ymax


def size_of(width: Any, height: Any) -> tuple[float, float] | None:
    """A declared size (width, height); None where it is 0 or missing. Raises `InvalidInput` for a
    size that can't be right.
    """
    size = _side(width), _side(height)
    if not all(0 <= side <= SIDE for side in size):
        raise InvalidInput(
            f"declares a senseless size: {shown(str(width), 20)} x {shown(str(height), 20)} pixels"
        )
    return size if all(size) else None


def _side(value: Any) -> float:
    try:
        return float(value or 0)
    except (TypeError, ValueError):
        return math.nan


def main_label(boxes: Iterable[Box]) -> str:
    """The most frequent class of a picture's boxes, by which splits are balanced; "" without
    any.
    """
    counts = Counter(box.label for box in boxes if not box.ignored)
    return (
        min(counts, key=lambda label: (-counts[label], label)) if counts else ""
    )


def _numbers(corners: Corners) -> str:
    return ", ".join(f"{value:g}" for value in corners)
