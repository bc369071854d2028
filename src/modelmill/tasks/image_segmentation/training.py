"""How segmentation is trained: cross-entropy of pixels and Dice loss of classes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.data.augment import Augment, augment_with_masks
from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.image_segmentation.mask_arrays import IGNORED

SCORE = "miou"
CHUNK = 8
"""Pictures validated at a time: logits of every pixel and class take memory."""
Batch = dict[str, Tensor]


class PixelClasses(nn.Module):
    """A network as it is deployed: the most probable class of every pixel and its probability."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [N, H, W, C] -> `scores` [N, H, W] and the class numbers `mask` uint8 [N, H, W]."""
        scores, mask = torch.softmax(self.network(image).float(), dim=1).max(1)
        return scores, mask.to(torch.uint8)


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network with a softmax and an argmax at its end."""
    return PixelClasses(network)


def change(batch: Batch, options: Augment, signature: Signature) -> Batch:
    """A training batch with its pictures and masks augmented together."""
    pictures, masks = augment_with_masks(batch["image"], batch["mask"], options)
    return {"image": pictures, "mask": masks}


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """Cross-entropy plus Dice loss; classes are weighted by the pixels that the network has counted
    in its buffer `seen`, where it has one.
    """
    mask = batch["mask"].long()
    seen: Tensor | None = getattr(network, "seen", None)
    if seen is not None:
        counts = torch.bincount(mask[mask != IGNORED], minlength=len(seen))
        seen += counts.to(seen.dtype)
    return _loss(network(batch["image"]), mask, settings, weights(seen))


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """Mean loss, mIoU over the classes in the batch, and the share of pixels classified right."""
    losses, matrices = [], []
    scale = weights(getattr(network, "seen", None))
    images, masks = (
        torch.split(batch[name], CHUNK) for name in ("image", "mask")
    )
    for image, truth in zip(images, masks, strict=True):
        mask = truth.long()
        logits = network(image)
        losses.append(_loss(logits, mask, settings, scale) * len(mask))
        matrices.append(_confusion(logits.argmax(1), mask, logits.shape[1]))
    loss = torch.stack(losses).sum() / len(batch["mask"])
    return {"loss": loss, **_figures(torch.stack(matrices).sum(0).float())}


def _figures(matrix: Tensor) -> dict[str, Tensor]:
    """mIoU and pixel accuracy of a confusion matrix."""
    correct = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - correct
    present = union > 0
    shares = correct[present] / union[present]
    return {
        "miou": shares.mean() if present.any() else correct.sum(),
        "pixel_accuracy": correct.sum() / matrix.sum().clamp(min=1),
    }


def weights(seen: Tensor | None) -> Tensor | None:
    """The weight of each class in the loss, [classes]: the square root of the median frequency over
    its own, at most 5; None before any pixel is counted.

    Eigen and Fergus 2015 (arXiv 1411.4734) use the ratio itself; the root leaves more weight to the
    common classes.
    """
    if seen is None or not bool((seen > 0).any()):
        return None
    middle = seen[seen > 0].median()
    return (middle / seen.clamp(min=1)).sqrt().clamp(max=5).float()


def _loss(
    logits: Tensor, mask: Tensor, settings: TrainSettings, scale: Tensor | None
) -> Tensor:
    logits = logits.float()
    if not bool((mask != IGNORED).any()):
        return logits.sum() * 0  # no labelled pixel
    pixels = F.cross_entropy(
        logits,
        mask,
        weight=scale,
        ignore_index=IGNORED,
        label_smoothing=settings.label_smoothing,
    )
    return pixels + _dice(logits, mask)


def _dice(logits: Tensor, mask: Tensor) -> Tensor:
    """1 minus the mean Dice coefficient of the classes in the batch (Milletari et al. 2016, arXiv
    1606.04797).
    """
    probabilities, classes = torch.softmax(logits, 1), logits.shape[1]
    labelled = mask != IGNORED
    numbers = mask[labelled]
    correct = _probabilities_of(mask.where(labelled, 0), probabilities)[
        labelled
    ]
    overlap = torch.zeros(classes, device=logits.device).index_add(
        0, numbers, correct
    )
    true = torch.bincount(numbers, minlength=classes)
    total = (probabilities * labelled.unsqueeze(1)).sum((0, 2, 3)) + true
    return 1 - (2 * overlap / total)[true > 0].mean()


def _probabilities_of(mask: Tensor, probabilities: Tensor) -> Tensor:
    """The probability [N, H, W] of each pixel's class, of those of all classes [N, C, H, W]."""
    return probabilities.gather(1, mask.unsqueeze(1)).squeeze(1)


def _confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """The confusion matrix [truth, predicted] of the pixels that are not ignored."""
    labelled = truth != IGNORED
    pairs = truth[labelled] * classes + predicted[labelled]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)
