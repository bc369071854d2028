"""Pictures of an evaluation of boxes: precision-recall curves, and samples with their boxes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from modelmill.data.base import Box
from modelmill.tasks.base import Measured
from modelmill.tasks.decoding.image_decoder import read_pixels
from modelmill.tasks.evaluation import figures
from modelmill.tasks.object_detection.precision import Precision
from modelmill.tasks.object_detection.settings import SIDES
from modelmill.types import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 12
"""Sample pictures that are drawn."""
COLUMNS = 4
"""Sample pictures in a row."""
CURVES = 12
"""Classes whose precision-recall curve is drawn."""
MIN_DRAWN_SCORE = 0.3
"""Score from which a predicted box is drawn."""
RECALLS = np.linspace(0, 1, 101)


def curves_picture(precision: Precision, labels: Sequence[str]) -> bytes:
    """Precision over recall at IoU 0.5 as a PNG: the classes with the most objects, and the mean of
    all.
    """
    figure = figures.blank(6.4, 5)
    axes = figure.subplots()
    if len(labels) > 1:
        _draw_curves_of_classes(axes, precision, labels)
    if any(precision.objects):
        _draw_mean_curve(axes, precision)
        axes.legend(fontsize=8)
    axes.set(
        xlabel="recall",
        ylabel="precision",
        xlim=(0, 1),
        ylim=(0, 1.02),
        title="Precision and recall, IoU 0.5",
    )
    axes.grid(alpha=0.3)
    return figures.as_png(figure)


def _draw_curves_of_classes(
    axes: "Axes", precision: Precision, labels: Sequence[str]
) -> None:
    objects = np.array(precision.objects)
    for at in np.argsort(-objects, kind="stable")[:CURVES]:
        if objects[at]:
            name = f"{labels[at]} ({precision.of_class(int(at)).mean(0):.2f})"
            curve = precision.curves[0, :, at]
            axes.plot(RECALLS, curve, linewidth=1, label=_plain(name))


def _draw_mean_curve(axes: "Axes", precision: Precision) -> None:
    present = np.array(precision.objects) > 0
    mean = precision.curves[0][:, present].mean(1)
    name = f"AP50 {precision.mean(0):.3f}"
    axes.plot(RECALLS, mean, color="black", linewidth=2, label=name)


def samples_picture(measured: Measured) -> bytes:
    """Some pictures as a PNG, true boxes green, found ones red with their score."""
    rows = figures.spread(len(measured.truths), SHOWN)
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    figure = figures.blank(3.2 * columns, 3 * lines)
    cells = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axes in cells:
        axes.axis("off")
    shown = measured.show(rows)
    for axes, row, raw in zip(cells[: len(rows)], rows, shown, strict=True):
        figures.show(axes, read_pixels(raw))
        _draw_true_boxes(axes, measured.truths[row])
        _draw_found_boxes(axes, measured.outputs[row])
    return figures.as_png(figure, dpi=90)


def _draw_true_boxes(axes: "Axes", boxes: Sequence[Box]) -> None:
    for box in boxes:
        corners = (box.xmin, box.ymin, box.xmax, box.ymax)
        _draw(axes, corners, "limegreen", box.label if box.ignored else "")


def _draw_found_boxes(axes: "Axes", answer: Sequence[Json]) -> None:
    for found in answer:
        if found["score"] >= MIN_DRAWN_SCORE:
            corners = [found["box"][side] for side in SIDES]
            _draw(
                axes, corners, "red", f"{found['label']} {found['score']:.2f}"
            )


def _draw(axes: "Axes", box: Sequence[float], color: str, text: str) -> None:
    from matplotlib.patches import Rectangle

    xmin, ymin, xmax, ymax = box
    axes.add_patch(
        Rectangle(
            (xmin, ymin),
            xmax - xmin,
            ymax - ymin,
            fill=False,
            edgecolor=color,
            linewidth=1.5,
        )
    )
    if text:
        _write(axes, xmin, ymin, text, color)


def _write(
    axes: "Axes", x: float, y: float, text: str, background: str
) -> None:
    axes.text(
        x,
        y,
        _plain(text),
        color="white",
        backgroundcolor=background,
        fontsize=6,
        parse_math=False,
    )


def _plain(text: str) -> str:
    """A label for a legend, where '$' would begin a formula and a leading '_' would hide it."""
    return text.replace("$", r"\$").removeprefix("_")
