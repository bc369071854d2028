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
    pictures = _enlarged(pictures)
    count, height, width, channels = pictures.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    down, across = height + GAP, width + GAP
    page = np.full(
        (rows * down + GAP, columns * across + GAP, channels), 255, np.uint8
    )
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        top, left = GAP + row * down, GAP + column * across
        page[top : top + height, left : left + width] = picture
    return page


def _enlarged(pictures: Pixels) -> Pixels:
    """Small pictures [N, H, W, C] by a whole factor."""
    scale = max(1, math.ceil(MIN_SIDE / max(pictures.shape[1:3])))
    return pictures.repeat(scale, 1).repeat(scale, 2)
