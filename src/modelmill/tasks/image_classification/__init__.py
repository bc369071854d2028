"""image-classification: a picture in, labels with scores out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modelmill.tasks.base import Arrays, Context, Evaluation, Item, Measured, Raw
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.decoding.image_decoder import Preprocessing, fingerprint, look
from modelmill.tasks.evaluation import classification, sample_sheet
from modelmill.tasks.evaluation.classification import (
    complete,
    encode,
    outputs,
    target,
    truth,
)
from modelmill.types import TensorSpec

__all__ = [
    "CLASSES",
    "INPUT",
    "METRIC",
    "RECIPE",
    "SAMPLES",
    "SUMMARY",
    "TARGETS",
    "Preprocessing",
    "as_sent",
    "complete",
    "decode",
    "encode",
    "evaluate",
    "example",
    "fingerprint",
    "inputs",
    "look",
    "outputs",
    "prepare",
    "sample",
    "truth",
]

SUMMARY = "name what a picture shows"
INPUT = "image"
TARGETS = ("label",)
CLASSES = 2
METRIC = "accuracy"
RECIPE = "cnn"
SAMPLES = 1000
WORST = 24


def prepare(
    samples: Sequence[Raw], preprocessing: Preprocessing, folder: Path
) -> Preprocessing:
    """Size, colour and normalisation taken from the training pictures."""
    return image_decoder.prepare(samples, preprocessing)


def inputs(context: Context) -> list[TensorSpec]:
    """`image`: uint8 [-1, height, width, channels]."""
    return [image_decoder.tensor(context.preprocessing)]


def decode(data: Raw, context: Context) -> Arrays:
    """`image`: uint8 [height, width, channels]; raises `InvalidInput`, `TooLarge`."""
    return {"image": image_decoder.decode(data, context.preprocessing)}


def sample(item: Item, context: Context) -> tuple[Arrays, Arrays]:
    """The arrays of `decode`, and `label`."""
    return decode(item.data, context), target(item, context)


def evaluate(measured: Measured) -> Evaluation:
    """What all classifiers are measured by, and a sheet of the errors that the model was most sure
    of.
    """
    found = classification.evaluate(measured)
    guesses = [
        max(answer, key=lambda entry: entry["score"]) for answer in measured.outputs
    ]
    wrong = [
        row
        for row, guess in enumerate(guesses)
        if guess["label"] != measured.truths[row]
    ]
    wrong.sort(key=lambda row: -guesses[row]["score"])
    if not (worst := wrong[:WORST]):
        return found
    captions = [
        f"true: {measured.truths[row]}\nfound: {guesses[row]['label']} {guesses[row]['score']:.2f}"
        for row in worst
    ]
    title = f"{len(wrong)} of {len(guesses)} misclassified, the surest first"
    pictures = {
        "misclassified.png": sample_sheet.sheet(title, measured.show(worst), captions)
    }
    return Evaluation(metrics=found.metrics, pictures=found.pictures | pictures)


def as_sent(data: Raw) -> bytes:
    """A picture as a file: PNG where the data set has mere pixels."""
    return image_decoder.png(data) if isinstance(data, np.ndarray) else bytes(data)  # type: ignore[arg-type]


def example() -> bytes:
    """A small grey gradient as PNG."""
    return image_decoder.png(np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1)))
