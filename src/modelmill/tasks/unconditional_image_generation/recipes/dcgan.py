"""dcgan: a generator and a discriminator trained against each other, each picture drawn in one
step.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from modelmill.tasks.base import Choice, Facts, Plan, Signature, TrainSettings
from modelmill.tasks.unconditional_image_generation import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import Tensor, nn

SUMMARY = (
    "a generator against a discriminator with spectral norm, its weights averaged; quick to "
    "train and to draw"
)
INPUT = Preprocessing(latent=100, max_side=64)
TRAIN = TrainSettings(
    epochs=10,
    batch_size=64,
    optimiser="adam",
    learning_rate=4e-4,
    beta1=0.5,
    schedule="constant",
    warmup=0.0,
    ema=0.998,
)
MOST = 200
ENOUGH = 2_700
LEAST = 4
"""Epochs over so many pictures at most: the 540,000 pictures that a training sees make 60,000
digits 10 times.
"""


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    filters: Annotated[
        int,
        Meta(
            ge=4,
            le=512,
            description="channels at the full size of a picture, doubled at each half",
        ),
    ] = 32


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """Epochs by how many pictures there are."""
    yield facts.epochs(MOST, ENOUGH, least=LEAST)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """`generator` and `discriminator`, as Radford et al. 2015 (arXiv 1511.06434) have them.

    The discriminator has spectral norm (Miyato et al. 2018, arXiv 1802.05957) in place of batch
    norm.
    """
    from modelmill.tasks.unconditional_image_generation.networks import Adversaries

    how = signature.preprocessing
    return Adversaries(
        (how.height, how.width, how.channels), how.latent or 100, settings.filters
    )


def loss(
    network: Any, batch: dict[str, "Tensor"], settings: TrainSettings
) -> Iterator[tuple[str, "Tensor"]]:
    """The logistic loss of the discriminator, then the non-saturating one of the generator
    (Goodfellow et al. 2014).
    """
    import torch
    from torch.nn.functional import softplus

    from modelmill.tasks.unconditional_image_generation.training import scaled

    real = scaled(batch["image"])
    with torch.no_grad():
        fake = network.generator(network.noise(len(real)))
    judged_real, judged_fake = network.discriminator(real), network.discriminator(fake)
    yield "discriminator", softplus(-judged_real).mean() + softplus(judged_fake).mean()
    # It only tells the way: its own gradients are not worth computing
    network.discriminator.requires_grad_(False)
    try:
        judged = network.discriminator(network.generator(network.noise(len(real))))
        yield "generator", softplus(-judged).mean()
    finally:
        network.discriminator.requires_grad_(True)


def validate(
    network: Any, batch: dict[str, "Tensor"], settings: TrainSettings
) -> dict[str, "Tensor"]:
    """How often the discriminator takes real and drawn pictures for real: near one half it can't
    tell them apart.
    """
    from modelmill.tasks.unconditional_image_generation.training import (
        fixed_noise,
        scaled,
    )

    real = scaled(batch["image"])
    noise = fixed_noise(len(real), network.latent, device=real.device)
    judged = {"taken_for_real": network.generator(noise), "real": real}
    return {
        name: (network.discriminator(pictures) > 0).float().mean()
        for name, pictures in judged.items()
    }


def deployed(network: Any, signature: Signature) -> "nn.Module":
    """The generator alone."""
    from modelmill.tasks.unconditional_image_generation.networks import Drawing

    return Drawing(network.generator)
