"""object-detection: a picture in, labels with scores and boxes out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelmill.data.base import Box
from modelmill.tasks.base import (
    NOTE,
    Arrays,
    Context,
    Evaluation,
    Item,
    Items,
    Model,
    Raw,
)
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.decoding.image_decoder import Placement, Preprocessing
from modelmill.tasks.inputs import ImageTask
from modelmill.tasks.object_detection.settings import (
    IGNORED,
    NO_BOX,
    SIDES,
    TOP,
)
from modelmill.types import Json, Struct, TensorSpec

STRIDE = 32
"""Sizes taken from the data are multiples of it, which the networks halve five times."""
MOST = 128
"""Boxes of a picture that are trained on, the largest."""
THRESHOLD = 0.3
LEAST = 0.01
"""The score from which boxes count for the average precision."""
OVERLAP = 0.6
"""The IoU from which the weaker of two boxes of a class is taken for the same object."""
SENT = f"{NOTE}size"
Array = NDArray[Any]


class Parameters(Struct, frozen=True, kw_only=True):
    """Which boxes are answered."""

    threshold: Annotated[
        float, msgspec.Meta(ge=0, le=1, description="least score of a box")
    ] = THRESHOLD


class ObjectDetection(ImageTask):
    """Boxes with labels and scores for a picture."""

    SUMMARY = "find the objects in a picture"
    GIVES = "boxes"
    TARGETS = ("boxes",)
    CLASSES = 1
    METRIC = "map"
    RECIPE = "centernet"
    SAMPLES = 500
    PARAMETERS = Parameters

    def prepare(
        self, samples: Sequence[Raw], preprocessing: Preprocessing, folder: Path
    ) -> Preprocessing:
        """Size, colour and normalisation taken from the training pictures."""
        if not (preprocessing.height and preprocessing.width):
            preprocessing = _with_usual_size(samples, preprocessing)
        return image_decoder.prepare(samples, preprocessing)

    def outputs(self, context: Context) -> list[TensorSpec]:
        """The 100 best boxes, best first: scores 0..1, corners in 0..1 of the model's frame, and
        class numbers.
        """
        return [
            TensorSpec(name="scores", datatype="FP32", shape=[-1, TOP]),
            TensorSpec(name="boxes", datatype="FP32", shape=[-1, TOP, 4]),
            TensorSpec(name="classes", datatype="INT64", shape=[-1, TOP]),
        ]

    def decode(
        self, data: Raw, context: Context, parameters: Any = None
    ) -> Arrays:
        """`image`: uint8 [height, width, channels], and a note of the height and width that were
        sent.

        Raises `InvalidInput`, `TooLarge`.
        """
        image = image_decoder.decode(data, context.preprocessing)
        return {
            "image": image,
            SENT: np.array(image_decoder.size_of(data), np.int32),
        }

    def encode(
        self, arrays: Arrays, context: Context, parameters: Parameters
    ) -> list[Json]:
        """`[{label, score, box: {xmin, ymin, xmax, ymax}}]`, best first.

        Corners are whole pixels of the upright picture that was sent, the far ones excluded. Boxes
        score at least `threshold`; of two of a class that overlap by an IoU of
        0.6 the better one stays.
        """
        rows = _answered(arrays["scores"], parameters.threshold)
        if not len(rows):
            return []
        boxes = _frame_of(arrays[SENT], context.preprocessing).to_picture(
            arrays["boxes"][rows]
        )
        scores, kinds = arrays["scores"][rows], arrays["classes"][rows]
        return [
            {
                "label": context.labels[int(kinds[at])],
                "score": round(float(scores[at]), 6),
                "box": dict(
                    zip(SIDES, boxes[at].astype(int).tolist(), strict=True)
                ),
            }
            for at in _best(boxes, kinds)
            if (boxes[at, 2:] > boxes[at, :2]).all()
        ]

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """`image`; `boxes` float32 [128, 4] in 0..1 of the model's frame and `classes` int64 [128].

        The class is -1 where there is no box and -2 where one is ignored; the largest 128 boxes are
        kept.
        """
        arrays = self.decode(item.data, context)
        found = self.expected(item)
        frame = _frame_of(arrays.pop(SENT), context.preprocessing)
        places = frame.from_picture(_corners(found))
        chosen = _largest(places)
        boxes = np.zeros((MOST, 4), np.float32)
        boxes[: len(chosen)] = places[chosen]
        classes = np.full(MOST, NO_BOX, np.int64)
        classes[: len(chosen)] = [
            _class_number(found[row], context.labels) for row in chosen
        ]
        return arrays, {"boxes": boxes, "classes": classes}

    def expected(self, item: Item) -> list[Box]:
        """The boxes."""
        return list(item.target) if isinstance(item.target, list) else []

    def full_parameters(self, labels: Sequence[str]) -> Parameters:
        """All boxes that could count."""
        return Parameters(threshold=LEAST)

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """COCO's average precision, curves and samples."""
        from modelmill.tasks.object_detection.metrics import evaluate

        return evaluate(self.measured(model, items))

    def same_answer(self, one: Any, other: Any, tolerance: float) -> bool:
        """Whether two answers are the same but for rounding.

        Each box whose score is clear of the threshold has a counterpart: its label, nearly its
        score, and its place.
        """
        return _held(one, other, tolerance) and _held(other, one, tolerance)

    def example(self) -> bytes:
        """A small bright square on grey as PNG."""
        pixels = np.full((48, 64, 3), 90, np.uint8)
        pixels[12:36, 20:44] = (230, 60, 40)
        return image_decoder.png(pixels)


