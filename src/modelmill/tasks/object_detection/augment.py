"""Augmentation of training pictures together with their boxes, a batch at a time.

Everything random comes from torch's default generator, which the training loop seeds before each
step.
"""

import math
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from modelmill.data.augment import jitter_colours
from modelmill.tasks.object_detection.settings import (
    IGNORED,
    NO_BOX,
    BoxAugment,
)

MIN_VISIBLE = 0.35
"""Share of a box that must stay inside the picture; boxes with less are ignored."""


class Scenes(NamedTuple):
    """A batch: pictures [N, C, H, W] as floats, boxes [N, M, 4] in 0..1 and classes [N, M]."""

    pictures: Tensor
    boxes: Tensor
    classes: Tensor


def changed(
    pictures: Tensor, boxes: Tensor, classes: Tensor, options: BoxAugment
) -> tuple[Tensor, Tensor, Tensor]:
    """Augment uint8 pictures [N, H, W, C], boxes [N, M, 4] in 0..1 and classes [N, M]; pictures are
    returned as floats 0..255.

    M may change: padding rows that no picture needs are removed.
    """
    scenes = Scenes(
        pictures.permute(0, 3, 1, 2).float(), *compacted(boxes, classes)
    )
    if options.mosaic:
        scenes = _mosaic(scenes, options.mosaic)
    x, boxes, classes = _resampled(scenes, options)
    x = jitter_colours(x, options).clamp_(0, 255)
    return x.permute(0, 2, 3, 1), boxes, classes


def compacted(boxes: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes before padding rows, cut to the most boxes of a picture (at least one row)."""
    order = (classes == NO_BOX).int().argsort(dim=1, stable=True)
    rows_needed = max(1, int((classes != NO_BOX).sum(1).max()))
    order = order[:, :rows_needed]
    return boxes.gather(
        1, order.unsqueeze(2).expand(-1, -1, 4)
    ), classes.gather(1, order)


def _mosaic(scenes: Scenes, share: float) -> Scenes:
    """Replaces a random share of the pictures by mosaics of four, each at half its size
    (Bochkovskiy et al. 2020, YOLOv4).
    """
    x = scenes.pictures
    chosen = torch.rand(len(x), device=x.device) < share
    if not chosen.any():
        return scenes
    mosaics, single = _sheets_of_four(scenes), _with_room_for_four(scenes)
    x = torch.where(chosen[:, None, None, None], mosaics.pictures, x)
    boxes = torch.where(chosen[:, None, None], mosaics.boxes, single.boxes)
    classes = torch.where(chosen[:, None], mosaics.classes, single.classes)
    return Scenes(x, *compacted(boxes, classes))


def _with_room_for_four(scenes: Scenes) -> Scenes:
    """The same scenes with padding rows for the boxes of three more pictures."""
    empty = torch.full_like(scenes.classes, NO_BOX).repeat(1, 3)
    classes = torch.cat([scenes.classes, empty], 1)
    return Scenes(scenes.pictures, scenes.boxes.repeat(1, 4, 1), classes)


def _sheets_of_four(scenes: Scenes) -> Scenes:
    """Mosaics of random pictures of the batch, as many as it has, with the boxes of all four."""
    x, boxes, classes = scenes
    sheets = torch.empty_like(x)
    places: list[Tensor] = []
    kinds: list[Tensor] = []
    for quarter in _quarters(x):
        other = torch.randperm(len(x), device=x.device)
        sheets[:, :, quarter.rows, quarter.columns] = F.interpolate(
            x[other], size=quarter.size, mode="area"
        )
        places.append(_boxes_in_part(boxes[other], quarter, x))
        kinds.append(classes[other])
    return Scenes(sheets, torch.cat(places, 1), torch.cat(kinds, 1))


class Part(NamedTuple):
    """A part of a picture, in pixels."""

    rows: slice
    columns: slice

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return (
            self.rows.stop - self.rows.start,
            self.columns.stop - self.columns.start,
        )


def _quarters(x: Tensor) -> list[Part]:
    """The quarters of pictures [N, C, H, W], the upper ones first."""
    rows, columns = (
        (slice(0, side // 2), slice(side // 2, side)) for side in x.shape[2:]
    )
    return [Part(*both) for both in product(rows, columns)]


def _boxes_in_part(boxes: Tensor, part: Part, x: Tensor) -> Tensor:
    """Boxes in 0..1 of pictures that were shrunk into this part of `x`."""
    height, width = x.shape[2:]
    scale = x.new_tensor([part.size[1] / width, part.size[0] / height] * 2)
    corner = x.new_tensor(
        [part.columns.start / width, part.rows.start / height] * 2
    )
    return boxes * scale + corner


def _resampled(scenes: Scenes, options: BoxAugment) -> Scenes:
    """Flip, scale, stretch and shift in one resampling; outside the picture is black."""
    x, boxes, classes = scenes
    ratio = _zoom(x, options)
    limit = (1 - ratio).abs() + options.crop
    shift = (torch.rand_like(limit) * 2 - 1) * limit
    ratio = ratio * _mirroring(x, options)
    return Scenes(
        _warped(x, ratio, shift),
        *_transformed_boxes(boxes, classes, ratio, shift),
    )


def _zoom(x: Tensor, options: BoxAugment) -> Tensor:
    """The shares [N, 2] of width and height that are seen, drawn at random."""
    scale = _uniform(
        x, math.log(options.scale_min), math.log(options.scale_max)
    ).exp()
    aspect = _uniform(x, -options.aspect, options.aspect).exp()
    return torch.stack([scale * aspect, scale / aspect], 1)


def _mirroring(x: Tensor, options: BoxAugment) -> Tensor:
    """-1 or 1 for each picture and direction, [N, 2]."""
    return torch.stack(
        [_sign(x, options.flip), _sign(x, options.flip_vertical)], 1
    )


def _warped(x: Tensor, ratio: Tensor, shift: Tensor) -> Tensor:
    """Pictures sampled at points that are scaled by `ratio` and moved by `shift`, both [N, 2]."""
    theta = torch.cat([torch.diag_embed(ratio), shift.unsqueeze(2)], 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(
        x, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


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
    return torch.cat([low, high], 2), _visible_classes(classes, left, area)


def _visible_classes(classes: Tensor, left: Tensor, area: Tensor) -> Tensor:
    """Classes of boxes of which `left` of their `area` is still in the picture."""
    hardly = (left < MIN_VISIBLE * area) & (classes != NO_BOX)
    classes = torch.where(hardly, IGNORED, classes)
    return torch.where(left <= 0, NO_BOX, classes)


def _uniform(x: Tensor, low: float, high: float) -> Tensor:
    """A uniform random number for each picture, [N]."""
    return torch.rand(len(x), device=x.device) * (high - low) + low


def _sign(x: Tensor, flip: bool) -> Tensor:
    chance = 0.5 if flip else 0.0
    return 1 - 2 * (torch.rand(len(x), device=x.device) < chance).float()
