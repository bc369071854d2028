"""Augmentation of training pictures together with their boxes, a batch at a time.

Everything random comes from torch's default generator, which the training loop seeds before each
step.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from modelmill.data.augment import jitter_colours
from modelmill.tasks.object_detection.settings import IGNORED, NO_BOX, BoxAugment

MIN_VISIBLE = 0.35
"""Share of a box that must stay inside the picture; boxes with less are ignored."""


def changed(
    pictures: Tensor, boxes: Tensor, classes: Tensor, options: BoxAugment
) -> tuple[Tensor, Tensor, Tensor]:
    """Augment uint8 pictures [N, H, W, C], boxes [N, M, 4] in 0..1 and classes [N, M]; pictures are
    returned as floats 0..255.

    M may change: padding rows that no picture needs are removed.
    """
    x = pictures.permute(0, 3, 1, 2).float()
    boxes, classes = compacted(boxes, classes)
    if options.mosaic:
        x, boxes, classes = _mosaic(x, boxes, classes, options.mosaic)
    x, boxes, classes = _resampled(x, boxes, classes, options)
    x = jitter_colours(x, options).clamp_(0, 255)
    return x.permute(0, 2, 3, 1), boxes, classes


def compacted(boxes: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes before padding rows, cut to the most boxes of a picture (at least one row)."""
    order = (classes == NO_BOX).int().argsort(dim=1, stable=True)
    rows_needed = max(1, int((classes != NO_BOX).sum(1).max()))
    order = order[:, :rows_needed]
    return boxes.gather(1, order.unsqueeze(2).expand(-1, -1, 4)), classes.gather(
        1, order
    )


def _mosaic(
    x: Tensor, boxes: Tensor, classes: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Replaces a random share of the pictures by mosaics of four, each at half its size
    (Bochkovskiy et al. 2020, YOLOv4).
    """
    count, _, height, width = x.shape
    chosen = torch.rand(count, device=x.device) < share
    if not chosen.any():
        return x, boxes, classes
    top, left = height // 2, width // 2
    sheet = torch.empty_like(x)
    parts: list[Tensor] = []
    kinds: list[Tensor] = []
    for row in (0, 1):
        for column in (0, 1):
            other = torch.randperm(count, device=x.device)
            rows = slice(0, top) if row == 0 else slice(top, height)
            columns = slice(0, left) if column == 0 else slice(left, width)
            size = (rows.stop - rows.start, columns.stop - columns.start)
            sheet[:, :, rows, columns] = F.interpolate(x[other], size=size, mode="area")
            scale = x.new_tensor([size[1] / width, size[0] / height] * 2)
            corner = x.new_tensor([columns.start / width, rows.start / height] * 2)
            parts.append(boxes[other] * scale + corner)
            kinds.append(classes[other])
    empty = torch.full_like(classes, NO_BOX).repeat(1, 3)
    single = (
        torch.cat([classes, empty], 1),
        torch.cat([boxes, boxes.repeat(1, 3, 1)], 1),
    )
    kind = torch.where(chosen[:, None], torch.cat(kinds, 1), single[0])
    place = torch.where(chosen[:, None, None], torch.cat(parts, 1), single[1])
    return torch.where(chosen[:, None, None, None], sheet, x), *compacted(place, kind)


def _resampled(
    x: Tensor, boxes: Tensor, classes: Tensor, options: BoxAugment
) -> tuple[Tensor, Tensor, Tensor]:
    """Flip, scale, stretch and shift in one resampling; outside the picture is black."""
    scale = _uniform(x, math.log(options.scale_min), math.log(options.scale_max)).exp()
    aspect = _uniform(x, -options.aspect, options.aspect).exp()
    ratio = torch.stack([scale * aspect, scale / aspect], 1)
    limit = (1 - ratio).abs() + options.crop
    shift = (torch.rand_like(limit) * 2 - 1) * limit
    ratio = ratio * torch.stack(
        [_sign(x, options.flip), _sign(x, options.flip_vertical)], 1
    )
    theta = torch.cat([torch.diag_embed(ratio), shift.unsqueeze(2)], 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(
        x, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return x, *_transformed_boxes(boxes, classes, ratio, shift)


def _transformed_boxes(
    boxes: Tensor, classes: Tensor, ratio: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Boxes after resampling, clipped to the picture; those that are hardly visible are ignored."""
    corners = (2 * boxes - 1).view(*boxes.shape[:2], 2, 2)
    corners = ((corners - shift[:, None, None]) / ratio[:, None, None] + 1) / 2
    low, high = corners.amin(2), corners.amax(2)
    area = (high - low).prod(2)
    low, high = low.clamp(0, 1), high.clamp(0, 1)
    left = (high - low).prod(2)
    classes = torch.where(
        (left < MIN_VISIBLE * area) & (classes != NO_BOX), IGNORED, classes
    )
    classes = torch.where(left <= 0, NO_BOX, classes)
    return torch.cat([low, high], 2), classes


def _uniform(x: Tensor, low: float, high: float) -> Tensor:
    """A uniform random number for each picture, [N]."""
    return torch.rand(len(x), device=x.device) * (high - low) + low


def _sign(x: Tensor, flip: bool) -> Tensor:
    return (
        1 - 2 * (torch.rand(len(x), device=x.device) < (0.5 if flip else 0.0)).float()
    )
