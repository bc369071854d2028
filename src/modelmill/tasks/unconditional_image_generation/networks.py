"""The networks that generate pictures: a GAN and a diffusion model."""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from modelmill.tasks.unconditional_image_generation.sampling import (
    Array,
    denoised,
)
from modelmill.tasks.unconditional_image_generation.training import fixed_noise

Shape = tuple[int, int, int]
SMALLEST = 8
"""Longest side of the smallest feature map, in pixels."""


def halved_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes of the feature maps: from `height` x `width` each half of the last, rounded up."""
    sizes = [(height, width)]
    while max(sizes[-1]) > SMALLEST:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


class Generator(nn.Module):
    """A DCGAN generator of transposed convolutions."""

    def __init__(self, shape: Shape, latent: int, width: int) -> None:
        super().__init__()
        *self.sizes, self.first = halved_sizes(*shape[:2])
        channels = [
            min(width << level, 512) for level in range(len(self.sizes) + 1)
        ]
        cells = self.first[0] * self.first[1]
        self.lay = nn.Linear(latent, channels[-1] * cells, bias=False)
        channels.reverse()
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in channels)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)
            for before, after in pairwise(channels)
        )
        self.last = nn.Conv2d(channels[-1], shape[2], 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, noise: Tensor) -> Tensor:
        """Noise [N, latent] -> pictures -1..1 [N, C, H, W]."""
        x = torch.relu(
            self.norms[0](self.lay(noise).unflatten(1, (-1, *self.first)))
        )
        for up, norm, (height, width) in zip(
            self.ups, list(self.norms)[1:], reversed(self.sizes), strict=True
        ):
            x = torch.relu(norm(up(x)[:, :, :height, :width]))
        return torch.tanh(self.last(x))


def discriminator(shape: Shape, width: int) -> nn.Sequential:
    """A discriminator: pictures -1..1 [N, C, H, W] -> logits [N, 1], above 0 for real."""
    *sizes, last = halved_sizes(*shape[:2])
    widths = [
        shape[2],
        *(min(width << level + 1, 512) for level in range(len(sizes))),
    ]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += _halving(before, after)
    logit = nn.Linear(widths[-1] * last[0] * last[1], 1)
    return nn.Sequential(*layers, nn.Flatten(), spectral_norm(logit))


def _halving(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    """Layers that halve a picture; this padding makes ceil(side / 2) of an odd side, as
    `halved_sizes` counts.
    """
    halved = nn.Conv2d(in_channels, out_channels, 5, 2, padding=2)
    return spectral_norm(halved), nn.LeakyReLU(0.2)


class GeneratorAndDiscriminator(nn.Module):
    """A generator and its discriminator."""

    parts = ("discriminator", "generator")

    def __init__(self, shape: Shape, latent: int, width: int) -> None:
        super().__init__()
        self.latent = latent
        self.generator = Generator(shape, latent, width)
        self.discriminator = discriminator(shape, width)

    def noise(self, count: int) -> Tensor:
        """Standard normal noise [count, latent]."""
        return torch.randn(
            count, self.latent, device=self.generator.lay.weight.device
        )

    def draw(self, count: int) -> Tensor:
        """Pictures 0..1 [count, H, W, C], from the same noise every time."""
        noise = fixed_noise(
            count, self.latent, device=self.generator.lay.weight.device
        )
        return DeployedGenerator(self.generator)(noise)  # type: ignore[no-any-return]


class DeployedGenerator(nn.Module):
    """A generator as it is deployed."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latent: Tensor) -> Tensor:
        """Noise [N, latent] -> pictures 0..1 [N, H, W, C]."""
        images: Tensor = self.generator(latent).float() / 2 + 0.5
        return images.permute(0, 2, 3, 1).contiguous()


class Fp32GroupNorm(nn.GroupNorm):
    """Group normalisation in fp32: torch's bf16 kernel takes four times as long on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape, float32."""
        return super().forward(x.float())


