"""How classifiers are trained: what is minimised, what a validation counts, and what is
deployed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.data.augment import Augment, augment, mix
from modelmill.tasks.base import Signature, TrainSettings

SCORE = "accuracy"
LABEL = "label"
Batch = dict[str, Tensor]


class Probabilities(nn.Module):
    """A network as it is deployed: logits become probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """[N, classes] summing to 1."""
        return torch.softmax(self.network(x).float(), dim=1)


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """Cross-entropy with label smoothing; `label` holds numbers [N], or shares [N, classes]."""
    return cross_entropy(network(_input(batch)), batch[LABEL], settings)


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """Mean loss and accuracy of a batch."""
    logits = network(_input(batch))
    right = (logits.argmax(1) == batch[LABEL]).float().mean()
    return {"loss": cross_entropy(logits, batch[LABEL], settings), "accuracy": right}


def cross_entropy(logits: Tensor, target: Tensor, settings: TrainSettings) -> Tensor:
    """Of logits [N, classes], with the label smoothing of the settings."""
    return F.cross_entropy(
        logits.float(), target, label_smoothing=settings.label_smoothing
    )


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """It answers probabilities."""
    return Probabilities(network)


def change_pictures(batch: Batch, how: Augment, signature: Signature) -> Batch:
    """A training batch with its pictures changed at random."""
    pictures, target = augment(batch["image"], how), batch[LABEL]
    if how.mixup:
        pictures, target = mix(pictures, target, signature.classes, how.mixup)
    return {"image": pictures, LABEL: target}


def _input(batch: Batch) -> Tensor:
    return next(part for name, part in batch.items() if name != LABEL)
