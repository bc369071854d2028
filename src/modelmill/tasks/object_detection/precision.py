"""COCO's average precision of predicted boxes."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelmill.tasks.object_detection.settings import NO_BOX
from modelmill.types import Json

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
        return Precision(
            self.curves[:, :, number : number + 1], [self.objects[number]]
        )


def measure(
    predicted: Sequence[Boxes], truths: Sequence[Boxes], classes: int
) -> Precision:
    """The precision of found boxes as COCO counts it (pycocotools: 101 recalls, at most 100 boxes a
    picture).
    """
    objects = _objects(truths, classes)
    found = [
        {**_coco_annotation(picture, box, number), "score": float(score)}
        for picture, box, number, score in _numbered(predicted)
    ]
    if not found or not any(objects):
        flat = np.where(np.array(objects) > 0, 0.0, -1.0)
        return Precision(np.broadcast_to(flat, (10, 101, classes)), objects)
    return Precision(_coco_curves(_coco_index(truths, classes), found), objects)


def _numbered(boxes: Sequence[Boxes]) -> Iterator[tuple[int, Array, int, Any]]:
    """Each box with the number of its picture, from 1: `(picture, corners, class, score)`."""
    for number, one in enumerate(boxes, 1):
        for box, class_number, score in zip(*one, strict=True):
            yield number, box, int(class_number), score


def _objects(truths: Sequence[Boxes], classes: int) -> list[int]:
    """How many objects each class has, without ignored ones."""
    counts = np.zeros(classes, int)
    for one in truths:
        counts += np.bincount(
            one.classes[~one.scores.astype(bool)], minlength=classes
        )
    return [int(count) for count in counts]


def _coco_index(truths: Sequence[Boxes], classes: int) -> Any:
    """The true boxes as `faster_coco_eval` reads them."""
    from faster_coco_eval import COCO

    numbers = range(1, len(truths) + 1)
    images = [{"id": number, "width": 1, "height": 1} for number in numbers]
    categories = [
        {"id": number, "name": str(number)} for number in range(classes)
    ]
    annotations = [
        _coco_annotation(picture, box, number)
        | {"id": key, "iscrowd": int(ignored)}
        for key, (picture, box, number, ignored) in enumerate(
            _numbered(truths), 1
        )
    ]
    contents = {
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }
    return COCO(contents, print_function=_silent)


def _coco_curves(truth_index: Any, found: list[Json]) -> Array:
    """Precision [10 IoUs, 101 recalls, classes] of objects of all sizes."""
    from faster_coco_eval import COCOeval_faster

    found_index = truth_index.loadRes(found)
    coco_eval = COCOeval_faster(
        truth_index, found_index, "bbox", print_function=_silent
    )
    coco_eval.evaluate()
    coco_eval.accumulate()
    return np.asarray(coco_eval.eval["precision"])[:, :, :, 0, -1]


def _silent(*_: object) -> None:
    """Prints nothing."""


def _coco_annotation(picture: int, box: Array, class_number: int) -> Json:
    xmin, ymin, xmax, ymax = (float(side) for side in box)
    width, height = xmax - xmin, ymax - ymin
    return {
        "image_id": picture,
        "category_id": class_number,
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
        _unpadded(b, k) for b, k in zip(true_boxes, true_kinds, strict=True)
    ]
    highest = max(
        (_highest_class(one) for one in (*predicted, *truths)), default=0
    )
    return measure(predicted, truths, highest + 1).mean(0)


def _unpadded(boxes: Array, classes: Array) -> Boxes:
    """The true boxes of a padded picture; a negative class is ignored."""
    present = classes != NO_BOX
    return Boxes(
        boxes[present], np.maximum(classes, 0)[present], classes[present] < 0
    )


def _highest_class(boxes: Boxes) -> int:
    return int(boxes.classes.max(initial=0))
