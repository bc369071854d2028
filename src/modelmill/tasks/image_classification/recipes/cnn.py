"""cnn: the classic small convolutional network, for digits, icons and other small pictures."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.data.augment import NONE
from modelmill.tasks.base import (
    Choice,
    Facts,
    Fraction,
    Plan,
    Signature,
    TrainSettings,
)
from modelmill.tasks.decoding.image_decoder import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "two or three convolutions and a dense layer; fast, for small pictures"
)
INPUT = Preprocessing(max_side=64)
AUGMENT = NONE
TRAIN = TrainSettings(
    epochs=10, batch_size=128, optimiser="adam", learning_rate=2e-3
)

TWO_FILTERS = 40
"""Pixels of a side up to which two convolutions see enough of a picture."""
BATCHES = {32: 2500, 64: 5000, 128: math.inf}
"""Sizes of a batch, each with the training pictures below which it is used."""
LEAST_STEPS = 1500


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    filters: Annotated[
        int, Meta(ge=1, le=1024, description="of the first convolution")
    ] = 32
    filters2: Annotated[
        int, Meta(ge=1, le=1024, description="of the second convolution")
    ] = 64
    filters3: Annotated[
        int, Meta(ge=0, le=1024, description="of a third convolution; 0: none")
    ] = 0
    dense: Annotated[
        int, Meta(ge=1, le=8192, description="width of the dense layer")
    ] = 64
    dropout: Annotated[Fraction, Meta(description="before the last layer")] = (
        0.25
    )


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """A third convolution for larger pictures, augmentation of coloured ones, batch size and epochs
    by their number.
    """
    count, pictures = facts.counts["train"], facts.inputs
    height, width = pictures.for_model(plan.input)
    if min(height, width) > TWO_FILTERS:
        yield Choice(
            why=f"pictures of {width}x{height} want a third convolution",
            settings={"filters3": 128},
        )
    if not pictures.grey:
        yield Choice(
            why="pictures in colour are taken for photographs",
            settings={"flip": True, "crop": 0.125},
        )
    yield _passes(count, 10 if pictures.grey or count > 20_000 else 20)


def _passes(count: int, least: int) -> Choice:
    """Batch size and epochs, at least so many, for this number of pictures."""
    batch = next(size for size, limit in BATCHES.items() if count < limit)
    epochs = min(60, max(least, -(-LEAST_STEPS * batch // count)))
    return Choice(
        why=f"{count:,} pictures give {epochs * -(-count // batch):,} steps",
        settings={"batch_size": batch, "epochs": epochs},
    )


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """uint8 [N, H, W, C] -> logits [N, classes]."""
    from torch import nn

    from modelmill.tasks.networks.layers import Pixels, pixel_input

    counts = [settings.filters, settings.filters2, settings.filters3]
    layers, features = _convolutions(
        pixel_input(signature), list(filter(None, counts))
    )
    return nn.Sequential(
        Pixels(signature),
        *layers,
        nn.Flatten(),
        nn.Linear(features, settings.dense),
        nn.ReLU(),
        nn.Dropout(settings.dropout),
        nn.Linear(settings.dense, signature.classes),
    )


def _convolutions(
    shape: tuple[int, int, int], counts: list[int]
) -> tuple[list["nn.Module"], int]:
    """A convolution with so many filters each, pooled as long as there are pixels; and how many
    numbers come out.
    """
    from torch import nn

    height, width, channels = shape
    layers: list[nn.Module] = []
    for filters in counts:
        # A small picture keeps its border; a large one loses a pixel on each side, which is the
        # classic form.
        border = 1 if min(height, width) < 8 else 0
        layers.append(nn.Conv2d(channels, filters, 3, padding=border))
        height, width = height - 2 + 2 * border, width - 2 + 2 * border
        if min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        # Behind the pooling it does the same for a quarter of the work
        layers.append(nn.ReLU())
        channels = filters
    return layers, channels * height * width
