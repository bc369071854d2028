"""Networks of image restoration: grey levels in and out, degradation on the fly, random patches."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.networks.layers import conv


class RestorationNetwork(nn.Module):
    """A network that restores pictures [N, H, W, C]; `patch` is the side of its training patches in
    pixels, `scale` how many times larger its answer is.
    """

    def __init__(self, patch: int, scale: int = 1) -> None:
        super().__init__()
        self.patch, self.scale = patch, scale

    def forward(self, image: Tensor) -> Tensor:
        """uint8 or float levels 0..255 [N, H, W, C] -> float levels [N, H * scale, W * scale,
        C].
        """
        x = image.permute(0, 3, 1, 2).float() / 255
        return (self.restore(x) * 255).permute(0, 2, 3, 1)

    def restore(self, x: Tensor) -> Tensor:
        """Degraded [N, C, H, W] of 0..1 -> restored [N, C, H * scale, W * scale]."""
        raise NotImplementedError

    def degrade(
        self, clean: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Clean levels 0..255 [N, H, W, C] -> a degraded input; with a generator as in
        validation.
        """
        raise NotImplementedError


class Clamped(nn.Module):
    """A network as it is deployed: its answer is clamped to 0..1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, C] -> float [N, H * scale, W * scale, C]."""
        levels: Tensor = self.network(image)
        return (levels / 255).clamp(0, 1)


class Denoiser(RestorationNetwork):
    """Estimates the noise at half the resolution with four times the channels, and subtracts it.

    The residual is that of Zhang et al. 2017 (DnCNN, arXiv 1608.03981), the halving of 2018
    (FFDNet, arXiv 1710.04026). The noise level is not an input: the network estimates it.
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
            layers += [
                conv(width, width, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        # It begins by leaving the picture as it is.
        self.noise = nn.Sequential(*layers, zero_conv(width, 4 * channels))

    def restore(self, x: Tensor) -> Tensor:
        """The picture minus its estimated noise."""
        noise: Tensor = self.noise(F.pixel_unshuffle(x, 2))
        return x - F.pixel_shuffle(noise.float(), 2)

    def degrade(
        self, clean: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Adds white Gaussian noise of a random deviation for each picture, then rounds and clips
        as a file does.
        """
        fixed = (self.test_sigma, self.test_sigma)
        low, high = self.sigma if generator is None else fixed
        share = torch.rand(len(clean), 1, 1, 1, device=clean.device)
        sigma = share * (high - low) + low
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        return (clean + noise * sigma).round().clamp(0, 255)


class Upscaler(RestorationNetwork):
    """Super-resolution: residual blocks estimate what bicubic upscaling misses.

    A small EDSR (Lim et al. 2017, arXiv 1707.02921) at the input's resolution; the last layer's
    channels become the finer pixels (Shi et al. 2016, ESPCN, arXiv 1609.05158).
    """

    def __init__(
        self, channels: int, width: int, blocks: int, scale: int, patch: int
    ) -> None:
        super().__init__(patch, scale)
        self.enlarge = Bicubic(scale)
        self.head = conv(channels, width)
        self.body = nn.Sequential(
            *(ResidualBlock(width) for _ in range(blocks)), conv(width, width)
        )
        self.tail = zero_conv(width, channels * scale**2)

    def restore(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H * scale, W * scale]."""
        features = self.head(x - 0.5)
        difference: Tensor = self.tail(features + self.body(features))
        enlarged: Tensor = self.enlarge(x)
        return enlarged + F.pixel_shuffle(difference.float(), self.scale)

    def degrade(
        self, clean: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Downscales by an antialiased bicubic filter, as Pillow's, and rounds as a file does."""
        x = clean.permute(0, 3, 1, 2)
        size = [side // self.scale for side in x.shape[2:]]
        small = F.interpolate(
            x, size=size, mode="bicubic", antialias=True, align_corners=False
        )
        return small.round().clamp(0, 255).permute(0, 2, 3, 1)


def zero_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A last convolution whose output begins as 0."""
    last = conv(in_channels, out_channels)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return last


class ResidualBlock(nn.Module):
    """Two convolutions with a residual connection, without normalisation, which loses levels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(width, width), conv(width, width)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, H, W] -> the same."""
        return x + self.second(torch.relu(self.first(x)))  # type: ignore[no-any-return]


class Bicubic(nn.Module):
    """Bicubic upscaling by a whole number as one convolution with a pixel shuffle.

    Keys' cubic with a = -0.5, as Pillow's; borders are replicated.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.kernel: Tensor
        line = _bicubic_weights(scale)
        plane = line[:, None, :, None] * line[None, :, None, :]
        kernel = plane.reshape(scale**2, 1, 5, 5)
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H * scale, W * scale], in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            count = x.shape[1]
            padded = F.pad(x.float(), (2, 2, 2, 2), mode="replicate")
            difference = F.conv2d(
                padded, self.kernel.repeat(count, 1, 1, 1), groups=count
            )
            return F.pixel_shuffle(difference, self.scale)


