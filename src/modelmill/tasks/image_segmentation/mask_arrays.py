"""Masks of class numbers: read, resized, coloured, counted."""

import io
from base64 import b64encode
from typing import Any

import numpy as np
from PIL import Image

from modelmill.data.mask_values import IGNORED

__all__ = [
    "IGNORED",
    "confident",
    "confusion",
    "enlarged",
    "only",
    "packed",
    "present",
    "read",
    "resized",
]

Mask = np.ndarray[Any, np.dtype[np.uint8]]


def read(data: bytes) -> Mask:
    """A mask's class numbers, uint8 [H, W], from the PNG that a format or an answer holds."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image, np.uint8)


def packed(mask: Mask) -> str:
    """A mask as base64 of a PNG."""
    out = io.BytesIO()
    Image.fromarray(mask).save(out, "PNG", compress_level=4)
    return b64encode(out.getvalue()).decode()


def resized(mask: Mask, height: int, width: int) -> Mask:
    """A mask resized to [height, width] by its nearest pixels."""
    if mask.shape == (height, width):
        return mask
    return np.asarray(
        Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    )


def enlarged(mask: Mask, height: int, width: int) -> Mask:
    """A mask without ignored pixels resized to [height, width], with smooth borders.

    Each class is resized by itself; each pixel gets the class that covers most of it.
    """
    classes = np.unique(mask)
    if mask.shape == (height, width) or len(classes) == 1:
        return resized(mask, height, width)
    best = np.zeros((height, width), np.uint8)
    resized_mask = np.full((height, width), classes[0], np.uint8)
    for number in classes:
        share = _share(only(mask, number), height, width)
        more = share > best
        best[more] = share[more]
        resized_mask[more] = number
    return resized_mask


def only(mask: Mask, number: int) -> Mask:
    """255 where the class is, 0 elsewhere."""
    return np.where(mask == number, np.uint8(255), np.uint8(0))


def present(mask: Mask, classes: int) -> list[int]:
    """The classes that have pixels, the largest first."""
    pixels = np.bincount(mask.ravel(), minlength=classes)
    order = np.argsort(-pixels, kind="stable")
    return [int(number) for number in order[: np.count_nonzero(pixels)]]


def _share(mask: Mask, height: int, width: int) -> Mask:
    """How much of each pixel [height, width] a class covers, 0..255."""
    image = Image.fromarray(mask)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def confident(
    mask: Mask, scores: np.ndarray[Any, Any], classes: int
) -> np.ndarray[Any, Any]:
    """The mean score of the pixels of each class, [classes]; 0 for a class without pixels."""
    count = np.bincount(mask.ravel(), minlength=classes)
    total = np.bincount(mask.ravel(), weights=scores.ravel(), minlength=classes)
    return np.asarray(total / np.maximum(count, 1))


def confusion(
    truth: Mask, guess: Mask, classes: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The confusion matrix of pixels [truth, guess], int64, without ignored ones."""
    labelled = truth < classes
    pairs = truth[labelled].astype(np.int64) * classes + guess[labelled]
    return np.bincount(pairs, minlength=classes * classes).reshape(
        classes, classes
    )
