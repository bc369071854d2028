"""Sheets of small pictures."""

import math
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
GAP = 2
"""Pixels between pictures."""
MIN_SIDE = 56
"""Smallest side of a picture on a sheet; smaller pictures are repeated pixel by pixel."""


def sheet(pictures: Pixels) -> Pixels:
    """uint8 [N, H, W, C] -> one picture [H', W', C] with all of them in a nearly square grid."""
    count, height, width, channels = pictures.shape
    scale = max(1, math.ceil(MIN_SIDE / max(height, width)))
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
