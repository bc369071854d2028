"""Pictures of any size through a network, in tiles that are blended without seams."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from modelmill.errors import InvalidInput

Floats = np.ndarray[Any, np.dtype[np.float32]]
Network = Callable[[np.ndarray[Any, Any]], Floats]
OVERLAP = 64
"""Pixels that neighbouring tiles share; a quarter at each end, where a tile's edge tells, counts
for nothing.
"""


def repaired(
    network: Network,
    pictures: np.ndarray[Any, Any],
    tile: int,
    scale: int,
    multiple: int,
) -> Floats:
    """Pictures [N, H, W, C] of any size through a network that wants sides of a multiple: [N, H *
    s, W * s, C].

    What does not fit into `tile` x `tile` goes in tiles, so that the network never sees more pixels
    at a time than a tile has; the answer is the only thing that grows with the picture.
    """
    count, height, width = pictures.shape[:3]
    if not height or not width:
        raise InvalidInput(f"a picture of {height}x{width} pixels is empty")
    padded = _padded(pictures, multiple)
    if padded.shape[1] <= tile and padded.shape[2] <= tile:
        together = max(1, tile * tile // (padded.shape[1] * padded.shape[2]))
        parts = [
            network(padded[at : at + together]) for at in range(0, count, together)
        ]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    else:
        whole = np.stack(
            [_blended(network, picture, tile, scale, multiple) for picture in padded]
        )
    return whole[:, : height * scale, : width * scale]


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
    whole: Floats | None = None
    across = list(spans(width, tile, multiple))
    weights = ramps(across, width, scale)
    for (top, bottom), down in zip(
        rows := list(spans(height, tile, multiple)),
        ramps(rows, height, scale),
        strict=True,
    ):
        for (left, right), along in zip(across, weights, strict=True):
            answer = network(picture[None, top:bottom, left:right])[0]
            if whole is None:
                whole = np.zeros(
                    (height * scale, width * scale, answer.shape[2]), np.float32
                )
            place = whole[top * scale : bottom * scale, left * scale : right * scale]
            place += answer * (down[:, None, None] * along[None, :, None])
    assert whole is not None
    return whole


def spans(length: int, tile: int, multiple: int) -> list[tuple[int, int]]:
    """The tiles of a side, evenly spread, each but a shorter side's one `tile` long; they begin at
    multiples.
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
    """The weight of each pixel of each tile of a side; at every pixel of the side they sum to 1."""
    place = (np.arange(length * scale) + 0.5) / scale
    ends = [np.ones(length * scale)]
    for (_, before), (start, _) in itertools.pairwise(tiles):
        margin = (before - start) / 4
        ends.append(
            np.clip((place - start - margin) / (before - start - 2 * margin), 0, 1)
        )
    ends.append(np.zeros(length * scale))
    return [
        (ends[number] - ends[number + 1])[start * scale : end * scale].astype(
            np.float32
        )
        for number, (start, end) in enumerate(tiles)
    ]
