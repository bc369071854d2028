"""DDIM sampling of a diffusion model, in numpy around the engine's runs."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def denoised(
    velocity: Callable[[Array, Array], Array], noise: Array, steps: int
) -> Array:
    """Pictures -1..1 [N, ...] from standard normal noise, by `steps` equal DDIM steps from time 1
    to 0.

    At the time t a noisy picture is cos(pi t / 2) of the picture and sin(pi t / 2) of the noise
    (the cosine schedule without its offset, Nichol and Dhariwal 2021, arXiv 2102.09672); the
    network gives the velocity cos * noise - sin * picture (Salimans and Ho 2022, arXiv 2202.00512).
    A step keeps the noise and is deterministic (Song et al. 2020, arXiv 2010.02502, eta = 0).
    """
    x = noise
    times = np.linspace(1, 0, steps + 1, dtype=np.float32)
    for now, later in pairwise(times):
        time = np.full(len(x), now, np.float32)
        v = velocity(np.ascontiguousarray(x, np.float32), time)
        picture, remaining = _separated(x, v, now)
        cos, sin = _shares(later)
        x = cos * picture + sin * remaining
    return x


def _shares(time: Array) -> tuple[Array, Array]:
    """How much of picture and noise there is at a time."""
    return np.cos(time * np.pi / 2), np.sin(time * np.pi / 2)


def _separated(x: Array, velocity: Array, time: Array) -> tuple[Array, Array]:
    """The picture, clipped to -1..1, and the noise that goes with it."""
    cos, sin = _shares(time)
    picture = np.clip(cos * x - sin * velocity, -1, 1)
    return picture, (x - cos * picture) / sin
