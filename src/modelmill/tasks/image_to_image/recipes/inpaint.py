"""inpaint: fills in what is transparent in a picture, learnt from whole pictures alone."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.image_to_image.preprocessing import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "fills in what is transparent in a picture (PNG, WebP with alpha): scratches, spots, text"
INPUT = Preprocessing(repair="inpaint", multiple=8)
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
        int,
        Meta(
            ge=4,
            le=512,
            description="at half the resolution; deeper ones have more",
        ),
    ] = 32
    patch: Annotated[
        int,
        Meta(ge=24, le=512, description="side of the patches it is trained on"),
    ] = 96


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """uint8 [N, H, W, C + 1] with sides of multiples of 8 -> levels [N, H, W, C]."""
    from modelmill.tasks.image_to_image.inpainting import Inpainter

    preprocessing = signature.preprocessing
    return Inpainter(preprocessing.channels, settings.channels, settings.patch)
