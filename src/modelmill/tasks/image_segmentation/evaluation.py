"""Metrics of segmentation over all pixels but ignored ones, and pictures of answers."""

import io
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

import numpy as np

from modelmill.tasks.base import Evaluation, Measured
from modelmill.tasks.decoding.image_decoder import Pixels, read_pixels
from modelmill.tasks.image_segmentation import mask_arrays
from modelmill.types import Json

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
    labels = measured.labels
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    for answer, truth in zip(measured.outputs, measured.truths, strict=True):
        matrix += mask_arrays.confusion(
            mask_arrays.read(truth), _predicted_mask(answer), len(labels)
        )
    figures = _figures(matrix, labels)
    metrics = {**figures, "items": len(measured.truths)}
    return Evaluation(
        metrics=metrics, pictures=_pictures(measured, metrics["per_class"], matrix)
    )


def _predicted_mask(answer: Json) -> mask_arrays.Mask:
    return mask_arrays.read(b64decode(answer["mask"]))


def _figures(matrix: np.ndarray[Any, Any], labels: Sequence[str]) -> Json:
    correct = matrix.diagonal()
    true = matrix.sum(1)
    predicted = matrix.sum(0)
    present = (true + predicted) > 0
    iou = correct / np.maximum(true + predicted - correct, 1)
    dice = 2 * correct / np.maximum(true + predicted, 1)
    rows = zip(labels, iou, dice, correct / np.maximum(true, 1), true, strict=True)
    return {
        "miou": float(iou[present].mean()) if present.any() else 0.0,
        "pixel_accuracy": float(correct.sum() / max(matrix.sum(), 1)),
        "dice": float(dice[present].mean()) if present.any() else 0.0,
        "per_class": {
            label: {
                "iou": float(i),
                "dice": float(d),
                "recall": float(r),
                "pixels": int(pixels),
            }
            for label, i, d, r, pixels in rows
        },
    }


# ---- pictures


def _pictures(
    measured: Measured, per_class: Json, matrix: np.ndarray[Any, Any]
) -> dict[str, bytes]:
    from modelmill.tasks.evaluation.classification import confusion_picture

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
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(7, 1.2 + 0.3 * min(len(per_class), 150)), layout="constrained"
    )
    axes = figure.subplots()
    values = [row["iou"] for row in per_class.values()]
    positions = range(len(values))
    axes.barh(positions, values, color="#4878a8")
    axes.set_yticks(positions, list(per_class), parse_math=False)
    for panel, value in zip(positions, values, strict=True):
        axes.text(
            min(value + 0.01, 0.93), panel, f"{value:.2f}", va="center", fontsize=8
        )
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="IoU", title="Intersection over union by class (test)")
    return _saved(figure)


def _samples(measured: Measured) -> bytes:
    """Pictures beside their true and predicted classes, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count = len(measured.truths)
    rows = np.unique(np.linspace(0, count - 1, min(SHOWN, count)).astype(int)).tolist()
    colours = _colours(len(measured.labels))
    figure = Figure(figsize=(10, 2.7 * max(len(rows), 1) + 1), layout="constrained")
    grid = figure.subplots(max(len(rows), 1), 3, squeeze=False)
    present_classes: set[int] = set()
    for axes, row, raw in zip(grid, rows, measured.show(rows), strict=True):
        masks = [
            mask_arrays.read(measured.truths[row]),
            _predicted_mask(measured.outputs[row]),
        ]
        pixels, *masks = _reduced(read_pixels(raw), masks)
        present_classes |= {
            int(value)
            for mask in masks
            for value in np.unique(mask)
            if value < len(colours)
        }
        for panel, image in zip(
            axes,
            [pixels, *(_over(pixels, mask, colours) for mask in masks)],
            strict=True,
        ):
            panel.imshow(image)
    for panel, title in zip(grid[0], ("picture", "truth", "answer"), strict=True):
        panel.set_title(title)
    for panel in grid.flat:
        panel.axis("off")
    shown = sorted(present_classes)[:LEGEND]
    patches = [
        Patch(color=colours[at] / 255, label=measured.labels[at].replace("$", r"\$"))
        for at in shown
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8)
    return _saved(figure)


def _reduced(pixels: Pixels, masks: list[mask_arrays.Mask]) -> list[Any]:
    """A picture in RGB and its masks, subsampled to at most `SIDE` pixels."""
    step = max(1, -(-max(pixels.shape[:2]) // SIDE))
    colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return [part[::step, ::step] for part in (colour, *masks)]


def _over(
    pixels: Pixels, mask: mask_arrays.Mask, colours: np.ndarray[Any, Any]
) -> Pixels:
    """Class colours blended over a picture; ignored pixels stay dark."""
    table = np.zeros((256, 3))
    table[: len(colours)] = colours
    return np.asarray(0.4 * pixels + 0.6 * table[mask], np.uint8)


def _colours(count: int) -> np.ndarray[Any, Any]:
    """Distinct colours for classes, 0..255, [count, 3]."""
    from matplotlib import colormaps

    palette = colormaps["tab20"]
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    if count <= len(order):
        return np.array([palette(at)[:3] for at in order[:count]]) * 255
    return (
        np.array([colormaps["hsv"]((at * 0.618034) % 1)[:3] for at in range(count)])
        * 255
    )


def _saved(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, dpi=80)
    return out.getvalue()
