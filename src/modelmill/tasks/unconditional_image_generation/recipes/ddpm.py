"""ddpm: a small diffusion model, which removes noise in a number of steps."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from modelmill.tasks.base import Choice, Facts, Plan, Signature, TrainSettings
from modelmill.tasks.unconditional_image_generation import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import Tensor, nn

SUMMARY = (
    "a small U-Net that takes noise away, sampled by DDIM in `steps` (25); steadier than "
    "dcgan, slower to draw"
)
INPUT = Preprocessing(latent=0, max_side=32)
TRAIN = TrainSettings(
    epochs=8,
    batch_size=64,
    optimiser="adamw",
    learning_rate=1e-3,
    clip=1.0,
    schedule="cosine",
    warmup=0.05,
    ema=0.998,
)
MAX_EPOCHS = 200
ENOUGH = 2_160
"""Training pictures up to which `MAX_EPOCHS` are used: 432,000 pictures in all, as 8 epochs of
60,000 digits.
"""
MIN_EPOCHS = 4


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    filters: Annotated[
        int,
        Meta(
            ge=8,
            le=512,
            multiple_of=8,
            description="channels at half the size of a picture",
        ),
    ] = 48


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """Fewer epochs over more pictures."""
    yield facts.epochs(MAX_EPOCHS, ENOUGH, least=MIN_EPOCHS)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """A U-Net that gives the velocity of a noisy picture (Ho et al. 2020, arXiv 2006.11239)."""
    from modelmill.tasks.unconditional_image_generation.networks import Denoiser

    preprocessing = signature.preprocessing
    return Denoiser(
        (preprocessing.height, preprocessing.width, preprocessing.channels),
        settings.filters,
    )


def loss(
    network: Any, batch: dict[str, "Tensor"], settings: TrainSettings
) -> "Tensor":
    """The squared error of the velocity at a random time of each picture."""
    import torch

    images = batch["image"]
    times = (
        torch.randperm(len(images), device=images.device)
        + torch.rand(1, device=images.device)
    ) / len(images)
    return _error(
        network, images, times, torch.randn(images.shape, device=images.device)
    )


def validate(
    network: Any, batch: dict[str, "Tensor"], settings: TrainSettings
) -> dict[str, "Tensor"]:
    """The loss at fixed times with fixed noise, so that epochs compare."""
    import torch

    from modelmill.tasks.unconditional_image_generation.training import (
        fixed_noise,
    )

    images = batch["image"]
    times = torch.linspace(0.01, 0.99, len(images), device=images.device)
    return {
        "loss": _error(
            network,
            images,
            times,
            fixed_noise(*images.shape, device=images.device),
        )
    }


def _error(
    network: Any, images: "Tensor", times: "Tensor", noise: "Tensor"
) -> "Tensor":
    import torch

    pictures = images.float() / 127.5 - 1
    angle = (times * torch.pi / 2).view(-1, 1, 1, 1)
    noisy = angle.cos() * pictures + angle.sin() * noise
    velocity = angle.cos() * noise - angle.sin() * pictures
    error: Tensor = network(noisy, times).float() - velocity
    return (error**2).mean()


def deployed(network: Any, signature: Signature) -> "nn.Module":
    """The network itself: sampling runs outside of the graph."""
    denoiser: nn.Module = network
    return denoiser
