"""The networks of the recipes that make pictures."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from modelmill.tasks.unconditional_image_generation.sampling import denoised
from modelmill.tasks.unconditional_image_generation.training import fixed_noise

Shape = tuple[int, int, int]
SEEDLING = 8
"""Longest side that a picture is grown from."""


def halves(height: int, width: int) -> list[tuple[int, int]]:
    """The sizes that a picture goes through, each half of the one before, rounded up."""
    sizes = [(height, width)]
    while max(sizes[-1]) > SEEDLING:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


class Generator(nn.Module):
    """Noise [N, latent] to pictures -1..1 [N, C, H, W]: doubled by transposed convolutions from a
    few pixels.
    """

    def __init__(self, shape: Shape, latent: int, width: int) -> None:
        super().__init__()
        *self.sizes, first = halves(*shape[:2])
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
        """Pictures -1..1."""
        x = torch.relu(self.norms[0](self.lay(noise).unflatten(1, (-1, *self.first))))
        for up, norm, (height, width) in zip(
            self.ups, list(self.norms)[1:], reversed(self.sizes), strict=True
        ):
            x = torch.relu(norm(up(x)[:, :, :height, :width]))
        return torch.tanh(self.last(x))


def discriminator(shape: Shape, width: int) -> nn.Sequential:
    """Pictures -1..1 [N, C, H, W] to a logit each: above 0 where they look real."""
    *sizes, last = halves(*shape[:2])
    layers: list[nn.Module] = []
    channels = shape[2]
    for level in range(len(sizes)):
        outside = min(width << (level + 1), 512)
        # 3 pixels of a border for an odd side keep ceil(side / 2), as `halves` counts.
        layers += [
            spectral_norm(nn.Conv2d(channels, outside, 5, 2, padding=2)),
            nn.LeakyReLU(0.2),
        ]
        channels = outside
    return nn.Sequential(
        *layers, nn.Flatten(), spectral_norm(nn.Linear(channels * last[0] * last[1], 1))
    )


class Adversaries(nn.Module):
    """A generator and the discriminator that it has to deceive."""

    parts = ("discriminator", "generator")

    def __init__(self, shape: Shape, latent: int, width: int) -> None:
        super().__init__()
        self.latent = latent
        self.generator = Generator(shape, latent, width)
        self.discriminator = discriminator(shape, width)

    def noise(self, count: int) -> Tensor:
        """What `count` pictures are made of."""
        return torch.randn(count, self.latent, device=self.generator.lay.weight.device)

    def draw(self, count: int) -> Tensor:
        """Pictures 0..1 [N, H, W, C], always of the same noise."""
        noise = fixed_noise(count, self.latent, device=self.generator.lay.weight.device)
        return Drawing(self.generator)(noise)  # type: ignore[no-any-return]


class Drawing(nn.Module):
    """A generator as it is deployed: pictures 0..1 [N, H, W, C]."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latent: Tensor) -> Tensor:
        """Of noise [N, latent]."""
        images: Tensor = self.generator(latent).float() / 2 + 0.5
        return images.permute(0, 2, 3, 1).contiguous()


class Norm(nn.GroupNorm):
    """Normalised groups of channels, always in fp32: torch's bf16 form takes four times as long on
    a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        return super().forward(x.float())


class Block(nn.Module):
    """Two convolutions with the time added between them, and a shortcut."""

    def __init__(self, inside: int, outside: int, time: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(8, inside), Norm(8, outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.time = nn.Linear(time, 2 * outside)
        self.shortcut = (
            nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()
        )
        nn.init.zeros_(self.conv2.weight)  # each block begins as its shortcut
        nn.init.zeros_(self.time.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """[N, inside, H, W] -> [N, outside, H, W]."""
        y = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        y = self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))
        return self.shortcut(x) + y  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Every place of a small picture looks at every other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.scale = Norm(8, channels), channels**-0.5
        self.into = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        query, key, value = self.into(self.norm(x)).flatten(2).chunk(3, 1)
        weights = torch.softmax(query.transpose(1, 2) @ key * self.scale, 2)
        return x + self.out((value @ weights.transpose(1, 2)).unflatten(2, x.shape[2:]))  # type: ignore[no-any-return]


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
        self.down1, self.down2 = Block(width, width, time), Block(width, width, time)
        self.shrink = nn.Conv2d(width, wide, 3, 2, padding=1)
        self.low1 = Block(wide, wide, time)
        self.look = Attention(wide)
        self.low2 = Block(wide, wide, time)
        self.grow = nn.Conv2d(wide, width, 1)
        self.up1, self.up2 = Block(2 * width, width, time), Block(width, width, time)
        self.last = nn.Sequential(
            Norm(8, width), nn.SiLU(), nn.Conv2d(width, pixels, 3, padding=1)
        )

    def forward(self, latent: Tensor, time: Tensor) -> Tensor:
        """The velocity, in the shape of `latent`."""
        angle = time[:, None] * self.frequencies
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        x = F.pad(latent.permute(0, 3, 1, 2), (0, self.pad[1], 0, self.pad[0]))
        x = side = self.down2(
            self.down1(self.first(F.pixel_unshuffle(x, 2)), time), time
        )
        x = self.low2(self.look(self.low1(self.shrink(x), time)), time)
        x = F.interpolate(self.grow(x), scale_factor=2.0, mode="nearest")
        x = self.up2(self.up1(torch.cat([x, side], 1), time), time)
        x = F.pixel_shuffle(self.last(x), 2)[:, :, : self.shape[0], : self.shape[1]]
        return x.permute(0, 2, 3, 1).contiguous()

    def draw(self, count: int) -> Tensor:
        """Pictures 0..1 [N, H, W, C], always of the same noise."""
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

        return torch.from_numpy(denoised(velocity, noise.cpu().numpy(), 25)) / 2 + 0.5  # type: ignore[arg-type]
