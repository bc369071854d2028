"""How heat-map detectors are trained: Gaussians at the objects' centres, boxes at the cells around.

After CenterNet (Zhou et al. 2019, arXiv 1904.07850) and TTFNet (Liu et al. 2019, arXiv 1909.00700),
whose boxes are learnt at every cell of the Gaussian instead of the centre alone: a few hundred
pictures are enough.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.object_detection.augment import changed, compacted
from modelmill.tasks.object_detection.metrics import average_precision
from modelmill.tasks.object_detection.settings import IGNORED, TOP, BoxAugment

SCORE = ""
"""Empty: the last epoch is kept, for few validation pictures say little about which is best."""
GAUSSIAN = 0.54 / 6
"""Deviation of the Gaussian as a share of the box's side (TTFNet)."""
MIN_HEAT = 0.01
"""Values of a Gaussian below this are 0."""
BOX_WEIGHT = 5.0
"""Weight of the box loss beside the heat map's."""
Batch = dict[str, Tensor]


class PeakDecoder(nn.Module):
    """A network as it is deployed: the 100 highest local maxima of its heat map, as boxes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [N, H, W, C] -> `scores` [N, 100] in descending order, `boxes` [N, 100, 4] in 0..1
        of the picture, `classes` [N, 100].
        """
        heat, reach = self.network(image)
        return peaks(heat, reach)


