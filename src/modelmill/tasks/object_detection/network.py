"""The detector: a residual network with a feature pyramid at an eighth of the resolution."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Signature
from modelmill.tasks.networks.layers import Pixels, Residual, conv, pixel_input

STAGES = 4
PRIOR = 0.02
"""Initial probability of the heat map, low as objects are rare (Lin et al. 2017, focal loss)."""


class Detector(nn.Module):
    """uint8 [N, H, W, C] -> heat [N, classes, H / 8, W / 8] as logits, and reach [N, 4, H / 8, W /
    8].
    """

    def __init__(
        self, signature: Signature, channels: int, blocks: int, neck: int
    ) -> None:
        super().__init__()
        self.stem = _stem(signature, channels)
        widths = [channels << stage for stage in range(1, STAGES)]
        self.stages = nn.ModuleList(_stage(width, blocks) for width in widths)
        self.laterals = nn.ModuleList(
            nn.Conv2d(width, neck, 1) for width in widths
        )
        self.smooth = _smoothing(neck)
        self.heat = _head(neck, signature.classes, -math.log(1 / PRIOR - 1))
        self.reach = _head(neck, 4, 0.0)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Heat and reach; coarse features are added to finer ones (Lin et al. 2017, FPN)."""
        features = self._features(image)
        top = features.pop()
        while features:
            finer = features.pop()
            top = finer + F.interpolate(
                top, size=finer.shape[2:], mode="nearest"
            )
        top = self.smooth(top)
        return self.heat(top), self.reach(top)

    def _features(self, image: Tensor) -> list[Tensor]:
        """What each stage gives to the pyramid, the finest first."""
        x = self.stem(image)
        features: list[Tensor] = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage(x)
            features.append(lateral(x))
        return features


def _stem(signature: Signature, channels: int) -> nn.Sequential:
    """Pixels at a quarter of their resolution."""
    in_channels = pixel_input(signature)[2]
    return nn.Sequential(
        Pixels(signature),
        conv(in_channels, channels, size=5, stride=2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        Residual(channels, channels, stride=2),
    )


def _stage(width: int, blocks: int) -> nn.Sequential:
    """Blocks at half the resolution and twice the channels of what comes in."""
    return nn.Sequential(
        Residual(width // 2, width, stride=2),
        *(Residual(width, width, stride=1) for _ in range(blocks - 1)),
    )


def _smoothing(neck: int) -> nn.Sequential:
    return nn.Sequential(
        conv(neck, neck, bias=False), nn.BatchNorm2d(neck), nn.ReLU()
    )


def _head(neck: int, out_channels: int, bias: float) -> nn.Sequential:
    last = nn.Conv2d(neck, out_channels, 1)
    nn.init.normal_(last.weight, std=0.01)
    assert last.bias is not None
    nn.init.constant_(last.bias, bias)
    return nn.Sequential(*_smoothing(neck), last)
