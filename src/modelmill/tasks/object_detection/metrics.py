"""COCO's average precision of predicted boxes, and pictures of it."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelmill.data.base import Box
from modelmill.tasks.base import Evaluation, Measured
from modelmill.tasks.decoding.image_decoder import read_pixels
from modelmill.tasks.object_detection.settings import NO_BOX
from modelmill.types import Json

SHOWN = 12
"""Sample pictures that are drawn."""
CURVES = 12
"""Classes whose precision-recall curve is drawn."""
MIN_DRAWN_SCORE = 0.3
"""Score from which a predicted box is drawn."""
Array = NDArray[Any]


class Boxes(NamedTuple):
    """The boxes of a picture: corners [M, 4], class numbers [M], and scores [M] of an answer, or
    flags of ignored boxes [M] of a truth.
    """

    boxes: Array
    classes: Array
    scores: Array


class Precision(NamedTuple):
    """Precision curves [10 IoUs from 0.5 by 0.05, 101 recalls, classes], -1 for classes without
    objects; the number of objects of each class.
    """

    curves: Array
    objects: list[int]

    def mean(self, *ious: int) -> float:
        """The average precision over the classes that have objects, at these IoU indices (default
        all); 0 without objects.
        """
        curves = self.curves[list(ious) or slice(None)]
        return float(curves[curves > -1].mean()) if (curves > -1).any() else 0.0

    def of_class(self, number: int) -> "Precision":
        """The precision of one class."""
        return Precision(self.curves[:, :, number : number + 1], [self.objects[number]])


def measure(
    predicted: Sequence[Boxes], truths: Sequence[Boxes], classes: int
) -> Precision:
    """The precision of found boxes as COCO counts it (pycocotools: 101 recalls, at most 100 boxes a
    picture).
    """
    from faster_coco_eval import COCO, COCOeval_faster

    no_print: Any = lambda *_: None  # noqa: E731
    pairs = [
        (number, *row)
        for number, one in enumerate(truths, 1)
        for row in zip(*one, strict=True)
    ]
    truth_index = COCO(
        {
            "images": [
                {"id": number, "width": 1, "height": 1}
                for number in range(1, len(truths) + 1)
            ],
            "categories": [
                {"id": number, "name": str(number)} for number in range(classes)
            ],
            "annotations": [
                {
                    **_coco_annotation(number, box, class_number),
                    "id": key,
                    "iscrowd": int(ignored),
                }
                for key, (number, box, class_number, ignored) in enumerate(pairs, 1)
            ],
        },
        print_function=no_print,
    )
    objects = [
        sum(
            int(class_number) == number and not ignored
            for _, _, class_number, ignored in pairs
        )
        for number in range(classes)
    ]
    rows = [
        {**_coco_annotation(number, box, class_number), "score": float(score)}
        for number, one in enumerate(predicted, 1)
        for box, class_number, score in zip(*one, strict=True)
    ]
    if not rows or not any(objects):
        flat = np.where(np.array(objects) > 0, 0.0, -1.0)
        return Precision(np.broadcast_to(flat, (10, 101, classes)), objects)
    coco_eval = COCOeval_faster(
        truth_index, truth_index.loadRes(rows), "bbox", print_function=no_print
    )
    coco_eval.evaluate()
    coco_eval.accumulate()
    return Precision(np.asarray(coco_eval.eval["precision"])[:, :, :, 0, -1], objects)


def _coco_annotation(picture: int, box: Array, class_number: int) -> Json:
    xmin, ymin, xmax, ymax = (float(side) for side in box)
    width, height = xmax - xmin, ymax - ymin
    return {
        "image_id": picture,
        "category_id": int(class_number),
        "bbox": [xmin, ymin, width, height],
        "area": width * height,
    }


def average_precision(
    scores: Array,
    boxes: Array,
    class_numbers: Array,
    true_boxes: Array,
    true_kinds: Array,
) -> float:
    """AP50 of padded batches: found [N, K], true [N, M] with a negative class where there is
    nothing to find.

    Rows that score 0 are no boxes.
    """
    predicted = [
        Boxes(b[s > 0], k[s > 0], s[s > 0])
        for s, b, k in zip(scores, boxes, class_numbers, strict=True)
    ]
    truths = [
        Boxes(b[k != NO_BOX], np.maximum(k, 0)[k != NO_BOX], k[k != NO_BOX] < 0)
        for b, k in zip(true_boxes, true_kinds, strict=True)
    ]
    highest = max(
        (int(one.classes.max(initial=0)) for one in (*predicted, *truths)), default=0
    )
    return measure(predicted, truths, highest + 1).mean(0)


def evaluate(measured: Measured) -> Evaluation:
    """COCO's `map` (mean over IoU 0.5 to 0.95), `ap50`, `ap75`, the same per class,
    precision-recall curves, samples.

    Outputs are complete answers, truths lists of `Box`; ignored boxes are neither right nor wrong.
    """
    labels = list(measured.labels)
    number = {label: at for at, label in enumerate(labels)}
    predicted = [_answer(answer, number) for answer in measured.outputs]
    truths = [_truth(boxes, number) for boxes in measured.truths]
    precision = measure(predicted, truths, len(labels))
    metrics: Json = {
        "map": precision.mean(),
        "ap50": precision.mean(0),
        "ap75": precision.mean(5),
        "items": len(truths),
        "objects": sum(precision.objects),
        "per_class": {},
    }
    for at, label in enumerate(labels):
        one = precision.of_class(at)
        figures = {"ap": one.mean(), "ap50": one.mean(0), "ap75": one.mean(5)}
        metrics["per_class"][label] = {**figures, "objects": one.objects[0]}
    pictures = {"precision_recall.png": curves_picture(precision, labels)}
    if truths:
        pictures["samples.png"] = samples_picture(measured)
    return Evaluation(metrics=metrics, pictures=pictures)


def _answer(answer: Any, number: dict[str, int]) -> Boxes:
    corners = [
        [row["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
        for row in answer
    ]
    class_numbers = np.array([number[row["label"]] for row in answer], np.int64)
    return Boxes(
        np.array(corners, float).reshape(-1, 4),
        class_numbers,
        np.array([row["score"] for row in answer], float),
    )


def _truth(boxes: Sequence[Box], number: dict[str, int]) -> Boxes:
    labelled = [box for box in boxes if box.label in number]
    corners = np.array(
        [[box.xmin, box.ymin, box.xmax, box.ymax] for box in labelled], float
    ).reshape(-1, 4)
    class_numbers = np.array([number[box.label] for box in labelled], np.int64)
    return Boxes(
        corners, class_numbers, np.array([box.ignored for box in labelled], bool)
    )


def curves_picture(precision: Precision, labels: Sequence[str]) -> bytes:
    """Precision over recall at IoU 0.5 as a PNG: the classes with the most objects, and the mean of
    all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    objects = np.array(precision.objects)
    for at in np.argsort(-objects, kind="stable")[:CURVES]:
        if objects[at] and len(labels) > 1:
            name = f"{labels[at]} ({precision.of_class(int(at)).mean(0):.2f})"
            axes.plot(
                recall, precision.curves[0, :, at], linewidth=1, label=_plain(name)
            )
    if objects.any():
        mean = precision.curves[0][:, objects > 0].mean(1)
        axes.plot(
            recall,
            mean,
            color="black",
            linewidth=2,
            label=f"AP50 {precision.mean(0):.3f}",
        )
        axes.legend(fontsize=8)
    axes.set(
        xlabel="recall",
        ylabel="precision",
        xlim=(0, 1),
        ylim=(0, 1.02),
        title="Precision and recall, IoU 0.5",
    )
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return buffer.getvalue()


