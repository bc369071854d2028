"""embed: a small residual network trained as a cosine classifier with a margin."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.data.augment import Augment
from modelmill.tasks.base import (
    Choice,
    Facts,
    Fraction,
    Plan,
    Signature,
    TrainSettings,
)
from modelmill.tasks.image_feature_extraction import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "a small residual network with a cosine softmax and a margin; minutes on a CPU"
INPUT = Preprocessing(max_side=64)
AUGMENT = Augment(
    flip=False, rotate=10.0, scale_min=0.85, scale_max=1.15, erase=0.2
)
TRAIN = TrainSettings(
    epochs=40,
    batch_size=64,
    optimiser="muon",
    learning_rate=0.02,
    weight_decay=0.05,
    warmup=0.1,
    clip=1.0,
    ema=0.99,
)
ENOUGH = 4000
"""Pictures on which the default epochs take minutes on two cores."""


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
    stages: Annotated[
        int,
        Meta(ge=1, le=6, description="each after the first halves the picture"),
    ] = 4
    blocks: Annotated[
        int, Meta(ge=1, le=16, description="residual blocks in each stage")
    ] = 1
    scale: Annotated[
        float,
        Meta(gt=0, le=256, description="factor of the cosines in the softmax"),
    ] = 24.0
    margin: Annotated[
        Fraction,
        Meta(
            description="by which the cosine of the right class has to be larger"
        ),
    ] = 0.2


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """Augmentation by the colour of the pictures; fewer epochs over more of them."""
    if not facts.inputs.grey:
        yield Choice(
            why="pictures in colour are taken for photographs",
            settings={"flip": True},
        )
    yield facts.epochs(TRAIN.epochs, ENOUGH)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """uint8 [N, H, W, C] -> unit vectors [N, dimensions]."""
    from torch import nn

    from modelmill.tasks.image_feature_extraction.training import (
        CosineClassifier,
    )
    from modelmill.tasks.networks.layers import (
        pixel_input,
        pixel_stem,
        residual_stages,
    )

    channels, stages = settings.channels, settings.stages
    dimensions = signature.preprocessing.dimensions
    # The first stage sees about 32 pixels, as in the classifier `resnet`.
    halve = min(pixel_input(signature)[:2]) >= 48
    body = nn.Sequential(
        *pixel_stem(signature, channels, halve=halve),
        *residual_stages(channels, stages, settings.blocks),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels << stages - 1, dimensions, bias=False),
        nn.BatchNorm1d(dimensions, affine=False),
    )
    return CosineClassifier(
        body, dimensions, signature.classes, settings.scale, settings.margin
    )
