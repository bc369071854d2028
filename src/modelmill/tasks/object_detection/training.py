"""How detectors by heat map are trained: Gaussians at the objects' centres, and boxes learnt around
them.

After CenterNet (Zhou et al. 2019, arXiv 1904.07850) and TTFNet (Liu et al. 2019, arXiv 1909.00700),
whose boxes are learnt at every cell of the Gaussian instead of the centre alone: a few hundred
pictures are enough.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.object_detection.augment import changed, packed
from modelmill.tasks.object_detection.metrics import average_precision
from modelmill.tasks.object_detection.settings import IGNORED, TOP, BoxAugment

SCORE = ""
"""The last epoch is kept: the learning rate has come to rest there, and few validation pictures
tell little.
"""
SPREAD = 0.54 / 6
"""The Gaussian's deviation as a share of the box's side (TTFNet)."""
LEAST = 0.01
BOX_WEIGHT = 5.0
Batch = dict[str, Tensor]


class Peaks(nn.Module):
    """A network as it is deployed: the 100 best local maxima of its heat map, as boxes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`scores` [N, 100] falling, `boxes` [N, 100, 4] in 0..1 of the picture, `classes` [N,
        100].
        """
        heat, reach = self.network(image)
        return peaks(heat, reach)


def peaks(heat: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heat [N, C, H, W] and reach [N, 4, H, W] as scores, boxes and classes; rows beyond all cells
    score 0.
    """
    height, width = heat.shape[2:]
    heat = torch.sigmoid(heat.float())
    heat = torch.where(
        F.max_pool2d(heat, 3, 1, 1) == heat, heat, torch.zeros_like(heat)
    ).flatten(1)
    cells = height * width
    if heat.shape[1] < TOP:
        heat = F.pad(heat, (0, TOP - heat.shape[1]))
    scores, places = heat.topk(TOP, dim=1)
    kinds = torch.div(places, cells, rounding_mode="floor") * (scores > 0)
    at = (places % cells).unsqueeze(1).expand(-1, 4, -1)
    boxes = spread(reach).flatten(2).gather(2, at).transpose(1, 2)
    return scores, boxes.clamp(0, 1), kinds


def spread(reach: Tensor) -> Tensor:
    """Corners [N, 4, H, W] in 0..1 that each cell's reach to left, top, right and bottom gives."""
    height, width = reach.shape[2:]
    distance = 0.25 * reach.float().clamp(-6, 3).exp()
    x = ((torch.arange(width, device=reach.device) + 0.5) / width).expand(height, width)
    y = (
        ((torch.arange(height, device=reach.device) + 0.5) / height)
        .unsqueeze(1)
        .expand(height, width)
    )
    left, top, right, bottom = distance.unbind(1)
    return torch.stack([x - left, y - top, x + right, y + bottom], 1)


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """Focal loss of the heat map, and generalised IoU of the boxes, per object."""
    heat, reach = network(batch["image"])
    return objective(heat.float(), reach, *packed(batch["boxes"], batch["classes"]))


