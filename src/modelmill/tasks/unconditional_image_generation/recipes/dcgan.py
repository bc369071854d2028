"""dcgan: a generative adversarial network, which draws a picture in one step."""

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
MAX_EPOCHS = 200
ENOUGH = 2_700
"""Training pictures up to which `MAX_EPOCHS` are used: 540,000 pictures in all, as 10 epochs of
60,000 digits.
"""
MIN_EPOCHS = 4


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
    """Fewer epochs over more pictures."""
    yield facts.epochs(MAX_EPOCHS, ENOUGH, least=MIN_EPOCHS)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """`generator` and `discriminator`, as Radford et al. 2015 (arXiv 1511.06434) have them.

    The discriminator has spectral norm (Miyato et al. 2018, arXiv 1802.05957) in place of batch
    norm.
    """
    from modelmill.tasks.unconditional_image_generation.networks import (
        GeneratorAndDiscriminator,
    )

    preprocessing = signature.preprocessing
    return GeneratorAndDiscriminator(
        (preprocessing.height, preprocessing.width, preprocessing.channels),
        preprocessing.latent or 100,
        settings.filters,
    )


def loss(
    network: Any, batch: dict[str, "Tensor"], settings: TrainSettings
) -> Iterator[tuple[str, "Tensor"]]:
    """The logistic loss of the discriminator, then the non-saturating loss of the generator
    (Goodfellow et al. 2014).
    """
    import torch
    from torch.nn.functional import softplus

    from modelmill.tasks.unconditional_image_generation.training import scaled

    real = scaled(batch["image"])
    with torch.no_grad():
        fake = network.generator(network.noise(len(real)))
    real_logits, fake_logits = (
        network.discriminator(real),
        network.discriminator(fake),
    )
    yield (
        "discriminator",
        softplus(-real_logits).mean() + softplus(fake_logits).mean(),
    )
    # The discriminator's own gradients are not needed here.
    network.discriminator.requires_grad_(False)
    try:
        logits = network.discriminator(
            network.generator(network.noise(len(real)))
        )
        yield "generator", softplus(-logits).mean()
    finally:
        network.discriminator.requires_grad_(True)


def validate(
    network: Any, batch: dict[str, "Tensor"], settings: TrainSettings
) -> dict[str, "Tensor"]:
    """The share of generated (`taken_for_real`) and real pictures that the discriminator takes for
    real; near one half it can't distinguish them.
    """
    from modelmill.tasks.unconditional_image_generation.training import (
        fixed_noise,
        scaled,
    )

    real = scaled(batch["image"])
    noise = fixed_noise(len(real), network.latent, device=real.device)
    pictures_of = {"taken_for_real": network.generator(noise), "real": real}
    return {
        name: (network.discriminator(pictures) > 0).float().mean()
        for name, pictures in pictures_of.items()
    }


def deployed(network: Any, signature: Signature) -> "nn.Module":
    """The generator alone."""
    from modelmill.tasks.unconditional_image_generation.networks import (
        DeployedGenerator,
    )

    return DeployedGenerator(network.generator)
