"""Whether two answers differ by rounding alone: a pixel between two classes may get either."""

from base64 import b64decode
from typing import Any

import numpy as np

from modelmill.tasks.image_segmentation import mask_arrays

LEAST = 0.005
"""Least share of the pixels that may differ, whatever the tolerance."""


def alike(answer: Any, expected: Any, tolerance: float) -> bool:
    """Whether at most the share `tolerance` of the pixels (or `LEAST`) has another class."""
    masks, recorded = _by_label(answer), _by_label(expected)
    shapes = {mask.shape for mask in [*masks.values(), *recorded.values()]}
    if len(shapes) != 1:
        return False
    nothing = np.zeros(shapes.pop(), np.uint8)
    differ = sum(
        int((masks.get(name, nothing) != recorded.get(name, nothing)).sum())
        for name in masks.keys() | recorded.keys()
    )
    # A pixel that changes its class differs in two masks
    return differ <= 2 * max(tolerance, LEAST) * nothing.size


def _by_label(answer: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {
        entry["label"]: mask_arrays.read(b64decode(entry["mask"]))
        for entry in answer
    }
