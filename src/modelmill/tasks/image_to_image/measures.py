"""How close a repaired picture is to the clean one, and sheets that show it."""

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from modelmill.tasks.decoding.image_decoder import Pixels

CLEAN = 100.0
"""PSNR of a picture without any error, in dB, so that means stay finite."""
WINDOW, DEVIATION = 11, 1.5


class Row(NamedTuple):
    """A line of a sheet: what was sent, answered and meant, and the PSNR of the first two."""

    sent: Pixels
    answer: Pixels
    truth: Pixels
    before: float
    after: float


def psnr(one: Pixels, other: Pixels) -> float:
    """The peak signal-to-noise ratio of 8-bit pictures, in dB; at most 100."""
    error = float(np.mean((one.astype(np.float32) - other.astype(np.float32)) ** 2))
    return min(CLEAN, 10 * math.log10(255**2 / error)) if error else CLEAN


def ssim(one: Pixels, other: Pixels) -> float:
    """The mean structural similarity of 8-bit pictures [H, W, C], over channels.

    Wang et al. 2004, IEEE TIP 13(4): a Gaussian window of 11 pixels with deviation 1.5, K1 = 0.01,
    K2 = 0.03. A picture smaller than the window is one window.
    """
    x, y = one.astype(np.float64), other.astype(np.float64)
    near, far = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    both = _windowed(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + near) * (2 * both + far)
    below = (mean_x**2 + mean_y**2 + near) * (var_x + var_y + far)
    return float(np.mean(above / below))


def _windowed(x: Any) -> Any:
    """Weighted means over windows that lie within the picture, along both axes."""
    for axis in (0, 1):
        size = min(WINDOW, x.shape[axis])
        place = np.arange(size) - (size - 1) / 2
        weights = np.exp(-(place**2) / (2 * DEVIATION**2))
        weights /= weights.sum()
        count = x.shape[axis] - size + 1
        x = sum(
            weight * x.take(range(at, at + count), axis)
            for at, weight in enumerate(weights)
        )
    return x


def sheet(rows: Sequence[Row]) -> bytes:
    """Pictures before and after repair, and the clean ones, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for row, places in zip(rows, axes, strict=True):
        titles = (
            f"sent, {row.before:.2f} dB",
            f"repaired, {row.after:.2f} dB",
            "clean",
        )
        for place, pixels, title in zip(places, row[:3], titles, strict=True):
            place.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            place.set_title(title, fontsize=10)
            place.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    return buffer.getvalue()
