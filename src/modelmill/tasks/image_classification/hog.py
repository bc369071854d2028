"""Histograms of oriented gradients and a linear classifier over them, as a torch network.

Dalal and Triggs 2005, "Histograms of Oriented Gradients for Human Detection", CVPR.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from modelmill.tasks.image_classification.recipes.hog_svm import Settings

CLIP = 0.2
"""Largest element of a normalised block."""
EPSILON = 1e-3
"""Added to the length of a block, so that a flat picture has no direction."""
FLAT = 1e-9
"""Added to a horizontal difference, so that it divides."""


class Hog(nn.Module):
    """Pictures uint8 [N, H, W, C] -> features float32 [N, D]."""

    tent: Tensor

    def __init__(self, settings: "Settings", height: int, width: int) -> None:
        super().__init__()
        cell, self.bins = settings.cell, settings.orientations
        rows, columns = -(-height // cell), -(-width // cell)
        self.cell = cell
        self.block = min(settings.block, rows), min(settings.block, columns)
        self.blocks = rows - self.block[0] + 1, columns - self.block[1] + 1
        before = cell // 2
        right = (columns + 1) * cell - width - before
        bottom = (rows + 1) * cell - height - before
        self.margin = (before, right, before, bottom)
        tent = _tent(cell).expand(self.bins, 1, -1, -1)
        self.register_buffer("tent", tent.contiguous())

    def forward(self, image: Tensor) -> Tensor:
        """Features of the pictures."""
        dx, dy, magnitude = gradients(image)
        cells = self.histograms(torch.atan(dy / (dx + FLAT)), magnitude)
        return self.normalised(cells)

    def histograms(self, angle: Tensor, magnitude: Tensor) -> Tensor:
        """Angles and magnitudes [N, 1, H, W] -> histograms of cells [N, bins, rows, columns].

        A vote is shared by the two nearest bins and by the four nearest cells. A direction and its
        opposite are one: bins lie on half a turn.
        """
        centres = torch.arange(self.bins).view(1, -1, 1, 1) + 0.5
        distance = angle * (self.bins / torch.pi) - centres
        distance = distance - self.bins * torch.round(distance / self.bins)
        votes = torch.relu(1 - distance.abs()) * magnitude
        padded = F.pad(votes, self.margin)
        return F.conv2d(padded, self.tent, stride=self.cell, groups=self.bins)

    def normalised(self, cells: Tensor) -> Tensor:
        """Histograms of cells -> all blocks of neighbouring cells [N, D], normalised, clipped and
        normalised again (L2-Hys).
        """
        rows, columns = self.blocks
        parts = [
            cells[:, :, y : y + rows, x : x + columns]
            for y in range(self.block[0])
            for x in range(self.block[1])
        ]
        blocks = _unit(torch.cat(parts, dim=1)).clamp(max=CLIP)
        return _unit(blocks).flatten(1)


class LinearHog(nn.Module):
    """Pictures uint8 [N, H, W, C] -> scores [N, K]: softmax of a linear layer over `Hog`."""

    def __init__(self, hog: Hog, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.hog = hog
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the pictures."""
        return F.linear(self.hog(image), self.weight, self.bias).softmax(1)


def _tent(cell: int) -> Tensor:
    """How a vote is shared by the cells whose middles are near, less the further they are: a tent
    two cells wide, [2 * cell, 2 * cell].
    """
    middle = (2 * cell - 1) / 2
    slope = (
        1 - (torch.arange(2 * cell, dtype=torch.float64) - middle).abs() / cell
    )
    return torch.outer(slope, slope).float() / cell**2


def gradients(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Differences across and down, and their magnitude [N, 1, H, W] each, of the channel that
    changes most at each pixel.

    Pixels are square roots (gamma compression), differences are centred, [-1, 0, 1].
    """
    dx, dy = _differences(image.permute(0, 3, 1, 2).float().sqrt())
    squared = dx * dx + dy * dy
    if image.shape[3] > 1:
        channel = squared.argmax(1, keepdim=True)
        dx, dy = dx.gather(1, channel), dy.gather(1, channel)
        squared = squared.gather(1, channel)
    return dx, dy, squared.sqrt()


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Between the neighbours of each pixel across and down, the border repeated."""
    framed = F.pad(x, (1, 1, 1, 1), mode="replicate")
    dx = framed[:, :, 1:-1, 2:] - framed[:, :, 1:-1, :-2]
    return dx, framed[:, :, 2:, 1:-1] - framed[:, :, :-2, 1:-1]


def _unit(blocks: Tensor) -> Tensor:
    length = (blocks * blocks).sum(1, keepdim=True).sqrt()
    return blocks / (length + EPSILON)
