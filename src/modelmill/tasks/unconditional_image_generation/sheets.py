"""Many small pictures on one sheet."""

import math
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
GAP = 2
LEAST = 56
"""Pixels that a picture takes at least: smaller ones are shown larger, by whole pixels."""


def sheet(pictures: Pixels) -> Pixels:
    """uint8 [N, H, W, C] in rows, as square as can be, on white: [H', W', C]."""
    count, height, width, channels = pictures.shape
    scale = max(1, math.ceil(LEAST / max(height, width)))
    pictures = pictures.repeat(scale, 1).repeat(scale, 2)
    height, width = height * scale, width * scale
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    page = np.full(
        (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels),
        255,
        np.uint8,
    )
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
        page[top : top + height, left : left + width] = picture
    return page
