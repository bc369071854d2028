"""Runs a network over pictures of any size in overlapping tiles that are blended without seams."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from modelmill.errors import InvalidInput

Floats = np.ndarray[Any, np.dtype[np.float32]]
Network = Callable[[np.ndarray[Any, Any]], Floats]
OVERLAP = 64
"""Pixels that neighbouring tiles share; the outer quarter at each end, where the border of a tile
shows, has no weight.
"""


def repaired(
    network: Network,
    pictures: np.ndarray[Any, Any],
    tile: int,
    scale: int,
    multiple: int,
) -> Floats:
    """Restore pictures [N, H, W, C] of any size -> [N, H * scale, W * scale, C].

    The network takes sides that are multiples of `multiple`. A picture larger than `tile` x `tile`
    is cut into tiles, so that memory does not grow with it, but for the answer. Raises
    `InvalidInput` for an empty picture.
    """
    count, height, width = pictures.shape[:3]
    if not height or not width:
        raise InvalidInput(f"a picture of {height}x{width} pixels is empty")
    padded = _padded(pictures, multiple)
    if padded.shape[1] <= tile and padded.shape[2] <= tile:
        batch = max(1, tile * tile // (padded.shape[1] * padded.shape[2]))
        parts = [network(padded[at : at + batch]) for at in range(0, count, batch)]
        stitched = parts[0] if len(parts) == 1 else np.concatenate(parts)
    else:
        stitched = np.stack(
            [_blended(network, picture, tile, scale, multiple) for picture in padded]
        )
    return stitched[:, : height * scale, : width * scale]


def _padded(pictures: np.ndarray[Any, Any], multiple: int) -> np.ndarray[Any, Any]:
    missing = [(0, -side % multiple) for side in pictures.shape[1:3]]
    if not any(after for _, after in missing):
        return pictures
    return np.pad(pictures, [(0, 0), *missing, (0, 0)], "symmetric")


def _blended(
    network: Network,
    picture: np.ndarray[Any, Any],
    tile: int,
    scale: int,
    multiple: int,
) -> Floats:
    height, width = picture.shape[:2]
    tile -= tile % multiple
    stitched: Floats | None = None
    across = list(spans(width, tile, multiple))
    weights = ramps(across, width, scale)
    for (top, bottom), weight_y in zip(
        rows := list(spans(height, tile, multiple)),
        ramps(rows, height, scale),
        strict=True,
    ):
        for (left, right), weight_x in zip(across, weights, strict=True):
            answer = network(picture[None, top:bottom, left:right])[0]
            if stitched is None:
                stitched = np.zeros(
                    (height * scale, width * scale, answer.shape[2]), np.float32
                )
            area = stitched[top * scale : bottom * scale, left * scale : right * scale]
            area += answer * (weight_y[:, None, None] * weight_x[None, :, None])
    assert stitched is not None
    return stitched


def spans(length: int, tile: int, multiple: int) -> list[tuple[int, int]]:
    """Start and end of evenly spread tiles along a side, in pixels; each is `tile` long (a shorter
    side is one tile) and starts at a multiple of `multiple`.
    """
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - OVERLAP) / (tile - OVERLAP))
    last = length - tile
    starts = [
        last * number // (count - 1) // multiple * multiple for number in range(count)
    ]
    return [(start, start + tile) for start in starts]


def ramps(tiles: list[tuple[int, int]], length: int, scale: int) -> list[Floats]:
    """Blending weights of each tile along a side; at every pixel they sum to 1."""
    position = (np.arange(length * scale) + 0.5) / scale
    ends = [np.ones(length * scale)]
    for (_, end), (start, _) in itertools.pairwise(tiles):
        margin = (end - start) / 4
        ends.append(
            np.clip((position - start - margin) / (end - start - 2 * margin), 0, 1)
        )
    ends.append(np.zeros(length * scale))
    return [
        (ends[number] - ends[number + 1])[start * scale : end * scale].astype(
            np.float32
        )
        for number, (start, end) in enumerate(tiles)
    ]
