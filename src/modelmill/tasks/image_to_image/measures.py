"""PSNR and SSIM of restored pictures, and sheets that compare them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from modelmill.tasks.decoding.image_decoder import Pixels
from modelmill.tasks.evaluation import figures

CLEAN = 100.0
"""PSNR in dB of a picture without any error, so that means stay finite."""
WINDOW, DEVIATION = 11, 1.5


class Comparison(NamedTuple):
    """A row of a sheet: the input, the answer, the clean picture, and the PSNR of the first two."""

    sent: Pixels
    answer: Pixels
    truth: Pixels
    before: float
    after: float


def psnr(answer: Pixels, clean: Pixels) -> float:
    """The peak signal-to-noise ratio of 8-bit pictures, in dB; at most 100."""
    error = float(
        np.mean((answer.astype(np.float32) - clean.astype(np.float32)) ** 2)
    )
    return min(CLEAN, 10 * math.log10(255**2 / error)) if error else CLEAN


def ssim(answer: Pixels, clean: Pixels) -> float:
    """The mean structural similarity of 8-bit pictures [H, W, C], over channels.

    Wang et al. 2004, IEEE TIP 13(4): a Gaussian window of 11 pixels with deviation 1.5, K1 = 0.01,
    K2 = 0.03. A picture smaller than the window is mirrored at its edges up to that size.
    """
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            _padded_to_window(answer),
            _padded_to_window(clean),
            gaussian_weights=True,
            sigma=DEVIATION,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=2,
        )
    )


def _padded_to_window(pixels: Pixels) -> Pixels:
    missing = [max(0, WINDOW - side) for side in pixels.shape[:2]]
    edges = [(few // 2, few - few // 2) for few in missing]
    return np.pad(pixels, [*edges, (0, 0)], mode="symmetric")


def sheet(rows: Sequence[Comparison]) -> bytes:
    """Pictures before and after restoration beside the clean ones, as a PNG."""
    figure = figures.blank(12, 3.4 * len(rows))
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for row, panels in zip(rows, axes, strict=True):
        titles = (
            f"sent, {row.before:.2f} dB",
            f"repaired, {row.after:.2f} dB",
            "clean",
        )
        for panel, pixels, title in zip(panels, row[:3], titles, strict=True):
            panel.imshow(
                pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            panel.set_title(title, fontsize=10)
            panel.set_axis_off()
    return figures.as_png(figure, dpi=90)
