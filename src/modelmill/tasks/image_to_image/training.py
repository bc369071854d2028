"""How repair is trained: patches of clean pictures, damaged anew in every step; or of pairs, as
they are.
"""

import torch
from torch import Tensor, nn

from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.image_to_image.networks import Clamped, patches, psnr

SCORE = "psnr"
MULTIPLE = 24
"""Of which the sides of patches are multiples: of every scale, and of what networks halve."""
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The mean absolute error, in levels of 255."""
    if "clean" in batch:
        sent, clean = patches([batch["image"], batch["clean"]], network.patch, MULTIPLE)  # type: ignore[arg-type]
    else:
        (clean,) = patches([batch["image"]], network.patch, MULTIPLE)  # type: ignore[arg-type]
        sent = network.damaged(clean)  # type: ignore[operator]
    return (network(sent) - clean).abs().mean()  # type: ignore[no-any-return]


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The same error and the PSNR in dB, of pictures that are always damaged in the same way."""
    if "clean" in batch:
        sent, clean = batch["image"], batch["clean"].float()
    else:
        clean = batch["image"].float()
        sent = network.damaged(clean, torch.Generator().manual_seed(0))  # type: ignore[operator]
    found = network(sent)
    border = network.scale if network.scale > 1 else 0  # type: ignore[operator]
    return {
        "loss": (found - clean).abs().mean(),
        "psnr": psnr(found.clamp(0, 255), clean, border).mean(),  # type: ignore[arg-type]
    }


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """It answers values of 0..1."""
    return Clamped(network)
