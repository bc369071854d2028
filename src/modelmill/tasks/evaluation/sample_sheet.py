"""Sheets of samples: small pictures in rows, each with a line or two below it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelmill.tasks.base import Raw
from modelmill.tasks.decoding.image_decoder import Preprocessing, decode
from modelmill.tasks.evaluation import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE = 128
SMALL = Preprocessing(
    height=SIDE, width=SIDE, color="rgb", fit="pad", dct_scaling=True
)
COLUMNS = 6
LINE_LENGTH = 22
"""Characters of a caption's line that fit below a picture."""


def sheet(
    title: str, pictures: Sequence[Raw], captions: Sequence[str]
) -> bytes:
    """A PNG of pictures with their captions, in rows of `COLUMNS`; raises `InvalidInput` for a
    damaged picture.
    """
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = figures.blank(max(3.5, 1.75 * columns), 2.2 * rows + 0.4)
    figure.suptitle(title)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    for axes, picture, caption in zip(cells, pictures, captions, strict=False):
        axes.imshow(decode(picture, SMALL))
        _write_below(axes, caption)
    return figures.as_png(figure)


def _write_below(axes: "Axes", caption: str) -> None:
    lines = [
        line if len(line) <= LINE_LENGTH else f"{line[: LINE_LENGTH - 1]}…"
        for line in caption.splitlines()
    ]
    axes.set_title(
        "\n".join(lines), fontsize=8, y=-0.04, pad=0, va="top", parse_math=False
    )
