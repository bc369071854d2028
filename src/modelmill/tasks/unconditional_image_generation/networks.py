"""The networks that generate pictures: a GAN and a diffusion model."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from modelmill.tasks.unconditional_image_generation.sampling import denoised
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
        *self.sizes, first = halved_sizes(*shape[:2])
        channels = [min(width << level, 512) for level in range(len(self.sizes) + 1)]
        self.first = first
        self.lay = nn.Linear(latent, channels[-1] * first[0] * first[1], bias=False)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(count) for count in reversed(channels)
        )
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(
                channels[level + 1], channels[level], 4, 2, 1, bias=False
            )
            for level in reversed(range(len(self.sizes)))
        )
        self.last = nn.Conv2d(channels[0], shape[2], 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, noise: Tensor) -> Tensor:
        """Noise [N, latent] -> pictures -1..1 [N, C, H, W]."""
        x = torch.relu(self.norms[0](self.lay(noise).unflatten(1, (-1, *self.first))))
        for up, norm, (height, width) in zip(
            self.ups, list(self.norms)[1:], reversed(self.sizes), strict=True
        ):
            x = torch.relu(norm(up(x)[:, :, :height, :width]))
        return torch.tanh(self.last(x))


def discriminator(shape: Shape, width: int) -> nn.Sequential:
    """A discriminator: pictures -1..1 [N, C, H, W] -> logits [N, 1], above 0 for real."""
    *sizes, last = halved_sizes(*shape[:2])
    layers: list[nn.Module] = []
    channels = shape[2]
    for level in range(len(sizes)):
        out_channels = min(width << (level + 1), 512)
        # This padding halves an odd side to ceil(side / 2), as `halved_sizes` counts.
        layers += [
            spectral_norm(nn.Conv2d(channels, out_channels, 5, 2, padding=2)),
            nn.LeakyReLU(0.2),
        ]
        channels = out_channels
    return nn.Sequential(
        *layers, nn.Flatten(), spectral_norm(nn.Linear(channels * last[0] * last[1], 1))
    )


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
        return torch.randn(count, self.latent, device=self.generator.lay.weight.device)

    def draw(self, count: int) -> Tensor:
        """Pictures 0..1 [count, H, W, C], from the same noise every time."""
        noise = fixed_noise(count, self.latent, device=self.generator.lay.weight.device)
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
        self.norm1, self.norm2 = (
            Fp32GroupNorm(8, in_channels),
            Fp32GroupNorm(8, out_channels),
        )
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
        pixels = 4 * shape[2]
        time = 2 * width
        wide = 2 * width
        frequencies = torch.exp(
            torch.linspace(math.log(1.0), math.log(200.0), width // 2)
        )
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies)
        self.time = nn.Sequential(
            nn.Linear(2 * (width // 2), time),
            nn.SiLU(),
            nn.Linear(time, time),
            nn.SiLU(),
        )
        self.first = nn.Conv2d(pixels, width, 3, padding=1)
        self.down1, self.down2 = (
            TimeBlock(width, width, time),
            TimeBlock(width, width, time),
        )
        self.shrink = nn.Conv2d(width, wide, 3, 2, padding=1)
        self.low1 = TimeBlock(wide, wide, time)
        self.look = SpatialAttention(wide)
        self.low2 = TimeBlock(wide, wide, time)
        self.grow = nn.Conv2d(wide, width, 1)
        self.up1, self.up2 = (
            TimeBlock(2 * width, width, time),
            TimeBlock(width, width, time),
        )
        self.last = nn.Sequential(
            Fp32GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, pixels, 3, padding=1)
        )

    def forward(self, latent: Tensor, time: Tensor) -> Tensor:
        """The velocity, in the shape of `latent`."""
        angle = time[:, None] * self.frequencies
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        x = F.pad(latent.permute(0, 3, 1, 2), (0, self.pad[1], 0, self.pad[0]))
        x = skip = self.down2(
            self.down1(self.first(F.pixel_unshuffle(x, 2)), time), time
        )
        x = self.low2(self.look(self.low1(self.shrink(x), time)), time)
        x = F.interpolate(self.grow(x), scale_factor=2.0, mode="nearest")
        x = self.up2(self.up1(torch.cat([x, skip], 1), time), time)
        x = F.pixel_shuffle(self.last(x), 2)[:, :, : self.shape[0], : self.shape[1]]
        return x.permute(0, 2, 3, 1).contiguous()

    def draw(self, count: int) -> Tensor:
        """Pictures 0..1 [count, H, W, C], from the same noise every time."""
        device = self.frequencies.device
        noise = fixed_noise(count, *self.shape, device=device)

        def velocity(x: object, time: object) -> object:
            return (
                self(
                    torch.as_tensor(x, device=device),
                    torch.as_tensor(time, device=device),
                )
                .float()
                .cpu()
                .numpy()
            )

        pictures = denoised(velocity, noise.cpu().numpy(), 25)  # type: ignore[arg-type]
        return torch.from_numpy(pictures) / 2 + 0.5
