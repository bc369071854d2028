"""The network that fills in what is missing of a picture."""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.image_to_image.networks import Repair
from modelmill.tasks.image_to_image.preprocessing import holes
from modelmill.tasks.networks.layers import conv


class Gated(nn.Module):
    """A convolution whose other half says how much of it counts (Yu et al. 2019, arXiv
    1806.03589).
    """

    def __init__(
        self, inside: int, outside: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.both = nn.Conv2d(inside, 2 * outside, 3, stride, dilation, dilation)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inside, H, W] -> [N, outside, H / stride, W / stride]."""
        values, gate = self.both(x).chunk(2, dim=1)
        return F.silu(values) * torch.sigmoid(gate)


class Inpainter(Repair):
    """A U-Net of gated convolutions at a half, a quarter and an eighth of the resolution; what is
    there stays as it is.

    The middle looks far by dilation, so that a hole sees its surroundings.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__(patch)
        self.first = Gated(4 * (channels + 1), width)
        self.down = nn.ModuleList(
            [Gated(width, 2 * width, stride=2), Gated(2 * width, 3 * width, stride=2)]
        )
        self.middle = nn.ModuleList(
            [Gated(3 * width, 3 * width, dilation=step) for step in (1, 2, 4, 8)]
        )
        self.up = nn.ModuleList([Gated(3 * width, 2 * width), Gated(2 * width, width)])
        self.last = conv(width, 4 * channels)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(Tensor, self.last.bias))

    def repaired(self, x: Tensor) -> Tensor:
        """[N, C + 1, H, W], the last one 1 where the picture is missing -> [N, C, H, W]."""
        colors, hole = x[:, :-1], (x[:, -1:] > 0.5).float()
        there = 1 - hole
        mean = (colors * there).sum((2, 3), keepdim=True) / there.sum(
            (2, 3), keepdim=True
        ).clamp(min=1.0)
        begun = colors * there + mean * hole
        half = self.first(F.pixel_unshuffle(torch.cat([begun - 0.5, hole], 1), 2))
        quarter = self.down[0](half)
        seen = self.down[1](quarter)
        for layer in self.middle:
            seen = seen + layer(seen)
        seen = quarter + self.up[0](F.interpolate(seen, scale_factor=2.0))
        seen = half + self.up[1](F.interpolate(seen, scale_factor=2.0))
        found = F.pixel_shuffle(self.last(seen).float(), 2)
        return colors * there + (mean + found) * hole

    def damaged(
        self, clean: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Clean levels and a plane that is 255 in boxes and strokes at random places."""
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        missing = np.stack(
            [holes(clean.shape[1], clean.shape[2], rng) for _ in range(len(clean))]
        )
        return torch.cat(
            [clean, torch.from_numpy(missing)[..., None].to(clean) * 255], dim=3
        )