def _bicubic_weights(scale: int) -> Tensor:
    """The weights [scale, 5] of five pixels in a row for each finer position in the middle one."""
    rows = [
        [_cubic(at - (position + 0.5) / scale + 0.5) for at in range(-2, 3)]
        for position in range(scale)
    ]
    return torch.tensor(rows)


def _cubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def patches(sizes: Sequence[Tensor], side: int, multiple: int) -> list[Tensor]:
    """A random square patch of each picture [N, H, W, C], randomly rotated and mirrored, as floats.

    `sizes` are the same pictures at several sizes, the smallest first; `side` is the patch's side
    at the largest, a multiple of `multiple`.
    """
    _, height, width, _ = sizes[0].shape
    largest = sizes[-1].shape[1] // height
    room = min(side, largest * height, largest * width)
    places = _random_places(sizes[0], room // multiple * multiple // largest)
    return [
        _cut(pictures, places, pictures.shape[1] // height)
        for pictures in sizes
    ]


class Place(NamedTuple):
    """Where a patch lies in the smallest picture, and how it is turned."""

    top: int
    left: int
    side: int
    turn: int

    def of(self, picture: Tensor, by: int) -> Tensor:
        """The patch of a picture [H, W, C] that is `by` times as large."""
        rows = slice(by * self.top, by * (self.top + self.side))
        columns = slice(by * self.left, by * (self.left + self.side))
        return _rotated(picture[rows, columns], self.turn)


def _random_places(pictures: Tensor, side: int) -> list[Place]:
    """A place for a patch of each picture [N, H, W, C]."""
    count, height, width, _ = pictures.shape
    tops = torch.randint(height - side + 1, (count,)).tolist()
    lefts = torch.randint(width - side + 1, (count,)).tolist()
    turns = torch.randint(8, (count,)).tolist()
    return [
        Place(top, left, side, turn)
        for top, left, turn in zip(tops, lefts, turns, strict=True)
    ]


def _cut(pictures: Tensor, places: Sequence[Place], by: int) -> Tensor:
    cut = [
        place.of(picture, by)
        for picture, place in zip(pictures, places, strict=True)
    ]
    return torch.stack(cut).float()


def _rotated(picture: Tensor, turn: int) -> Tensor:
    picture = picture.rot90(turn % 4)
    return picture.flip(1) if turn >= 4 else picture


def psnr(answer: Tensor, clean: Tensor, border: int) -> Tensor:
    """The PSNR of levels 0..255 [N, H, W, C] in dB, [N], without `border` pixels at each side."""
    inner: Any = slice(border, -border if border else None)
    squares = (answer - clean)[:, inner, inner] ** 2
    error = squares.mean((1, 2, 3)).clamp(min=255**2 / 1e10)
    return 10 * (2 * math.log10(255) - error.log10())
