"""super-resolution: makes pictures two to four times larger, sharper than any filter does."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.image_to_image.preprocessing import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "makes a picture 2, 3 or 4 times larger (scale); learns from large pictures, of which a "
    "hundred do"
)
INPUT = Preprocessing(repair="super-resolution", color="grey", scale=2)
TRAIN = TrainSettings(
    epochs=50,
    epoch_steps=100,
    batch_size=16,
    optimiser="muon",
    learning_rate=0.02,
    warmup=0.05,
    ema=0.995,
)


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    channels: Annotated[
        int, Meta(ge=4, le=512, description="of every layer")
    ] = 48
    blocks: Annotated[
        int, Meta(ge=1, le=64, description="residual blocks of two layers")
    ] = 5
    patch: Annotated[
        int,
        Meta(
            ge=24,
            le=512,
            description="side of the large patches it is trained on",
        ),
    ] = 96


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """uint8 [N, H, W, C] -> levels [N, H * scale, W * scale, C]."""
    from modelmill.tasks.image_to_image.networks import Upscaler

    preprocessing = signature.preprocessing
    return Upscaler(
        preprocessing.channels,
        settings.channels,
        settings.blocks,
        preprocessing.scale,
        settings.patch,
    )
