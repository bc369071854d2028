"""unet: a small residual U-Net that names every pixel, made to be trained from scratch on a CPU."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.base import (
    Choice,
    Facts,
    Fraction,
    Plan,
    Signature,
    TrainSettings,
)
from modelmill.tasks.image_segmentation import Changes, Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "a small residual U-Net for scenes of up to about 256 pixels; minutes on a CPU"
INPUT = Preprocessing()
AUGMENT = Changes(
    rotate=5.0,
    scale_min=0.6,
    scale_max=1.2,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
)
TRAIN = TrainSettings(
    epochs=90,
    batch_size=4,
    optimiser="muon",
    learning_rate=0.02,
    weight_decay=0.05,
    warmup=0.1,
    clip=1.0,
    ema=0.995,
)
ENOUGH = 400
"""Pictures on which the default epochs take a quarter of an hour on two cores."""
SMALL = 96
"""Pictures with a shorter side than this are not halved by the stem."""


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    channels: Annotated[
        int,
        Meta(
            ge=4,
            le=512,
            description="of the first stage; each stage doubles them",
        ),
    ] = 32
    depth: Annotated[
        int,
        Meta(
            ge=1,
            le=6,
            description="stages; each after the first halves the picture",
        ),
    ] = 4
    blocks: Annotated[
        int,
        Meta(
            ge=1,
            le=8,
            description="residual blocks in each stage of the way down",
        ),
    ] = 1
    stem_stride: Annotated[
        int,
        Meta(
            ge=1,
            le=4,
            description="by what the first convolution shrinks the picture",
        ),
    ] = 2
    dropout: Annotated[
        Fraction, Meta(description="of channels at the bottom")
    ] = 0.1


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """Fewer epochs over more pictures; no downsampling stem for small ones."""
    height, width = facts.inputs.for_model(plan.input)
    if min(height, width) < SMALL:
        yield Choice(
            why=f"pictures of {width}x{height} have no pixels to spare",
            settings={"stem_stride": 1},
        )
    yield facts.epochs(TRAIN.epochs, ENOUGH)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """uint8 [N, H, W, C] -> logits [N, classes, H, W]."""
    from modelmill.tasks.image_segmentation.unet import UNet

    return UNet(
        signature,
        width=settings.channels,
        depth=settings.depth,
        blocks=settings.blocks,
        stride=settings.stem_stride,
        dropout=settings.dropout,
    )
