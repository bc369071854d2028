"""Runs a network over pictures of any size in overlapping tiles that are blended without seams."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from modelmill.errors import InvalidInput

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
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
    height, width = pictures.shape[1:3]
    if not height or not width:
        raise InvalidInput(f"a picture of {height}x{width} pixels is empty")
    padded = _padded(pictures, multiple)
    if max(padded.shape[1:3]) <= tile:
        stitched = _whole(network, padded, tile)
    else:
        stitched = np.stack(
            [
                _blended(network, picture, tile, scale, multiple)
                for picture in padded
            ]
        )
    return stitched[:, : height * scale, : width * scale]


def _whole(
    network: Network, pictures: np.ndarray[Any, Any], tile: int
) -> Floats:
    """Pictures that need no tiles, as many at a time as have the pixels of one."""
    batch = max(1, tile * tile // (pictures.shape[1] * pictures.shape[2]))
    parts = [
        network(pictures[at : at + batch])
        for at in range(0, len(pictures), batch)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _padded(
    pictures: np.ndarray[Any, Any], multiple: int
) -> np.ndarray[Any, Any]:
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
    down = _weighted(height, tile, scale, multiple)
    across = _weighted(width, tile, scale, multiple)
    stitched: Floats | None = None
    for (top, bottom), weight_y in down:
        for (left, right), weight_x in across:
            answer = network(picture[None, top:bottom, left:right])[0]
            if stitched is None:
                shape = (height * scale, width * scale, answer.shape[2])
                stitched = np.zeros(shape, np.float32)
            area = stitched[
                top * scale : bottom * scale, left * scale : right * scale
            ]
            area += answer * (weight_y[:, None, None] * weight_x[None, :, None])
    assert stitched is not None
    return stitched


def _weighted(
    length: int, tile: int, scale: int, multiple: int
) -> list[tuple[tuple[int, int], Floats]]:
    """The tiles along a side, with their blending weights."""
    tiles = spans(length, tile, multiple)
    return list(zip(tiles, ramps(tiles, length, scale), strict=True))


def spans(length: int, tile: int, multiple: int) -> list[tuple[int, int]]:
    """Start and end of evenly spread tiles along a side, in pixels; each is `tile` long (a shorter
    side is one tile) and starts at a multiple of `multiple`.
    """
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - OVERLAP) / (tile - OVERLAP))
    last = length - tile
    starts = [
        last * number // (count - 1) // multiple * multiple
        for number in range(count)
    ]
    return [(start, start + tile) for start in starts]


def ramps(
    tiles: list[tuple[int, int]], length: int, scale: int
) -> list[Floats]:
    """Blending weights of each tile along a side; at every pixel they sum to 1."""
    position = (np.arange(length * scale) + 0.5) / scale
    between = [
        _ramp(position, start, end)
        for (_, end), (start, _) in itertools.pairwise(tiles)
    ]
    ends: list[Doubles] = [
        np.ones(length * scale),
        *between,
        np.zeros(length * scale),
    ]
    weights = [one - other for one, other in itertools.pairwise(ends)]
    return [
        weight[start * scale : end * scale].astype(np.float32)
        for weight, (start, end) in zip(weights, tiles, strict=True)
    ]


def _ramp(position: Doubles, start: int, end: int) -> Doubles:
    """0 to 1 over the pixels that two tiles share, but for a margin at each end."""
    margin = (end - start) / 4
    share = (position - start - margin) / (end - start - 2 * margin)
    return np.asarray(np.clip(share, 0, 1))
