"""How segmentation is trained: a loss of every pixel and one of whole classes, and what is
deployed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.data.augment import Augment, augment_with_masks
from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.image_segmentation.mask_arrays import IGNORED

SCORE = "miou"
CHUNK = 8
"""Pictures that are validated at once: logits of every pixel and class take room."""
Batch = dict[str, Tensor]


class Named(nn.Module):
    """A network as it is deployed: the best class of every pixel and its probability."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """`scores` [N, H, W] and `mask` uint8 [N, H, W]."""
        scores, mask = torch.softmax(self.network(image).float(), dim=1).max(1)
        return scores, mask.to(torch.uint8)


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """It answers class numbers and their probabilities."""
    return Named(network)


def change(batch: Batch, how: Augment, signature: Signature) -> Batch:
    """A training batch whose pictures and masks are changed at random, together."""
    pictures, masks = augment_with_masks(batch["image"], batch["mask"], how)
    return {"image": pictures, "mask": masks}


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """Weighted cross-entropy and Dice loss; a network that counts pixels in `seen` has its classes
    weighed by it.
    """
    mask = batch["mask"].long()
    seen: Tensor | None = getattr(network, "seen", None)
    if seen is not None:
        seen += torch.bincount(mask[mask != IGNORED], minlength=len(seen)).to(
            seen.dtype
        )
    return _loss(network(batch["image"]), mask, settings, weights(seen))


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """Mean loss, mIoU of the classes that a batch holds, and the share of pixels named right."""
    losses, matrices = [], []
    scale = weights(getattr(network, "seen", None))
    images, masks = (torch.split(batch[name], CHUNK) for name in ("image", "mask"))
    for image, truth in zip(images, masks, strict=True):
        part = truth.long()
        logits = network(image)
        losses.append(_loss(logits, part, settings, scale) * len(part))
        matrices.append(_confusion(logits.argmax(1), part, logits.shape[1]))
    matrix = torch.stack(matrices).sum(0).float()
    right, every = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    held = every > 0
    return {
        "loss": torch.stack(losses).sum() / len(batch["mask"]),
        "miou": (right[held] / every[held]).mean() if held.any() else right.sum(),
        "pixel_accuracy": right.sum() / matrix.sum().clamp(min=1),
    }


def weights(seen: Tensor | None) -> Tensor | None:
    """By how much each class counts: the root of the median frequency over its own, at most 5.

    Eigen and Fergus 2015 (arXiv 1411.4734) balance by the ratio itself; its root leaves more to the
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
        return logits.sum() * 0  # nothing here to learn from
    pixels = F.cross_entropy(
        logits,
        mask,
        weight=scale,
        ignore_index=IGNORED,
        label_smoothing=settings.label_smoothing,
    )
    return pixels + _dice(logits, mask)


def _dice(logits: Tensor, mask: Tensor) -> Tensor:
    """One less the mean Dice coefficient of the classes in the batch (Milletari et al. 2016, arXiv
    1606.04797).
    """
    shares = torch.softmax(logits, 1)
    known = mask != IGNORED
    numbers = mask[known]
    right = shares.gather(1, mask.where(known, 0).unsqueeze(1)).squeeze(1)[known]
    both = torch.zeros(logits.shape[1], device=logits.device).index_add(
        0, numbers, right
    )
    true = torch.bincount(numbers, minlength=logits.shape[1])
    each = (shares * known.unsqueeze(1)).sum((0, 2, 3)) + true
    return 1 - (2 * both / each)[true > 0].mean()


def _confusion(guess: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Counts [truth, guess] of the pixels that are not ignored."""
    known = truth != IGNORED
    return torch.bincount(
        truth[known] * classes + guess[known], minlength=classes**2
    ).view(classes, classes)