def samples_picture(measured: Measured) -> bytes:
    """Some pictures as a PNG, true boxes green, found ones red with their score."""
    from matplotlib.figure import Figure

    rows = np.unique(
        np.linspace(0, len(measured.truths) - 1, SHOWN).astype(int)
    ).tolist()
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(3.2 * columns, 3 * lines), layout="constrained")
    cells = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axes in cells:
        axes.axis("off")
    for axes, row, raw in zip(
        cells[: len(rows)], rows, measured.show(rows), strict=True
    ):
        pixels = read_pixels(raw)
        axes.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None, vmin=0, vmax=255)
        for box in measured.truths[row]:
            _draw(
                axes,
                (box.xmin, box.ymin, box.xmax, box.ymax),
                "limegreen",
                box.label if box.ignored else "",
            )
        for one in measured.outputs[row]:
            if one["score"] >= MIN_DRAWN_SCORE:
                corners = tuple(
                    one["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")
                )
                _draw(axes, corners, "red", f"{one['label']} {one['score']:.2f}")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    return buffer.getvalue()


def _draw(axes: Any, box: Sequence[float], color: str, text: str) -> None:
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
        axes.text(
            xmin,
            ymin,
            _plain(text),
            color="white",
            backgroundcolor=color,
            fontsize=6,
            parse_math=False,
        )


def _plain(text: str) -> str:
    """A label for a legend, where '$' would begin a formula and a leading '_' would hide it."""
    return text.replace("$", r"\$").removeprefix("_")
