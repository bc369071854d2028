"""image-feature-extraction: a picture in, a unit vector out that lies near those of pictures of the
same thing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from modelmill.errors import unknown_setting
from modelmill.tasks.base import Arrays, Context, Item, Raw
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.decoding.image_decoder import fingerprint, look
from modelmill.tasks.evaluation.retrieval import evaluate
from modelmill.types import Json, TensorSpec

__all__ = [
    "CLASSES",
    "INPUT",
    "METRIC",
    "RECIPE",
    "SAMPLES",
    "SPLIT",
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

SUMMARY = "turn a picture into a vector, for search and recognition by similarity"
INPUT = "image"
TARGETS = ("label",)
CLASSES = 2
SPLIT = "classes"
METRIC = "recall_at_1"
RECIPE = "embed"
SAMPLES = 1000
DIGITS = 6


class Preprocessing(image_decoder.Preprocessing, frozen=True, kw_only=True):
    """How a picture becomes pixels, and how long the vector is that it becomes."""

    dimensions: Annotated[
        int, msgspec.Meta(ge=2, le=4096, description="numbers in the vector")
    ] = 128


def prepare(
    samples: Sequence[Raw], preprocessing: Preprocessing, folder: Path
) -> image_decoder.Preprocessing:
    """Size, colour and normalisation taken from the training pictures."""
    return image_decoder.prepare(samples, preprocessing)


def inputs(context: Context) -> list[TensorSpec]:
    """`image`: uint8 [-1, height, width, channels]."""
    return [image_decoder.tensor(context.preprocessing)]


def outputs(context: Context) -> list[TensorSpec]:
    """`embedding`: FP32 [-1, dimensions], each row of length 1."""
    return [
        TensorSpec(
            name="embedding",
            datatype="FP32",
            shape=[-1, context.preprocessing.dimensions],
        )
    ]


def decode(data: Raw, context: Context) -> Arrays:
    """`image`: uint8 [height, width, channels]; raises `InvalidInput`, `TooLarge`."""
    return {"image": image_decoder.decode(data, context.preprocessing)}


def encode(
    arrays: Arrays, context: Context, parameters: Mapping[str, Any]
) -> list[float]:
    """The vector as a list of numbers; raises `InvalidInput` for any parameter."""
    for name in parameters:
        raise unknown_setting(name, (), "parameter")
    return [
        round(value, DIGITS)
        for value in arrays["embedding"].astype(np.float64).tolist()
    ]


def sample(item: Item, context: Context) -> tuple[Arrays, Arrays]:
    """The arrays of `decode`, and `label`: its number."""
    return decode(item.data, context), {
        "label": np.array(context.labels.index(item.label))
    }


def truth(item: Item) -> str:
    """The label: pictures of one label should be near each other."""
    return item.label


def complete(labels: Sequence[str]) -> Json:
    """A vector is complete as it is."""
    return {}


def as_sent(data: Raw) -> bytes:
    """A picture as a file: PNG where the data set has mere pixels."""
    return image_decoder.png(data) if isinstance(data, np.ndarray) else bytes(data)  # type: ignore[arg-type]


def example() -> bytes:
    """A small grey gradient as PNG."""
    return image_decoder.png(np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1)))