def objective(heat: Tensor, reach: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    """The loss of heat [N, C, H, W] and reach [N, 4, H, W] to boxes [N, M, 4] in 0..1 of classes
    [N, M].
    """
    count = (classes >= 0).sum().clamp(min=1)
    hills = _hills(boxes, classes, heat.shape[2], heat.shape[3])
    wanted = torch.zeros_like(heat)
    kind = classes.clamp(min=0)[:, :, None, None].expand_as(hills)
    wanted = wanted.scatter_reduce(1, kind, hills, "amax")
    unseen = _inside(boxes, classes == IGNORED, heat.shape[2], heat.shape[3])
    return (
        _focal(heat, wanted, unseen) / count
        + BOX_WEIGHT * _box_loss(reach, boxes, hills) / count
    )


def _hills(boxes: Tensor, classes: Tensor, height: int, width: int) -> Tensor:
    """A Gaussian for each object [N, M, H, W], 1 at the cell of its centre; zero for rows without
    one.
    """
    size = boxes.new_tensor([width, height])
    low, high = boxes[..., :2] * size, boxes[..., 2:] * size
    middle = ((low + high) / 2).floor().clamp(min=0).minimum(size - 1)
    deviation = ((high - low) * SPREAD).clamp(min=0.4)
    x = torch.arange(width, device=boxes.device, dtype=boxes.dtype)
    y = torch.arange(height, device=boxes.device, dtype=boxes.dtype)
    across = (x - middle[..., 0:1]) / deviation[..., 0:1]
    down = (y - middle[..., 1:2]) / deviation[..., 1:2]
    hill = torch.exp(-(across[..., None, :] ** 2 + down[..., :, None] ** 2) / 2)
    return torch.where(
        (classes >= 0)[..., None, None] & (hill > LEAST), hill, torch.zeros_like(hill)
    )


def _inside(boxes: Tensor, chosen: Tensor, height: int, width: int) -> Tensor:
    """Cells [N, 1, H, W] whose centre lies in a chosen box."""
    x = (torch.arange(width, device=boxes.device) + 0.5) / width
    y = (torch.arange(height, device=boxes.device) + 0.5) / height
    across = (x > boxes[..., 0:1]) & (x < boxes[..., 2:3])
    down = (y > boxes[..., 1:2]) & (y < boxes[..., 3:4])
    inside = across[..., None, :] & down[..., :, None] & chosen[..., None, None]
    return inside.any(1, keepdim=True)


def _focal(heat: Tensor, wanted: Tensor, unseen: Tensor) -> Tensor:
    """CornerNet's focal loss (Law and Deng 2018, eq. 1), summed; cells of ignored objects are no
    background.
    """
    p = torch.sigmoid(heat)
    right = F.logsigmoid(heat) * (1 - p) ** 2
    wrong = F.logsigmoid(-heat) * p**2 * (1 - wanted) ** 4
    return -torch.where(
        wanted == 1, right, torch.where(unseen, torch.zeros_like(wrong), wrong)
    ).sum()


def _box_loss(reach: Tensor, boxes: Tensor, hills: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al. 2019) over each hill's cells, weighted by its height, which sum
    to 1 an object.

    A cell under several hills learns the smallest box.
    """
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    smallest = torch.where(hills > 0, area[..., None, None], torch.inf).argmin(
        1, keepdim=True
    )
    mine = torch.zeros_like(hills).scatter_(1, smallest, 1.0) * hills
    weight = (mine / mine.sum((2, 3), keepdim=True).clamp(min=1e-6)).sum(1)
    n, _, height, width = hills.shape
    at = smallest.flatten(1).unsqueeze(2).expand(-1, -1, 4)
    truth = boxes.gather(1, at).transpose(1, 2).reshape(n, 4, height, width)
    return ((1 - _giou(spread(reach), truth)) * weight).sum()


def _giou(one: Tensor, other: Tensor) -> Tensor:
    """Of corners [N, 4, ...] each, -1..1."""
    low = torch.maximum(one[:, :2], other[:, :2])
    high = torch.minimum(one[:, 2:], other[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(1) for box in (one, other)]
    union = areas[0] + areas[1] - common
    hull = (
        torch.maximum(one[:, 2:], other[:, 2:])
        - torch.minimum(one[:, :2], other[:, :2])
    ).prod(1)
    return common / union.clamp(min=1e-7) - (hull - union) / hull.clamp(min=1e-7)


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The loss and AP50 of a batch."""
    heat, reach = network(batch["image"])
    boxes, classes = packed(batch["boxes"], batch["classes"])
    ap = average_precision(
        *(part.cpu().numpy() for part in (*peaks(heat, reach), boxes, classes))
    )
    return {
        "loss": objective(heat.float(), reach, boxes, classes),
        "ap50": heat.new_tensor(ap, dtype=torch.float32),
    }


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """It answers boxes."""
    return Peaks(network)


def change(batch: Batch, how: BoxAugment, signature: Signature) -> Batch:
    """A training batch with its pictures changed at random, and the boxes with them."""
    pictures, boxes, classes = changed(
        batch["image"], batch["boxes"], batch["classes"], how
    )
    return {"image": pictures, "boxes": boxes, "classes": classes}


__all__ = ["SCORE", "change", "deployed", "loss", "validate"]