def peaks(heat: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heat [N, C, H, W] and reach [N, 4, H, W] -> scores, boxes and classes; padding rows score
    0.
    """
    height, width = heat.shape[2:]
    heat = torch.sigmoid(heat.float())
    heat = torch.where(
        F.max_pool2d(heat, 3, 1, 1) == heat, heat, torch.zeros_like(heat)
    ).flatten(1)
    cells = height * width
    if heat.shape[1] < TOP:
        heat = F.pad(heat, (0, TOP - heat.shape[1]))
    scores, cells_of_peaks = heat.topk(TOP, dim=1)
    classes_of_peaks = torch.div(cells_of_peaks, cells, rounding_mode="floor") * (
        scores > 0
    )
    index = (cells_of_peaks % cells).unsqueeze(1).expand(-1, 4, -1)
    boxes = decode_boxes(reach).flatten(2).gather(2, index).transpose(1, 2)
    return scores, boxes.clamp(0, 1), classes_of_peaks


def decode_boxes(reach: Tensor) -> Tensor:
    """Each cell's reach to left, top, right and bottom -> corners [N, 4, H, W] in 0..1."""
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
    """Focal loss of the heat map plus generalised IoU loss of the boxes, per object."""
    heat, reach = network(batch["image"])
    return objective(heat.float(), reach, *compacted(batch["boxes"], batch["classes"]))


def objective(heat: Tensor, reach: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    """The loss of heat [N, C, H, W] and reach [N, 4, H, W] against boxes [N, M, 4] in 0..1 of
    classes [N, M].
    """
    count = (classes >= 0).sum().clamp(min=1)
    gaussians = _gaussians(boxes, classes, heat.shape[2], heat.shape[3])
    target = torch.zeros_like(heat)
    kind = classes.clamp(min=0)[:, :, None, None].expand_as(gaussians)
    target = target.scatter_reduce(1, kind, gaussians, "amax")
    ignored = _inside(boxes, classes == IGNORED, heat.shape[2], heat.shape[3])
    return (
        _focal(heat, target, ignored) / count
        + BOX_WEIGHT * _box_loss(reach, boxes, gaussians) / count
    )


def _gaussians(boxes: Tensor, classes: Tensor, height: int, width: int) -> Tensor:
    """A Gaussian for each object [N, M, H, W], 1 at the cell of its centre; 0 for padding rows."""
    size = boxes.new_tensor([width, height])
    low, high = boxes[..., :2] * size, boxes[..., 2:] * size
    centre = ((low + high) / 2).floor().clamp(min=0).minimum(size - 1)
    deviation = ((high - low) * GAUSSIAN).clamp(min=0.4)
    x = torch.arange(width, device=boxes.device, dtype=boxes.dtype)
    y = torch.arange(height, device=boxes.device, dtype=boxes.dtype)
    across = (x - centre[..., 0:1]) / deviation[..., 0:1]
    down = (y - centre[..., 1:2]) / deviation[..., 1:2]
    gaussian = torch.exp(-(across[..., None, :] ** 2 + down[..., :, None] ** 2) / 2)
    return torch.where(
        (classes >= 0)[..., None, None] & (gaussian > MIN_HEAT),
        gaussian,
        torch.zeros_like(gaussian),
    )


def _inside(boxes: Tensor, chosen: Tensor, height: int, width: int) -> Tensor:
    """Cells [N, 1, H, W] whose centre lies in a chosen box."""
    x = (torch.arange(width, device=boxes.device) + 0.5) / width
    y = (torch.arange(height, device=boxes.device) + 0.5) / height
    across = (x > boxes[..., 0:1]) & (x < boxes[..., 2:3])
    down = (y > boxes[..., 1:2]) & (y < boxes[..., 3:4])
    inside = across[..., None, :] & down[..., :, None] & chosen[..., None, None]
    return inside.any(1, keepdim=True)


def _focal(heat: Tensor, target: Tensor, ignored: Tensor) -> Tensor:
    """CornerNet's focal loss (Law and Deng 2018, eq. 1), summed, without cells of ignored boxes."""
    p = torch.sigmoid(heat)
    positive = F.logsigmoid(heat) * (1 - p) ** 2
    negative = F.logsigmoid(-heat) * p**2 * (1 - target) ** 4
    return -torch.where(
        target == 1,
        positive,
        torch.where(ignored, torch.zeros_like(negative), negative),
    ).sum()


def _box_loss(reach: Tensor, boxes: Tensor, gaussians: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al. 2019) over the cells of each Gaussian, weighted by its values,
    which sum to 1 for each object. A cell under several Gaussians gets the smallest box.
    """
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    smallest = torch.where(gaussians > 0, area[..., None, None], torch.inf).argmin(
        1, keepdim=True
    )
    assigned = torch.zeros_like(gaussians).scatter_(1, smallest, 1.0) * gaussians
    weight = (assigned / assigned.sum((2, 3), keepdim=True).clamp(min=1e-6)).sum(1)
    n, _, height, width = gaussians.shape
    index = smallest.flatten(1).unsqueeze(2).expand(-1, -1, 4)
    truth = boxes.gather(1, index).transpose(1, 2).reshape(n, 4, height, width)
    return ((1 - _giou(decode_boxes(reach), truth)) * weight).sum()


def _giou(predicted: Tensor, truth: Tensor) -> Tensor:
    """The generalised IoU of corners [N, 4, ...], -1..1."""
    low = torch.maximum(predicted[:, :2], truth[:, :2])
    high = torch.minimum(predicted[:, 2:], truth[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    areas = [
        (box[:, 2:] - box[:, :2]).clamp(min=0).prod(1) for box in (predicted, truth)
    ]
    union = areas[0] + areas[1] - common
    hull = (
        torch.maximum(predicted[:, 2:], truth[:, 2:])
        - torch.minimum(predicted[:, :2], truth[:, :2])
    ).prod(1)
    return common / union.clamp(min=1e-7) - (hull - union) / hull.clamp(min=1e-7)


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The loss and AP50 of a batch."""
    heat, reach = network(batch["image"])
    boxes, classes = compacted(batch["boxes"], batch["classes"])
    ap = average_precision(
        *(part.cpu().numpy() for part in (*peaks(heat, reach), boxes, classes))
    )
    return {
        "loss": objective(heat.float(), reach, boxes, classes),
        "ap50": heat.new_tensor(ap, dtype=torch.float32),
    }


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network with peaks decoded to boxes."""
    return PeakDecoder(network)


def change(batch: Batch, options: BoxAugment, signature: Signature) -> Batch:
    """A training batch with its pictures and boxes augmented."""
    pictures, boxes, classes = changed(
        batch["image"], batch["boxes"], batch["classes"], options
    )
    return {"image": pictures, "boxes": boxes, "classes": classes}


__all__ = ["SCORE", "change", "deployed", "loss", "validate"]
