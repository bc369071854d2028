"""What the networks of repair share: levels in and out, damage made on the fly, and random
patches.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.networks.layers import conv


class Repair(nn.Module):
    """Pictures as levels [N, H, W, C] to repaired ones; `patch` is the side of the patches it is
    trained on.
    """

    def __init__(self, patch: int, scale: int = 1) -> None:
        super().__init__()
        self.patch, self.scale = patch, scale

    def forward(self, image: Tensor) -> Tensor:
        """uint8 or float levels 0..255 [N, H, W, C] -> float levels [N, H * scale, W * scale,
        C].
        """
        x = image.permute(0, 3, 1, 2).float() / 255
        return (self.repaired(x) * 255).permute(0, 2, 3, 1)

    def repaired(self, x: Tensor) -> Tensor:
        """[N, C, H, W] of values 0..1, damaged and repaired."""
        raise NotImplementedError

    def damaged(
        self, clean: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Clean levels [N, H, W, C] as they would be sent; with a generator, as in a validation."""
        raise NotImplementedError


class Clamped(nn.Module):
    """A network as it is deployed: it answers values of 0..1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, C] -> float [N, H * scale, W * scale, C]."""
        levels: Tensor = self.network(image)
        return (levels / 255).clamp(0, 1)


class Denoiser(Repair):
    """Estimates the noise at half the resolution, which four times as many channels make up for,
    and subtracts it.

    Zhang et al. 2017 (DnCNN, arXiv 1608.03981) for the residual, 2018 (FFDNet, arXiv 1710.04026)
    for the halving; the strength of the noise is not told: the network finds it out.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        depth: int,
        sigma: tuple[float, float],
        test_sigma: float,
        patch: int,
    ) -> None:
        super().__init__(patch)
        self.sigma, self.test_sigma = sigma, test_sigma
        layers: list[nn.Module] = [conv(4 * channels, width), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [conv(width, width, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        last = conv(width, 4 * channels)
        nn.init.zeros_(last.weight)  # it begins by leaving the picture as it is
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.noise = nn.Sequential(*layers, last)

    def repaired(self, x: Tensor) -> Tensor:
        """The picture without the noise found in it."""
        noise: Tensor = self.noise(F.pixel_unshuffle(x, 2))
        return x - F.pixel_shuffle(noise.float(), 2)

    def damaged(
        self, clean: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """White Gaussian noise of a random deviation for each picture, rounded and clipped as in a
        file.
        """
        low, high = (
            self.sigma if generator is None else (self.test_sigma, self.test_sigma)
        )
        sigma = (
            torch.rand(len(clean), 1, 1, 1, device=clean.device) * (high - low) + low
        )
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        return (clean + noise * sigma).round().clamp(0, 255)


class Enlarger(Repair):
    """Adds to the bicubic enlargement what residual blocks find missing in it.

    Lim et al. 2017 (EDSR, arXiv 1707.02921), small; all work is done at the resolution that was
    sent, and the last layer's channels become the finer pixels (Shi et al. 2016, ESPCN, arXiv
    1609.05158).
    """

    def __init__(
        self, channels: int, width: int, blocks: int, scale: int, patch: int
    ) -> None:
        super().__init__(patch, scale)
        self.enlarge = Bicubic(scale)
        self.head = conv(channels, width)
        self.body = nn.Sequential(
            *(Block(width) for _ in range(blocks)), conv(width, width)
        )
        self.tail = conv(width, channels * scale**2)
        nn.init.zeros_(self.tail.weight)
        assert self.tail.bias is not None
        nn.init.zeros_(self.tail.bias)

    def repaired(self, x: Tensor) -> Tensor:
        """The larger picture."""
        seen = self.head(x - 0.5)
        found: Tensor = self.tail(seen + self.body(seen))
        return self.enlarge(x) + F.pixel_shuffle(found.float(), self.scale)  # type: ignore[no-any-return]

    def damaged(
        self, clean: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Made smaller by the antialiased bicubic filter that Pillow has too, rounded as in a
        file.
        """
        x = clean.permute(0, 3, 1, 2)
        size = [side // self.scale for side in x.shape[2:]]
        small = F.interpolate(
            x, size=size, mode="bicubic", antialias=True, align_corners=False
        )
        return small.round().clamp(0, 255).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Two convolutions and a shortcut, without normalisation: levels matter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(width, width), conv(width, width)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, H, W] -> the same."""
        return x + self.second(torch.relu(self.first(x)))  # type: ignore[no-any-return]


class Bicubic(nn.Module):
    """Enlarging by a whole number as one convolution, whose channels become the finer pixels.

    Keys' cubic with a = -0.5, as Pillow's; the border is continued by its last pixels.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.kernel: Tensor
        line = torch.tensor(
            [
                [_cubic(at - (place + 0.5) / scale + 0.5) for at in range(-2, 3)]
                for place in range(scale)
            ]
        )
        plane = line[:, None, :, None] * line[None, :, None, :]
        self.register_buffer(
            "kernel", plane.reshape(scale**2, 1, 5, 5), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H * scale, W * scale], in full precision."""
        with torch.autocast(x.device.type, enabled=False):
            count = x.shape[1]
            padded = F.pad(x.float(), (2, 2, 2, 2), mode="replicate")
            found = F.conv2d(padded, self.kernel.repeat(count, 1, 1, 1), groups=count)
            return F.pixel_shuffle(found, self.scale)


def _cubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def patches(sizes: Sequence[Tensor], side: int, multiple: int) -> list[Tensor]:
    """A square patch of each picture [N, H, W, C], at a random place, turned and mirrored at
    random, as floats.

    `sizes` are the same pictures, the smallest first; `side` is that of the patches of the largest.
    """
    count, height, width, _ = sizes[0].shape
    largest = sizes[-1].shape[1] // height
    side = (
        min(side, largest * height, largest * width) // multiple * multiple // largest
    )
    tops = torch.randint(height - side + 1, (count,)).tolist()
    lefts = torch.randint(width - side + 1, (count,)).tolist()
    turns = torch.randint(8, (count,)).tolist()

    def cut(pictures: Tensor) -> Tensor:
        by = pictures.shape[1] // height
        return torch.stack(
            [
                _turned(
                    picture[
                        by * top : by * (top + side), by * left : by * (left + side)
                    ],
                    turn,
                )
                for picture, top, left, turn in zip(
                    pictures, tops, lefts, turns, strict=True
                )
            ]
        ).float()

    return [cut(pictures) for pictures in sizes]


def _turned(picture: Tensor, turn: int) -> Tensor:
    picture = picture.rot90(turn % 4)
    return picture.flip(1) if turn >= 4 else picture


def psnr(one: Tensor, other: Tensor, border: int) -> Tensor:
    """Of levels [N, H, W, C], in dB, without a border; [N]."""
    inner: Any = slice(border, -border if border else None)
    error = (
        ((one - other)[:, inner, inner] ** 2).mean((1, 2, 3)).clamp(min=255**2 / 1e10)
    )
    return 10 * (2 * math.log10(255) - error.log10())
