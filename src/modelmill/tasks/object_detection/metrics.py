"""COCO's figures of a detector."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelmill.data.base import Box
from modelmill.tasks.base import Evaluation, Measured
from modelmill.tasks.object_detection.pictures import (
    curves_picture,
    samples_picture,
)
from modelmill.tasks.object_detection.precision import Boxes, Precision, measure
from modelmill.tasks.object_detection.settings import SIDES
from modelmill.types import Json

Array = NDArray[Any]


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
    metrics = _figures(precision, labels, len(truths))
    pictures = {"precision_recall.png": curves_picture(precision, labels)}
    if truths:
        pictures["samples.png"] = samples_picture(measured)
    return Evaluation(metrics=metrics, pictures=pictures)


def _figures(precision: Precision, labels: list[str], items: int) -> Json:
    return {
        "map": precision.mean(),
        "ap50": precision.mean(0),
        "ap75": precision.mean(5),
        "items": items,
        "objects": sum(precision.objects),
        "per_class": {
            label: _figures_of_class(precision.of_class(at))
            for at, label in enumerate(labels)
        },
    }


def _figures_of_class(precision: Precision) -> Json:
    return {
        "ap": precision.mean(),
        "ap50": precision.mean(0),
        "ap75": precision.mean(5),
        "objects": precision.objects[0],
    }


def _answer(answer: Any, number: dict[str, int]) -> Boxes:
    return Boxes(
        _corners([[row["box"][side] for side in SIDES] for row in answer]),
        np.array([number[row["label"]] for row in answer], np.int64),
        np.array([row["score"] for row in answer], float),
    )


def _truth(boxes: Sequence[Box], number: dict[str, int]) -> Boxes:
    labelled = [box for box in boxes if box.label in number]
    return Boxes(
        _corners(
            [[box.xmin, box.ymin, box.xmax, box.ymax] for box in labelled]
        ),
        np.array([number[box.label] for box in labelled], np.int64),
        np.array([box.ignored for box in labelled], bool),
    )


def _corners(boxes: list[list[float]]) -> Array:
    """Corners [N, 4], also of no box."""
    return np.array(boxes, float).reshape(-1, 4)
