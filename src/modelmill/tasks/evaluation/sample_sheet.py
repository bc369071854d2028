"""Sheets of samples: small pictures in rows, each with a line or two below it."""

import io
from collections.abc import Sequence

from modelmill.tasks.base import Raw
from modelmill.tasks.decoding.image_decoder import Preprocessing, decode

SIDE = 128
COLUMNS = 6
LINE_LENGTH = 22
"""Characters of a caption's line that fit below a picture."""


def sheet(title: str, pictures: Sequence[Raw], captions: Sequence[str]) -> bytes:
    """A PNG of pictures with their captions, in rows of `COLUMNS`; raises `InvalidInput` for a
    damaged picture.
    """
    from matplotlib.figure import Figure

    options = Preprocessing(
        height=SIDE, width=SIDE, color="rgb", fit="pad", dct_scaling=True
    )
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(
        figsize=(max(3.5, 1.75 * columns), 2.2 * rows + 0.4), layout="constrained"
    )
    figure.suptitle(title)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    for axes, picture, caption in zip(cells, pictures, captions, strict=False):
        axes.imshow(decode(picture, options))
        lines = [
            line if len(line) <= LINE_LENGTH else f"{line[: LINE_LENGTH - 1]}…"
            for line in caption.splitlines()
        ]
        axes.set_title(
            "\n".join(lines), fontsize=8, y=-0.04, pad=0, va="top", parse_math=False
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return buffer.getvalue()
