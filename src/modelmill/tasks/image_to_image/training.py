"""How restoration is trained: on patches of clean pictures, degraded anew in every step, or on
pairs.
"""

import torch
from torch import Tensor, nn

from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.image_to_image.networks import Clamped, patches, psnr

SCORE = "psnr"
MULTIPLE = 24
"""Sides of patches are multiples of this: of every scale, and of the networks' strides."""
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The mean absolute error, in levels 0..255."""
    if "clean" in batch:
        pair = [batch["image"], batch["clean"]]
        degraded, clean = patches(pair, network.patch, MULTIPLE)  # type: ignore[arg-type]
    else:
        (clean,) = patches([batch["image"]], network.patch, MULTIPLE)  # type: ignore[arg-type]
        degraded = network.degrade(clean)  # type: ignore[operator]
    return (network(degraded) - clean).abs().mean()  # type: ignore[no-any-return]


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The same error and the PSNR in dB, over pictures degraded the same way every time."""
    if "clean" in batch:
        degraded, clean = batch["image"], batch["clean"].float()
    else:
        clean = batch["image"].float()
        generator = torch.Generator().manual_seed(0)
        degraded = network.degrade(clean, generator)  # type: ignore[operator]
    restored = network(degraded)
    border = network.scale if network.scale > 1 else 0  # type: ignore[operator]
    return {
        "loss": (restored - clean).abs().mean(),
        "psnr": psnr(restored.clamp(0, 255), clean, border).mean(),  # type: ignore[arg-type]
    }


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network with its answer clamped to 0..1."""
    return Clamped(network)