class TimeBlock(nn.Module):
    """A residual block of two convolutions, modulated by the time embedding (scale and shift)."""

    def __init__(self, in_channels: int, out_channels: int, time: int) -> None:
        super().__init__()
        self.norm1 = Fp32GroupNorm(8, in_channels)
        self.norm2 = Fp32GroupNorm(8, out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time, 2 * out_channels)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1)
            if in_channels != out_channels
            else nn.Identity()
        )
        nn.init.zeros_(self.conv2.weight)  # each block begins as its shortcut
        nn.init.zeros_(self.time.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """[N, in_channels, H, W] and time embedding [N, time] -> [N, out_channels, H, W]."""
        y = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        y = self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))
        return self.shortcut(x) + y  # type: ignore[no-any-return]


class SpatialAttention(nn.Module):
    """Self-attention over the positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.scale = Fp32GroupNorm(8, channels), channels**-0.5
        self.into = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        query, key, value = self.into(self.norm(x)).flatten(2).chunk(3, 1)
        weights = torch.softmax(query.transpose(1, 2) @ key * self.scale, 2)
        attended = (value @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.out(attended)  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """The velocity of noisy pictures [N, H, W, C] at times 0..1 [N]: a U-Net of two sizes, from 2x2
    pixels as one.

    Pixels of a border that is not even are made up, and cut off again.
    """

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        self.shape, self.pad = shape, (-shape[0] % 4, -shape[1] % 4)
        pixels, time, wide = 4 * shape[2], 2 * width, 2 * width
        self.frequencies: Tensor
        self.register_buffer("frequencies", _frequencies(width // 2))
        self.time = _time_layers(2 * (width // 2), time)
        self.first = nn.Conv2d(pixels, width, 3, padding=1)
        self.down1 = TimeBlock(width, width, time)
        self.down2 = TimeBlock(width, width, time)
        self.shrink = nn.Conv2d(width, wide, 3, 2, padding=1)
        self.low1 = TimeBlock(wide, wide, time)
        self.look = SpatialAttention(wide)
        self.low2 = TimeBlock(wide, wide, time)
        self.grow = nn.Conv2d(wide, width, 1)
        self.up1 = TimeBlock(2 * width, width, time)
        self.up2 = TimeBlock(width, width, time)
        self.last = nn.Sequential(
            Fp32GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, pixels, 3, padding=1),
        )

    def forward(self, latent: Tensor, time: Tensor) -> Tensor:
        """The velocity, in the shape of `latent`."""
        time = self._time_embedding(time)
        x = F.pad(latent.permute(0, 3, 1, 2), (0, self.pad[1], 0, self.pad[0]))
        x = self.first(F.pixel_unshuffle(x, 2))
        x = skip = self.down2(self.down1(x, time), time)
        x = self.low2(self.look(self.low1(self.shrink(x), time)), time)
        x = F.interpolate(self.grow(x), scale_factor=2.0, mode="nearest")
        x = self.up2(self.up1(torch.cat([x, skip], 1), time), time)
        x = F.pixel_shuffle(self.last(x), 2)[
            :, :, : self.shape[0], : self.shape[1]
        ]
        return x.permute(0, 2, 3, 1).contiguous()

    def _time_embedding(self, time: Tensor) -> Tensor:
        """Times 0..1 [N] -> [N, 2 * width]."""
        angle = time[:, None] * self.frequencies
        embedding: Tensor = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        return embedding

    def draw(self, count: int) -> Tensor:
        """Pictures 0..1 [count, H, W, C], from the same noise every time."""
        noise = fixed_noise(count, *self.shape, device=self.frequencies.device)
        pictures = denoised(self._velocity, noise.cpu().numpy(), 25)
        return torch.from_numpy(pictures) / 2 + 0.5

    def _velocity(self, x: Array, time: Array) -> Array:
        """The velocity as numpy has it, for the sampling."""
        device = self.frequencies.device
        x_and_time = (
            torch.as_tensor(part, device=device) for part in (x, time)
        )
        velocity: Tensor = self(*x_and_time)
        return np.asarray(velocity.float().cpu().numpy())


def _frequencies(count: int) -> Tensor:
    """Frequencies 1 to 200 of the time embedding, evenly spaced on a logarithmic scale."""
    return torch.exp(torch.linspace(math.log(1.0), math.log(200.0), count))


def _time_layers(waves: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
    )
