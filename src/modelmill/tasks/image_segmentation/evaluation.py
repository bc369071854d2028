"""Metrics of segmentation over all pixels but ignored ones, and pictures of answers."""

from base64 import b64decode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modelmill.tasks.base import Evaluation, Measured, Raw
from modelmill.tasks.decoding.image_decoder import Pixels, read_pixels
from modelmill.tasks.evaluation import figures
from modelmill.tasks.evaluation.classification import confusion_picture
from modelmill.tasks.image_segmentation import mask_arrays
from modelmill.types import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

SHOWN = 6
SIDE = 480
"""Longest side of a picture in the sheet of samples."""
LEGEND = 24


def evaluate(measured: Measured) -> Evaluation:
    """mIoU, mean Dice and pixel accuracy from one confusion matrix of all pixels, and figures of
    each class.

    The means are over the classes that a truth or an answer holds (Everingham et al. 2015, section
    3.5.1; IoU is correct / (true + predicted - correct) pixels of all pictures together).
    """
    matrix = _confusion(measured)
    metrics = _metrics(matrix, measured.labels)
    metrics["items"] = len(measured.truths)
    pictures = _pictures(measured, metrics["per_class"], matrix)
    return Evaluation(metrics=metrics, pictures=pictures)


def _confusion(measured: Measured) -> Array:
    """The confusion matrix [truth, guess] of the pixels of all pictures."""
    count = len(measured.labels)
    matrix = np.zeros((count, count), np.int64)
    for answer, truth in zip(measured.outputs, measured.truths, strict=True):
        matrix += mask_arrays.confusion(
            mask_arrays.read(truth), _predicted_mask(answer), count
        )
    return matrix


def _predicted_mask(answer: Json) -> mask_arrays.Mask:
    return mask_arrays.read(b64decode(answer["mask"]))


def _metrics(matrix: Array, labels: Sequence[str]) -> Json:
    correct, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou = correct / np.maximum(true + predicted - correct, 1)
    dice = 2 * correct / np.maximum(true + predicted, 1)
    recall = correct / np.maximum(true, 1)
    present = (true + predicted) > 0
    return {
        "miou": _mean(iou[present]),
        "pixel_accuracy": float(correct.sum() / max(matrix.sum(), 1)),
        "dice": _mean(dice[present]),
        "per_class": {
            label: {
                "iou": float(iou[row]),
                "dice": float(dice[row]),
                "recall": float(recall[row]),
                "pixels": int(true[row]),
            }
            for row, label in enumerate(labels)
        },
    }


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else 0.0


# ---- pictures


def _pictures(
    measured: Measured, per_class: Json, matrix: Array
) -> dict[str, bytes]:
    pictures = {"iou.png": _bars(per_class), "samples.png": _samples(measured)}
    if len(measured.labels) <= LEGEND:
        # In per cent: counts of pixels are long
        shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        pictures["confusion.png"] = confusion_picture(
            np.rint(shares).astype(int), measured.labels
        )
    return pictures


def _bars(per_class: Json) -> bytes:
    """IoU of each class."""
    figure = figures.blank(7, 1.2 + 0.3 * min(len(per_class), 150))
    axes = figure.subplots()
    values = [row["iou"] for row in per_class.values()]
    positions = range(len(values))
    axes.barh(positions, values, color="#4878a8")
    axes.set_yticks(positions, list(per_class), parse_math=False)
    for place, value in enumerate(values):
        x = min(value + 0.01, 0.93)
        axes.text(x, place, f"{value:.2f}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 1),
        xlabel="IoU",
        title="Intersection over union by class (test)",
    )
    return figures.as_png(figure, dpi=80)


def _samples(measured: Measured) -> bytes:
    """Pictures beside their true and predicted classes, as a PNG."""
    rows = figures.spread(len(measured.truths), SHOWN)
    lines = max(len(rows), 1)
    figure = figures.blank(10, 2.7 * lines + 1)
    grid = figure.subplots(lines, 3, squeeze=False)
    present: set[int] = set()
    for axes, row, raw in zip(grid, rows, measured.show(rows), strict=True):
        pixels, masks = _sample(measured, row, raw)
        present.update(*(np.unique(mask).tolist() for mask in masks))
        _draw_sample(axes, pixels, masks, len(measured.labels))
    for panel, title in zip(
        grid[0], ("picture", "truth", "answer"), strict=True
    ):
        panel.set_title(title)
    for panel in grid.flat:
        panel.axis("off")
    _draw_legend(figure, sorted(present), measured.labels)
    return figures.as_png(figure, dpi=80)


def _draw_sample(
    axes: Sequence["Axes"],
    pixels: Pixels,
    masks: list[mask_arrays.Mask],
    classes: int,
) -> None:
    """A picture, and its masks over it."""
    colours = _colours(classes)
    shown = [pixels, *(_over(pixels, mask, colours) for mask in masks)]
    for panel, image in zip(axes, shown, strict=True):
        panel.imshow(image)


def _sample(
    measured: Measured, row: int, raw: Raw
) -> tuple[Pixels, list[mask_arrays.Mask]]:
    """A picture and its true and predicted classes, small enough for the sheet."""
    masks = [
        mask_arrays.read(measured.truths[row]),
        _predicted_mask(measured.outputs[row]),
    ]
    pixels, *small = _reduced(read_pixels(raw), masks)
    return pixels, small


def _draw_legend(
    figure: "Figure", present: Sequence[int], labels: Sequence[str]
) -> None:
    """The colours of the first classes; ignored pixels have none."""
    from matplotlib.patches import Patch

    colours = _colours(len(labels))
    shown = [at for at in present if at < len(labels)][:LEGEND]
    patches = [
        Patch(color=colours[at] / 255, label=labels[at].replace("$", r"\$"))
        for at in shown
    ]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=6, fontsize=8
    )


def _reduced(pixels: Pixels, masks: list[mask_arrays.Mask]) -> list[Any]:
    """A picture in RGB and its masks, subsampled to at most `SIDE` pixels."""
    step = max(1, -(-max(pixels.shape[:2]) // SIDE))
    colour = (
        pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    )
    return [part[::step, ::step] for part in (colour, *masks)]


def _over(pixels: Pixels, mask: mask_arrays.Mask, colours: Array) -> Pixels:
    """Class colours blended over a picture; ignored pixels stay dark."""
    table = np.zeros((256, 3))
    table[: len(colours)] = colours
    return np.asarray(0.4 * pixels + 0.6 * table[mask], np.uint8)


def _colours(count: int) -> Array:
    """Distinct colours for classes, 0..255, [count, 3]."""
    from matplotlib import colormaps

    order = [*range(0, 20, 2), *range(1, 20, 2)]
    if count <= len(order):
        colours = [colormaps["tab20"](at) for at in order[:count]]
    else:
        colours = [colormaps["hsv"]((at * 0.618034) % 1) for at in range(count)]
    return np.array([colour[:3] for colour in colours]) * 255
