"""How good made pictures are: measured against real ones by the features of a small network trained
on the spot.
"""

import io
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from modelmill.tasks.base import Evaluation, Measured, Raw
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.unconditional_image_generation.sheets import Pixels, sheet
from modelmill.types import Json

Array = np.ndarray[Any, Any]
LEARNT = 12_000
"""Training pictures that the features are learnt from."""
NEIGHBOURS = 3
SHOWN = 64


def evaluate(measured: Measured) -> Evaluation:
    """The Frechet distance, precision and recall of features, the shares of classes, sheets of
    samples.

    The features are those of a classifier trained on the training pictures, where there are
    classes; else of the same network with random weights (`features` says which), so distances
    compare only within one data set. The distance is that of Heusel et al. 2017 (arXiv 1706.08500)
    but for the features; precision and recall are those of Kynkaanniemi et al. 2019 (arXiv
    1904.06991) with k = 3. `distance_of_real` is that of training pictures.
    """
    made = np.stack([_picture(file) for answer in measured.outputs for file in answer])
    real = _like(made, [data for data, _ in measured.truths])
    items = measured.learn(LEARNT)
    learnt = _like(made, [item.data for item in items])
    classes = sorted({item.label for item in items if item.label})
    from modelmill.tasks.unconditional_image_generation import features

    judge = features.trained(
        learnt, [item.label for item in items], classes, made.shape[1:]
    )
    seen_made, seen_real = judge(made), judge(real)
    precision, recall = precision_recall(seen_real.features, seen_made.features)
    metrics: Json = {
        "distance": frechet(seen_real.features, seen_made.features),
        "precision": precision,
        "recall": recall,
        "features": "classifier" if len(classes) > 1 else "random",
        "items": len(real),
    }
    if len(learnt):
        some = learnt[
            np.linspace(0, len(learnt) - 1, min(len(learnt), len(real))).astype(int)
        ]
        metrics["distance_of_real"] = frechet(seen_real.features, judge(some).features)
    if len(classes) > 1:
        metrics |= _shares(
            seen_made.logits,
            seen_real.logits,
            [label for _, label in measured.truths],
            classes,
        )
    pictures = {
        "samples.png": image_decoder.png(sheet(made[:SHOWN])),
        "real.png": image_decoder.png(sheet(real[:SHOWN])),
    }
    return Evaluation(metrics=metrics, pictures=pictures)


def _picture(file: str) -> Pixels:
    """A PNG file in base64 as [H, W, C]."""
    pixels = np.asarray(Image.open(io.BytesIO(b64decode(file))))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _like(made: Pixels, pictures: Sequence[Raw]) -> Pixels:
    """Real pictures in the shape of those that are made."""
    _, height, width, channels = made.shape
    how = image_decoder.Preprocessing(
        height=height, width=width, color="grey" if channels == 1 else "rgb"
    )
    return (
        np.stack([image_decoder.decode(one, how) for one in pictures])
        if pictures
        else made[:0]
    )


def frechet(one: Array, other: Array) -> float:
    """The squared distance of two normal distributions fitted to features [N, D], at least 0."""
    first, second = (
        np.cov(part, rowvar=False).reshape(part.shape[1], -1) for part in (one, other)
    )
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    means = float(((one.mean(0) - other.mean(0)) ** 2).sum())
    return max(0.0, means + float(np.trace(first) + np.trace(second) - 2 * cross))


def precision_recall(real: Array, made: Array) -> tuple[float, float]:
    """The share of made features within reach of a real one, and of real ones within reach of a
    made one.

    The reach of a feature is as far as its third nearest neighbour of its own kind.
    """
    between = _distances(made, real)
    precision = (between <= _reach(real)[None, :]).any(1).mean()
    recall = (between <= _reach(made)[:, None]).any(0).mean()
    return float(precision), float(recall)


def _reach(features: Array) -> Array:
    own = np.sort(_distances(features, features), 1)
    return np.asarray(own[:, min(NEIGHBOURS, len(own) - 1)])  # the nearest is itself


def _distances(one: Array, other: Array) -> Array:
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None, :] - 2 * one @ other.T
    return np.asarray(np.maximum(squares, 0))


def _shares(
    made: Array, real: Array, truths: Sequence[str], classes: list[str]
) -> Json:
    """How often the classifier names each class, and how far it is to be trusted."""
    named = np.bincount(made.argmax(1), minlength=len(classes)) / len(made)
    known = np.array(
        [classes.index(label) if label in classes else -1 for label in truths]
    )
    shares = {label: float(share) for label, share in zip(classes, named, strict=True)}
    return {
        "classifier_accuracy": float((real.argmax(1) == known).mean()),
        "least_class_share": float(named.min()),
        "largest_class_share": float(named.max()),
        "class_shares": shares,
        "per_class": {
            label: {"share": share, "share_of_real": float((known == number).mean())}
            for number, (label, share) in enumerate(shares.items())
        },
    }
