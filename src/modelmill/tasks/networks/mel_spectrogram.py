"""Log-mel spectrograms as layers, so that they are deployed inside the network's graph, and
SpecAugment.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Array = np.ndarray[Any, np.dtype[np.float64]]
RANGE = 8.0
"""Dynamic range in bels below the loudest value: 80 dB; what is quieter is clipped."""


class LogMel(nn.Module):
    """Samples [N, S] -> log-mel spectrogram [N, mels, frames], scaled so that the loudest value of
    a recording is 1 and the range is -1..1.

    A Hann window of 25 ms every 10 ms, its power spectrum by a convolution with sines and cosines
    (which every runtime has), triangular filters on the mel scale of O'Shaughnessy (1987),
    logarithms as in Radford et al. 2022 (Whisper, arXiv 2212.04356).
    """

    def __init__(
        self, rate: int, mels: int, window: float = 0.025, hop: float = 0.010
    ) -> None:
        super().__init__()
        size = round(rate * window)
        self.hop, self.pad = round(rate * hop), size // 2
        bins = 1 << math.ceil(math.log2(size))
        waves = torch.from_numpy(_waves(size, bins)).float().unsqueeze(1)
        triangles = torch.from_numpy(filters(rate, mels, bins)).float()
        self.waves: Tensor
        self.filters: Tensor
        self.register_buffer("waves", waves, persistent=False)
        self.register_buffer("filters", triangles, persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Samples [N, S] -> [N, mels, frames], a frame every `hop` samples."""
        x = F.pad(samples.float().unsqueeze(1), (self.pad, self.pad))
        real, imaginary = F.conv1d(x, self.waves, stride=self.hop).chunk(
            2, dim=1
        )
        power = torch.matmul(self.filters, real * real + imaginary * imaginary)
        return _scaled(power.clamp(min=1e-16).log10())


def _scaled(levels: Tensor) -> Tensor:
    """Levels in bels [N, mels, frames] as -1..1, the loudest of a recording 1."""
    top = levels.amax((1, 2), keepdim=True)
    return torch.maximum(levels, top - RANGE).sub(top) / (RANGE / 2) + 1


def _waves(size: int, bins: int) -> Array:
    """Cosines and sines [bins + 2, size] of a Fourier transform of `bins` samples, under a Hann
    window.
    """
    angle = (
        2 * np.pi * np.outer(np.arange(bins // 2 + 1), np.arange(size)) / bins
    )
    window = np.hanning(size + 2)[1:-1]
    return np.concatenate([np.cos(angle), np.sin(angle)]) * window


def filters(rate: int, mels: int, bins: int) -> Array:
    """Triangular filters [mels, bins / 2 + 1] of equal area, evenly spaced in mel from 20 Hz to
    half the sampling rate. `rate` is in Hz, `bins` the size of the Fourier transform.
    """
    points = _mel_points(20.0, rate / 2, mels + 2)
    centres = np.arange(bins // 2 + 1) * rate / bins
    triangles = _triangles(points, centres)
    # A filter that lies between two bins of the spectrum takes the nearer one.
    empty = triangles.sum(1) == 0
    nearest = np.abs(centres - points[1:-1, None]).argmin(1)
    triangles[empty, nearest[empty]] = 1.0
    return np.asarray(triangles * (2 / (points[2:] - points[:-2]))[:, None])


def _mel_points(first: float, last: float, count: int) -> Array:
    """Frequencies in Hz, evenly spaced in mel."""
    low, high = (
        2595 * np.log10(1 + frequency / 700) for frequency in (first, last)
    )
    return np.asarray(700 * (10 ** (np.linspace(low, high, count) / 2595) - 1))


def _triangles(points: Array, centres: Array) -> Array:
    """Triangles [points - 2, centres], each from a point over the next one to the one after."""
    rising = (centres - points[:-2, None]) / (points[1:-1] - points[:-2])[
        :, None
    ]
    falling = (points[2:, None] - centres) / (points[2:] - points[1:-1])[
        :, None
    ]
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))


class SpecAugment(nn.Module):
    """Hides a random block of bands and one of frames in training (Park et al. 2019, arXiv
    1904.08779). `bands` and `frames` are the largest shares that are hidden.
    """

    def __init__(self, bands: float, frames: float) -> None:
        super().__init__()
        self.shares = (bands, frames)

    def forward(self, x: Tensor) -> Tensor:
        """[N, bands, frames] -> the same, in training with a stripe of each set to the mean."""
        if not self.training:
            return x
        for axis, share in enumerate(self.shares, 1):
            stripe = _random_stripe(x, x.shape[axis], share).unsqueeze(3 - axis)
            x = torch.where(stripe, x.mean((1, 2), keepdim=True), x)
        return x


def _random_stripe(x: Tensor, length: int, share: float) -> Tensor:
    """True [N, length] for a stripe of each row, of a random width up to this share."""
    widths = torch.rand(len(x), 1, device=x.device) * share * length
    starts = torch.rand(len(x), 1, device=x.device) * (length - widths)
    positions = torch.arange(length, device=x.device)
    return (positions >= starts) & (positions < starts + widths)
