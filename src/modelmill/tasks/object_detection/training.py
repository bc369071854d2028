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
from modelmill.tasks.object_detection.precision import average_precision
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
    cells = heat.shape[2] * heat.shape[3]
    scores, cells_of_peaks = _local_maxima(heat).topk(TOP, dim=1)
    classes = torch.div(cells_of_peaks, cells, rounding_mode="floor") * (
        scores > 0
    )
    index = (cells_of_peaks % cells).unsqueeze(1).expand(-1, 4, -1)
    boxes = decode_boxes(reach).flatten(2).gather(2, index).transpose(1, 2)
    return scores, boxes.clamp(0, 1), classes


def _local_maxima(heat: Tensor) -> Tensor:
    """Probabilities [N, C * H * W], at least 100, which are 0 but at the maxima of 3x3 cells."""
    heat = torch.sigmoid(heat.float())
    highest = F.max_pool2d(heat, 3, 1, 1) == heat
    heat = torch.where(highest, heat, torch.zeros_like(heat)).flatten(1)
    return (
        F.pad(heat, (0, TOP - heat.shape[1])) if heat.shape[1] < TOP else heat
    )


def decode_boxes(reach: Tensor) -> Tensor:
    """Each cell's reach to left, top, right and bottom -> corners [N, 4, H, W] in 0..1."""
    height, width = reach.shape[2:]
    distance = 0.25 * reach.float().clamp(-6, 3).exp()
    x = _centres(width, reach).expand(height, width)
    y = _centres(height, reach).unsqueeze(1).expand(height, width)
    left, top, right, bottom = distance.unbind(1)
    return torch.stack([x - left, y - top, x + right, y + bottom], 1)


def _centres(cells: int, like: Tensor) -> Tensor:
    """Where the centres of so many cells lie along a side of length 1."""
    return (torch.arange(cells, device=like.device) + 0.5) / cells


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """Focal loss of the heat map plus generalised IoU loss of the boxes, per object."""
    heat, reach = network(batch["image"])
    return objective(
        heat.float(), reach, *compacted(batch["boxes"], batch["classes"])
    )


def objective(
    heat: Tensor, reach: Tensor, boxes: Tensor, classes: Tensor
) -> Tensor:
    """The loss of heat [N, C, H, W] and reach [N, 4, H, W] against boxes [N, M, 4] in 0..1 of
    classes [N, M].
    """
    height, width = heat.shape[2:]
    count = (classes >= 0).sum().clamp(min=1)
    gaussians = _gaussians(boxes, classes, height, width)
    target = _target(heat, gaussians, classes)
    ignored = _inside(boxes, classes == IGNORED, height, width)
    return (
        _focal(heat, target, ignored) / count
        + BOX_WEIGHT * _box_loss(reach, boxes, gaussians) / count
    )


def _target(heat: Tensor, gaussians: Tensor, classes: Tensor) -> Tensor:
    """The heat map to learn, [N, C, H, W]: at each cell the highest Gaussian of each class."""
    kind = classes.clamp(min=0)[:, :, None, None].expand_as(gaussians)
    return torch.zeros_like(heat).scatter_reduce(1, kind, gaussians, "amax")


def _gaussians(
    boxes: Tensor, classes: Tensor, height: int, width: int
) -> Tensor:
    """A Gaussian for each object [N, M, H, W], 1 at the cell of its centre; 0 for padding rows."""
    size = boxes.new_tensor([width, height])
    low, high = boxes[..., :2] * size, boxes[..., 2:] * size
    centre = ((low + high) / 2).floor().clamp(min=0).minimum(size - 1)
    deviation = ((high - low) * GAUSSIAN).clamp(min=0.4)
    across = _deviations(width, centre[..., 0:1], deviation[..., 0:1])
    down = _deviations(height, centre[..., 1:2], deviation[..., 1:2])
    gaussian = torch.exp(
        -(across[..., None, :] ** 2 + down[..., :, None] ** 2) / 2
    )
    counted = (classes >= 0)[..., None, None] & (gaussian > MIN_HEAT)
    return torch.where(counted, gaussian, torch.zeros_like(gaussian))


def _deviations(cells: int, centre: Tensor, deviation: Tensor) -> Tensor:
    """How many deviations each of so many cells is away from the centre."""
    x = torch.arange(cells, device=centre.device, dtype=centre.dtype)
    return (x - centre) / deviation


def _inside(boxes: Tensor, chosen: Tensor, height: int, width: int) -> Tensor:
    """Cells [N, 1, H, W] whose centre lies in a chosen box."""
    across = _between(_centres(width, boxes), boxes[..., 0:1], boxes[..., 2:3])
    down = _between(_centres(height, boxes), boxes[..., 1:2], boxes[..., 3:4])
    inside = across[..., None, :] & down[..., :, None] & chosen[..., None, None]
    return inside.any(1, keepdim=True)


def _between(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (x > low) & (x < high)


def _focal(heat: Tensor, target: Tensor, ignored: Tensor) -> Tensor:
    """CornerNet's focal loss (Law and Deng 2018, eq. 1), summed, without cells of ignored boxes."""
    p = torch.sigmoid(heat)
    positive = F.logsigmoid(heat) * (1 - p) ** 2
    negative = F.logsigmoid(-heat) * p**2 * (1 - target) ** 4
    negative = torch.where(ignored, torch.zeros_like(negative), negative)
    return -torch.where(target == 1, positive, negative).sum()


def _box_loss(reach: Tensor, boxes: Tensor, gaussians: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al. 2019) over the cells of each Gaussian, weighted by its values,
    which sum to 1 for each object. A cell under several Gaussians gets the smallest box.
    """
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    smallest = torch.where(
        gaussians > 0, area[..., None, None], torch.inf
    ).argmin(1, keepdim=True)
    truth = _boxes_of_cells(boxes, smallest)
    return (
        (1 - _giou(decode_boxes(reach), truth))
        * _cell_weights(gaussians, smallest)
    ).sum()


def _cell_weights(gaussians: Tensor, assigned: Tensor) -> Tensor:
    """Weights [N, H, W] of the cells, of which each belongs to one object, `assigned`
    [N, 1, H, W].
    """
    own = torch.zeros_like(gaussians).scatter_(1, assigned, 1.0) * gaussians
    return (own / own.sum((2, 3), keepdim=True).clamp(min=1e-6)).sum(1)


def _boxes_of_cells(boxes: Tensor, assigned: Tensor) -> Tensor:
    """The box of each cell's object, [N, 4, H, W]."""
    n, _, height, width = assigned.shape
    index = assigned.flatten(1).unsqueeze(2).expand(-1, -1, 4)
    return boxes.gather(1, index).transpose(1, 2).reshape(n, 4, height, width)


def _giou(predicted: Tensor, truth: Tensor) -> Tensor:
    """The generalised IoU of corners [N, 4, ...], -1..1."""
    lows, highs = (
        (predicted[:, :2], truth[:, :2]),
        (predicted[:, 2:], truth[:, 2:]),
    )
    common = (torch.minimum(*highs) - torch.maximum(*lows)).clamp(min=0).prod(1)
    union = _areas(predicted) + _areas(truth) - common
    hull = (torch.maximum(*highs) - torch.minimum(*lows)).prod(1)
    return common / union.clamp(min=1e-7) - (hull - union) / hull.clamp(
        min=1e-7
    )


def _areas(boxes: Tensor) -> Tensor:
    """Areas [N, ...] of corners [N, 4, ...]."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


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
