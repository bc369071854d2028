"""centernet: a small detector without anchors, made to be trained from scratch on a CPU with a few
hundred pictures.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.base import Choice, Facts, Plan, Signature, TrainSettings
from modelmill.tasks.decoding.image_decoder import Preprocessing
from modelmill.tasks.object_detection.settings import BoxAugment
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "finds objects as peaks of a heat map (CenterNet, TTFNet); trained from scratch on a "
    "few hundred pictures"
)
INPUT = Preprocessing(max_side=256, fit="pad")
AUGMENT = BoxAugment()
TRAIN = TrainSettings(
    epochs=120,
    batch_size=16,
    optimiser="muon",
    learning_rate=0.02,
    weight_decay=0.05,
    warmup=0.05,
    clip=10.0,
    ema=0.998,
)
ENOUGH = 300
"""Pictures on which the default epochs take a quarter of an hour on two cores."""


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    channels: Annotated[
        int,
        Meta(
            ge=4,
            le=512,
            description="of the first stage; each stage doubles them",
        ),
    ] = 24
    blocks: Annotated[
        int,
        Meta(
            ge=1,
            le=16,
            description="residual blocks in each stage but the first",
        ),
    ] = 2
    neck: Annotated[
        int, Meta(ge=8, le=512, description="channels of the feature pyramid")
    ] = 64


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """Fewer epochs over more pictures; no colour augmentation of grey ones."""
    if facts.inputs.grey:
        yield Choice(why="all pictures are grey", settings={"saturation": 0.0})
    yield facts.epochs(TRAIN.epochs, ENOUGH)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """uint8 [N, H, W, C] -> heat [N, classes, H / 8, W / 8] as logits, and reach [N, 4, H / 8, W /
    8].
    """
    from modelmill.tasks.object_detection.network import Detector

    return Detector(
        signature, settings.channels, settings.blocks, settings.neck
    )
