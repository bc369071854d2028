"""How generators are trained: each recipe has its own loss; the last epoch is kept; previews are
drawn during training.
"""

import numpy as np
import torch
from torch import Tensor, nn

from modelmill.tasks.decoding.image_decoder import png
from modelmill.tasks.unconditional_image_generation.sheets import sheet

SCORE = ""
SHOWN = 64
"""Pictures of a preview."""


def scaled(pictures: Tensor) -> Tensor:
    """uint8 [N, H, W, C] as float -1..1 [N, C, H, W]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def fixed_noise(count: int, *shape: int, device: torch.device) -> Tensor:
    """Standard normal noise [count, *shape], the same every time."""
    return torch.randn(
        count, *shape, generator=torch.Generator().manual_seed(1)
    ).to(device)


@torch.inference_mode()
def preview(network: nn.Module) -> bytes:
    """A sheet of generated pictures (PNG), from the same noise every time."""
    images: Tensor = network.draw(SHOWN)  # type: ignore[operator]
    pixels = (
        (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    )
    return png(np.asarray(sheet(pixels)))
