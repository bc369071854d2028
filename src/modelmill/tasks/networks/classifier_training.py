"""How classifiers are trained: the loss, the metrics of a validation, and the deployed network."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.data.augment import Augment, augment, mix
from modelmill.tasks.base import Signature, TrainSettings

SCORE = "accuracy"
LABEL = "label"
Batch = dict[str, Tensor]


class Probabilities(nn.Module):
    """A classifier as it is deployed: with a softmax over its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Input [N, ...] -> probabilities [N, classes]."""
        return torch.softmax(self.network(x).float(), dim=1)


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """Cross-entropy with label smoothing; `label` holds class numbers [N], or shares [N,
    classes].
    """
    return cross_entropy(network(_input(batch)), batch[LABEL], settings)


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """Mean loss and accuracy of a batch."""
    logits = network(_input(batch))
    accuracy = (logits.argmax(1) == batch[LABEL]).float().mean()
    return {
        "loss": cross_entropy(logits, batch[LABEL], settings),
        "accuracy": accuracy,
    }


def cross_entropy(
    logits: Tensor, target: Tensor, settings: TrainSettings
) -> Tensor:
    """Cross-entropy of logits [N, classes], with the label smoothing of the settings."""
    return F.cross_entropy(
        logits.float(), target, label_smoothing=settings.label_smoothing
    )


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network with a softmax at its end."""
    return Probabilities(network)


def augment_pictures(
    batch: Batch, options: Augment, signature: Signature
) -> Batch:
    """A training batch with its pictures augmented; with mixup, labels become shares."""
    pictures, target = augment(batch["image"], options), batch[LABEL]
    if options.mixup:
        pictures, target = mix(
            pictures, target, signature.classes, options.mixup
        )
    return {"image": pictures, LABEL: target}


def _input(batch: Batch) -> Tensor:
    return next(part for name, part in batch.items() if name != LABEL)
