"""Matplotlib figures, as the pictures of an evaluation are drawn."""

import io
from typing import TYPE_CHECKING

import numpy as np

from modelmill.tasks.decoding.image_decoder import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def blank(width: float, height: float, *, fitted: bool = True) -> "Figure":
    """An empty figure of this size in inches; `fitted`, its parts are laid out to fill it without
    overlap.
    """
    from matplotlib.figure import Figure

    return Figure(
        figsize=(width, height), layout="constrained" if fitted else None
    )


def as_png(figure: "Figure", dpi: int = 100, *, cut: bool = False) -> bytes:
    """A figure as PNG, with `dpi` pixels an inch; `cut` to what is drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, bbox_inches="tight" if cut else None)
    return buffer.getvalue()


def show(axes: "Axes", pixels: Pixels) -> None:
    """Draw a picture [H, W], in grey, or [H, W, 3]."""
    axes.imshow(
        pixels, cmap="gray" if pixels.ndim == 2 else None, vmin=0, vmax=255
    )


def spread(count: int, most: int) -> list[int]:
    """At most so many of `count` rows, spread evenly over all."""
    places = np.linspace(0, count - 1, min(most, count)).astype(int)
    rows: list[int] = np.unique(places).tolist()
    return rows
