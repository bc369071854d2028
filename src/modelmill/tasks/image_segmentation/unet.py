"""The network of the recipe `unet`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Signature
from modelmill.tasks.networks.layers import Pixels, Residual, conv, pixel_input


class UNet(nn.Module):
    """Residual stages down, and up again beside them (Ronneberger et al. 2015, arXiv 1505.04597).

    Any size of picture goes: each stage up grows to the size of its neighbour on the way down, so
    that nothing is padded. `seen` counts the pixels of each class that training has met; the loss
    weighs classes by it.
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
        self.stem = nn.Sequential(
            Pixels(signature),
            *_convolved(pixel_input(signature)[2], width // 2),
            *_convolved(width // 2, width, size=5 if stride > 2 else 3, stride=stride),
        )
        self.down = nn.ModuleList(
            _stage(widths[max(stage - 1, 0)], widths[stage], blocks, halve=stage > 0)
            for stage in range(depth)
        )
        self.bottom = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(
            _Up(widths[stage + 1], widths[stage])
            for stage in reversed(range(depth - 1))
        )
        # Each place at the top of the network names all the pixels that the stem folded into it.
        self.head = nn.Sequential(
            nn.Conv2d(width, signature.classes * stride**2, 1), nn.PixelShuffle(stride)
        )
        _start_alike(self.head[0], stride**2)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every pixel of the picture."""
        x = self.stem(image)
        beside = []
        for stage in self.down:
            x = stage(x)
            beside.append(x)
        x = self.bottom(beside.pop())
        for stage in self.up:
            x = stage(x, beside.pop())
        logits: Tensor = self.head(x)
        return logits[:, :, : self.size[0], : self.size[1]]


def _convolved(inside: int, outside: int, **options: int) -> tuple[nn.Module, ...]:
    return (
        conv(inside, outside, bias=False, **options),
        nn.BatchNorm2d(outside),
        nn.ReLU(),
    )


def _start_alike(last: nn.Module, pixels: int) -> None:
    """Begin with the same answer for all pixels of a place: no chessboard (Aitken et al. 2017,
    arXiv 1707.02937).
    """
    for weight in last.parameters():
        with torch.no_grad():
            weight.copy_(weight[::pixels].repeat_interleave(pixels, 0))


class _Up(nn.Module):
    """Grow to a neighbour's size and fold it in."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.shrink = nn.Sequential(
            nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside)
        )
        self.body = nn.Sequential(
            conv(2 * outside, outside, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            Residual(outside, outside, stride=1),
        )

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        """[N, inside, h, w] and [N, outside, H, W] -> [N, outside, H, W]."""
        x = F.interpolate(
            self.shrink(x), size=beside.shape[2:], mode="bilinear", align_corners=False
        )
        folded: Tensor = self.body(torch.cat([x, beside], 1))
        return folded


def _stage(inside: int, outside: int, blocks: int, *, halve: bool) -> nn.Sequential:
    first = Residual(inside, outside, stride=2 if halve else 1)
    return nn.Sequential(
        first, *(Residual(outside, outside, stride=1) for _ in range(blocks - 1))
    )
