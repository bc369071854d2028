"""Metrics of generated pictures: their features compared with those of real ones."""

import io
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from modelmill.tasks.base import Evaluation, Measured, Raw
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.unconditional_image_generation.sheets import Pixels, sheet
from modelmill.types import Json

if TYPE_CHECKING:
    from modelmill.tasks.unconditional_image_generation.features import Judged

Array = np.ndarray[Any, Any]
TRAINING_PICTURES = 12_000
"""Most training pictures that the feature network is trained on."""
NEIGHBOURS = 3
SHOWN = 64


def evaluate(measured: Measured) -> Evaluation:
    """Fréchet distance, precision and recall of features, shares of classes, sheets of samples.

    Features come from a classifier trained on the training pictures where there are classes, else
    from the same network with random weights (`features` says which), so distances compare only
    within one data set. The distance is that of Heusel et al. 2017 (arXiv 1706.08500)
    but for the features; precision and recall are those of Kynkaanniemi et al. 2019 (arXiv
    1904.06991) with k = 3. `distance_of_real` is that of training pictures.
    """
    generated = np.stack(
        [_picture(file) for answer in measured.outputs for file in answer]
    )
    real = _in_shape_of(generated, [data for data, _ in measured.truths])
    jury = _jury(measured, generated)
    judged_generated, judged_real = jury.judge(generated), jury.judge(real)
    metrics = _figures(judged_real.features, judged_generated.features)
    metrics["features"] = "classifier" if jury.classes else "random"
    metrics["items"] = len(real)
    if len(jury.training):
        sample = _spread(jury.training, len(real))
        metrics["distance_of_real"] = frechet(
            judged_real.features, jury.judge(sample).features
        )
    if jury.classes:
        truths = [label for _, label in measured.truths]
        metrics |= _shares(
            judged_generated.logits, judged_real.logits, truths, jury.classes
        )
    return Evaluation(metrics=metrics, pictures=_sheets(generated, real))


class Jury(NamedTuple):
    """What judges pictures: the network, the training pictures, and the classes that it tells
    apart, none where the data have fewer than two.
    """

    judge: "Callable[[Array], Judged]"
    training: Pixels
    classes: list[str]


def _jury(measured: Measured, generated: Pixels) -> Jury:
    """The network of features, trained on the training pictures."""
    from modelmill.tasks.unconditional_image_generation import features

    items = measured.learn(TRAINING_PICTURES)
    training = _in_shape_of(generated, [item.data for item in items])
    classes = sorted({item.label for item in items if item.label})
    labels = [item.label for item in items]
    judge = features.trained(training, labels, classes, generated.shape[1:])
    return Jury(judge, training, classes if len(classes) > 1 else [])


def _figures(real: Array, generated: Array) -> Json:
    """Distance, precision and recall of features [N, D]."""
    precision, recall = precision_recall(real, generated)
    distance = frechet(real, generated)
    return {"distance": distance, "precision": precision, "recall": recall}


def _spread(pictures: Pixels, most: int) -> Pixels:
    """At most so many of the pictures, spread evenly."""
    count = min(len(pictures), most)
    chosen: Pixels = pictures[
        np.linspace(0, len(pictures) - 1, count).astype(int)
    ]
    return chosen


def _sheets(generated: Pixels, real: Pixels) -> dict[str, bytes]:
    return {
        "samples.png": image_decoder.png(sheet(generated[:SHOWN])),
        "real.png": image_decoder.png(sheet(real[:SHOWN])),
    }


def _picture(file: str) -> Pixels:
    """A PNG file in base64 as [H, W, C]."""
    pixels = np.asarray(Image.open(io.BytesIO(b64decode(file))))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _in_shape_of(generated: Pixels, pictures: Sequence[Raw]) -> Pixels:
    """Real pictures in the shape of the generated ones."""
    if not pictures:
        return generated[:0]
    _, height, width, channels = generated.shape
    options = image_decoder.Preprocessing(
        height=height, width=width, color="grey" if channels == 1 else "rgb"
    )
    return np.stack(
        [image_decoder.decode(picture, options) for picture in pictures]
    )


def frechet(real: Array, generated: Array) -> float:
    """The Fréchet distance (squared) of normal distributions fitted to features [N, D]."""
    first, second = (
        np.cov(part, rowvar=False).reshape(part.shape[1], -1)
        for part in (real, generated)
    )
    means = float(((real.mean(0) - generated.mean(0)) ** 2).sum())
    spreads = (
        np.trace(first) + np.trace(second) - 2 * _trace_of_root(first, second)
    )
    return max(0.0, means + float(spreads))


def _trace_of_root(first: Array, second: Array) -> float:
    """The trace of the square root of the product of two covariances [D, D]."""
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    products = np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)
    trace: float = np.sqrt(products).sum()
    return trace


def precision_recall(real: Array, generated: Array) -> tuple[float, float]:
    """The share of generated features within the radius of a real one, and of real features within
    the radius of a generated one.

    The radius of a feature is the distance to its third nearest neighbour of its own kind.
    """
    between = _distances(generated, real)
    precision = (between <= _radius(real)[None, :]).any(1).mean()
    recall = (between <= _radius(generated)[:, None]).any(0).mean()
    return float(precision), float(recall)


def _radius(features: Array) -> Array:
    own = np.sort(_distances(features, features), 1)
    return np.asarray(
        own[:, min(NEIGHBOURS, len(own) - 1)]
    )  # the nearest is itself


def _distances(rows: Array, columns: Array) -> Array:
    """Squared distances of features [N, D] and [M, D]: [N, M]."""
    lengths = (rows**2).sum(1)[:, None] + (columns**2).sum(1)[None, :]
    squares = lengths - 2 * rows @ columns.T
    return np.asarray(np.maximum(squares, 0))


def _shares(
    generated: Array, real: Array, truths: Sequence[str], classes: list[str]
) -> Json:
    """How often the classifier predicts each class, and its accuracy on real pictures."""
    counts = np.bincount(generated.argmax(1), minlength=len(classes))
    predicted = counts / len(generated)
    numbers = np.array(
        [classes.index(label) if label in classes else -1 for label in truths]
    )
    shares = {
        label: float(share)
        for label, share in zip(classes, predicted, strict=True)
    }
    return {
        "classifier_accuracy": float((real.argmax(1) == numbers).mean()),
        "least_class_share": float(predicted.min()),
        "largest_class_share": float(predicted.max()),
        "class_shares": shares,
        "per_class": _beside_real(shares, numbers),
    }


def _beside_real(shares: dict[str, float], numbers: Array) -> Json:
    """The share of each class beside that among real pictures, whose classes are `numbers` [N]."""
    return {
        label: {
            "share": share,
            "share_of_real": float((numbers == number).mean()),
        }
        for number, (label, share) in enumerate(shares.items())
    }
