"""The network of the recipe `unet`."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Signature
from modelmill.tasks.networks.layers import Pixels, Residual, conv, pixel_input


class UNet(nn.Module):
    """A U-Net of residual stages with skip connections (Ronneberger et al. 2015, arXiv 1505.04597).

    Takes any size without padding: each upward stage is resized to its skip connection. The buffer
    `seen` counts the pixels of each class in training; the loss weighs classes by it.
    """

    def __init__(
        self,
        signature: Signature,
        *,
        width: int,
        depth: int,
        blocks: int,
        stride: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.size = pixel_input(signature)[:2]
        self.seen: Tensor
        self.register_buffer(
            "seen", torch.zeros(signature.classes, dtype=torch.float64)
        )
        widths = [width << stage for stage in range(depth)]
        self.stem = _stem(signature, width, stride)
        self.down = nn.ModuleList(
            _stage(
                widths[max(stage - 1, 0)],
                widths[stage],
                blocks,
                halve=stage > 0,
            )
            for stage in range(depth)
        )
        self.bottom = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(
            _Up(low, high) for high, low in reversed(list(pairwise(widths)))
        )
        self.head = _head(width, signature.classes, stride)

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, C] -> logits of every pixel [N, classes, H, W]."""
        x = self.stem(image)
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        x = self.bottom(skips.pop())
        for stage in self.up:
            x = stage(x, skips.pop())
        logits: Tensor = self.head(x)
        return logits[:, :, : self.size[0], : self.size[1]]


def _stem(signature: Signature, width: int, stride: int) -> nn.Sequential:
    """Pixels to features [N, width, H / stride, W / stride]."""
    first = _conv_layers(pixel_input(signature)[2], width // 2)
    size = 5 if stride > 2 else 3
    second = _conv_layers(width // 2, width, size=size, stride=stride)
    return nn.Sequential(Pixels(signature), *first, *second)


def _head(width: int, classes: int, stride: int) -> nn.Sequential:
    """Each position of the top layer classifies all pixels that the stem merged into it."""
    last = nn.Conv2d(width, classes * stride**2, 1)
    _initialise_alike(last, stride**2)
    return nn.Sequential(last, nn.PixelShuffle(stride))


def _conv_layers(
    in_channels: int, out_channels: int, **options: int
) -> tuple[nn.Module, ...]:
    return (
        conv(in_channels, out_channels, bias=False, **options),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _initialise_alike(last: nn.Module, pixels: int) -> None:
    """Give all pixels of a position the same initial weights: no checkerboard artefacts (Aitken et
    al. 2017, arXiv 1707.02937).
    """
    for weight in last.parameters():
        with torch.no_grad():
            weight.copy_(weight[::pixels].repeat_interleave(pixels, 0))


class _Up(nn.Module):
    """An upward stage: resizes to the skip connection and merges it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.shrink = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.body = nn.Sequential(
            conv(2 * out_channels, out_channels, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            Residual(out_channels, out_channels, stride=1),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """[N, in_channels, h, w] and the skip [N, out_channels, H, W] -> [N, out_channels, H,
        W].
        """
        x = F.interpolate(
            self.shrink(x),
            size=skip.shape[2:],
            mode="bilinear",
            align_corners=False,
        )
        folded: Tensor = self.body(torch.cat([x, skip], 1))
        return folded


def _stage(
    in_channels: int, out_channels: int, blocks: int, *, halve: bool
) -> nn.Sequential:
    first = Residual(in_channels, out_channels, stride=2 if halve else 1)
    return nn.Sequential(
        first,
        *(
            Residual(out_channels, out_channels, stride=1)
            for _ in range(blocks - 1)
        ),
    )
