"""The network of inpainting."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.image_to_image.networks import (
    RestorationNetwork,
    zero_conv,
)
from modelmill.tasks.image_to_image.preprocessing import holes


class GatedConv(nn.Module):
    """A gated convolution: half of its channels gate the other half (Yu et al. 2019, arXiv
    1806.03589).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.both = nn.Conv2d(
            in_channels, 2 * out_channels, 3, stride, dilation, dilation
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride]."""
        values, gate = self.both(x).chunk(2, dim=1)
        return F.silu(values) * torch.sigmoid(gate)


class Inpainter(RestorationNetwork):
    """A U-Net of gated convolutions at a half, a quarter and an eighth of the resolution; visible
    pixels are not changed.

    Dilated convolutions in the middle have a receptive field wider than a hole.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__(patch)
        self.first = GatedConv(4 * (channels + 1), width)
        self.down = nn.ModuleList(
            GatedConv(times * width, (times + 1) * width, stride=2)
            for times in (1, 2)
        )
        self.middle = nn.ModuleList(
            GatedConv(3 * width, 3 * width, dilation=step)
            for step in (1, 2, 4, 8)
        )
        self.up = nn.ModuleList(
            GatedConv(times * width, (times - 1) * width) for times in (3, 2)
        )
        self.last = zero_conv(width, 4 * channels)

    def restore(self, x: Tensor) -> Tensor:
        """[N, C + 1, H, W], the last plane 1 in holes -> [N, C, H, W]."""
        colors, hole = x[:, :-1], (x[:, -1:] > 0.5).float()
        visible = 1 - hole
        mean = _mean_of_visible(colors, visible)
        filled = colors * visible + mean * hole
        fill = self._fill(torch.cat([filled - 0.5, hole], 1))
        return colors * visible + (mean + fill) * hole

    def _fill(self, x: Tensor) -> Tensor:
        """What the holes differ from the mean by, of pictures with holes [N, C + 1, H, W]."""
        half = self.first(F.pixel_unshuffle(x, 2))
        quarter = self.down[0](half)
        features = self.down[1](quarter)
        for layer in self.middle:
            features = features + layer(features)
        features = quarter + self.up[0](
            F.interpolate(features, scale_factor=2.0)
        )
        features = half + self.up[1](F.interpolate(features, scale_factor=2.0))
        return F.pixel_shuffle(self.last(features).float(), 2)

    def degrade(
        self, clean: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Clean levels [N, H, W, C] with a plane that is 255 in random boxes and strokes."""
        rng = np.random.default_rng(
            int(torch.randint(2**31, (), generator=generator))
        )
        height, width = clean.shape[1:3]
        missing = np.stack(
            [holes(height, width, rng) for _ in range(len(clean))]
        )
        plane = torch.from_numpy(missing)[..., None].to(clean) * 255
        return torch.cat([clean, plane], dim=3)


def _mean_of_visible(colors: Tensor, visible: Tensor) -> Tensor:
    """The mean colour [N, C, 1, 1] of the pixels that are visible."""
    total = (colors * visible).sum((2, 3), keepdim=True)
    return total / visible.sum((2, 3), keepdim=True).clamp(min=1.0)