def _with_usual_size(
    samples: Sequence[Raw], how: Preprocessing
) -> Preprocessing:
    """The settings with the median size of the samples where none is given, as far as `max_side`
    allows.
    """
    height, width = np.median(
        [image_decoder.size_of(raw) for raw in samples], axis=0
    )
    scale = min(1.0, how.max_side / max(height, width))
    sides = [
        max(STRIDE, round(side * scale / STRIDE) * STRIDE)
        for side in (height, width)
    ]
    return msgspec.structs.replace(
        how, height=how.height or sides[0], width=how.width or sides[1]
    )


class Frame(NamedTuple):
    """The model's frame, and where in it a picture of this size lies."""

    how: Preprocessing
    place: Placement
    height: int
    width: int

    @property
    def sides(self) -> Array:
        """Width and height of the frame, twice."""
        return np.array([self.how.width, self.how.height] * 2)

    @property
    def corner(self) -> Array:
        """Left and top of the picture in the frame, twice."""
        return np.array([self.place.left, self.place.top] * 2)

    def to_picture(self, boxes: Array) -> Array:
        """Corners [N, 4] in 0..1 of the frame as whole pixels of the picture."""
        size = np.array([self.place.width, self.place.height] * 2)
        picture = [self.width, self.height] * 2
        pixels = (boxes * self.sides - self.corner) / size * picture
        return np.asarray(np.clip(np.rint(pixels), 0, picture))

    def from_picture(self, corners: Array) -> Array:
        """Pixels [N, 4] of the picture as corners in 0..1 of the frame, which cuts them."""
        scale = np.array(
            [self.place.width / self.width, self.place.height / self.height] * 2
        )
        pixels = corners * scale + self.corner
        return np.asarray(np.clip(pixels / self.sides, 0, 1))


def _frame_of(sent: Array, how: Preprocessing) -> Frame:
    """The frame of a picture whose height and width were noted."""
    height, width = (int(side) for side in sent)
    return Frame(how, image_decoder.placed((height, width), how), height, width)


def _answered(scores: Array, threshold: float) -> Array:
    """The rows that score at least the threshold, the best first; padding scores 0."""
    rows = np.flatnonzero(scores >= max(threshold, 1e-9))
    return rows[np.argsort(-scores[rows], kind="stable")]


def _corners(boxes: Sequence[Box]) -> Array:
    """Corners [N, 4], also of no box."""
    corners = [[box.xmin, box.ymin, box.xmax, box.ymax] for box in boxes]
    return np.array(corners, np.float64).reshape(-1, 4)


def _largest(boxes: Array) -> list[int]:
    """The rows of the largest boxes, those without an area left out."""
    area = _areas(boxes)
    order = np.argsort(-area, kind="stable")
    return [int(row) for row in order if area[row] > 0][:MOST]


def _class_number(box: Box, labels: Sequence[str]) -> int:
    return IGNORED if box.ignored else labels.index(box.label)


def _best(boxes: Array, kinds: Array) -> list[int]:
    """Rows, best first, without those that overlap a better one of their class."""
    overlap = (_iou(boxes, boxes) > OVERLAP) & (kinds[:, None] == kinds[None])
    kept: list[int] = []
    for row in range(len(boxes)):
        if not overlap[row, kept].any():
            kept.append(row)
    return kept


def _iou(one: Array, other: Array) -> Array:
    """[N, M] of corners [N, 4] and [M, 4]."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(2)
    union = _areas(one)[:, None] + _areas(other)[None] - common
    return np.asarray(common / np.maximum(union, 1e-9))


def _areas(boxes: Array) -> Array:
    """[N] of corners [N, 4]."""
    return np.asarray(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1))


def _held(one: Any, other: Any, tolerance: float) -> bool:
    return all(
        any(_same(box, candidate, tolerance) for candidate in other)
        for box in one
        if box["score"] > THRESHOLD + tolerance
    )


def _same(one: Json, other: Json, tolerance: float) -> bool:
    return (
        one["label"] == other["label"]
        and abs(one["score"] - other["score"]) <= tolerance
        and _same_place(one, other, tolerance)
    )


def _same_place(one: Json, other: Json, tolerance: float) -> bool:
    corners = [
        np.array([list(row["box"].values())], float) for row in (one, other)
    ]
    slack = 1.0  # pixel: what rounding may move a corner by
    close = bool((np.abs(corners[0] - corners[1]) <= slack).all())
    return close or _iou(*corners).item() >= 1 - 6 * tolerance


TASK = ObjectDetection()
