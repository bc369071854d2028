"""denoise: removes noise of unknown strength, learnt from clean pictures alone."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.image_to_image.preprocessing import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "removes Gaussian noise of unknown strength; learns from clean pictures, of which a "
    "hundred do"
)
INPUT = Preprocessing(repair="denoise", multiple=2)
TRAIN = TrainSettings(
    epochs=60,
    epoch_steps=150,
    batch_size=16,
    optimiser="muon",
    learning_rate=0.02,
    weight_decay=0.01,
    warmup=0.05,
    ema=0.995,
)


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network and of the noise it learns to remove."""

    channels: Annotated[
        int, Meta(ge=4, le=512, description="of every layer")
    ] = 64
    depth: Annotated[int, Meta(ge=3, le=64, description="layers")] = 11
    sigma_min: Annotated[
        float,
        Meta(ge=0, le=255, description="least deviation of the noise, of 255"),
    ] = 5.0
    sigma_max: Annotated[
        float,
        Meta(
            ge=0, le=255, description="largest deviation of the noise, of 255"
        ),
    ] = 55.0
    patch: Annotated[
        int,
        Meta(ge=24, le=512, description="side of the patches it is trained on"),
    ] = 48

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that do not go together."""
        if self.sigma_min > self.sigma_max:
            raise ValueError(
                f"sigma_min={self.sigma_min:g} is above sigma_max={self.sigma_max:g}"
            )


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """uint8 [N, H, W, C] with even sides -> levels of the same shape."""
    from modelmill.tasks.image_to_image.networks import Denoiser

    preprocessing = signature.preprocessing
    sigma = (settings.sigma_min, settings.sigma_max)
    return Denoiser(
        preprocessing.channels,
        settings.channels,
        settings.depth,
        sigma,
        preprocessing.test_sigma,
        settings.patch,
    )
