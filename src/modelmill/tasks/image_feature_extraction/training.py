"""How image embeddings are trained: as a cosine classifier, of which the embedding is deployed."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.data.augment import Augment, augment
from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.networks.classifier_training import cross_entropy

SCORE = ""
"""Empty: the last epoch is kept, for a validation batch holds a part of the classes alone."""
Batch = dict[str, Tensor]


class CosineClassifier(nn.Module):
    """An embedding network with a unit vector for each class; logits are scaled cosines.

    The cosine of the right class is lowered by `margin` (CosFace, Wang et al. 2018, arXiv
    1801.09414; without a margin NormFace, 1704.06369) and all are multiplied by `scale`.
    """

    def __init__(
        self,
        body: nn.Module,
        dimensions: int,
        classes: int,
        scale: float,
        margin: float,
    ) -> None:
        super().__init__()
        self.body = body
        self.scale = scale
        self.margin = margin
        self.classes = nn.Parameter(
            F.normalize(torch.randn(classes, dimensions), dim=1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, C] -> unit vectors [N, dimensions]."""
        return F.normalize(self.body(image).float(), dim=1)

    def logits(self, vectors: Tensor, label: Tensor) -> Tensor:
        """Unit vectors [N, dimensions] and labels [N] -> logits [N, classes]."""
        cosines = vectors @ F.normalize(self.classes.float(), dim=1).T
        return self.scale * (
            cosines - self.margin * F.one_hot(label, len(self.classes))
        )


class DeployedEmbedding(nn.Module):
    """The embedding network as it is deployed, without the vectors of the classes."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """uint8 [N, H, W, C] -> unit vectors [N, dimensions]."""
        return F.normalize(self.body(x).float(), dim=1)


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """Cross-entropy of the scaled cosines."""
    vectors = network(batch["image"])
    return cross_entropy(
        cast(CosineClassifier, network).logits(vectors, batch["label"]),
        batch["label"],
        settings,
    )


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """Recall at 1 within the batch, and the mean margin of the nearest item of the same label over
    the nearest of another.

    An item whose label occurs once in the batch is compared with the vector of its class.
    """
    vectors, label = network(batch["image"]), batch["label"]
    classes = cast(CosineClassifier, network).classes[label]
    own = (vectors * F.normalize(classes.float(), dim=1)).sum(1)
    right, wrong = _nearest(vectors @ vectors.T, label, own)
    return {
        "recall_at_1": (right > wrong).float().mean(),
        "margin": (right - wrong).mean(),
    }


def _nearest(
    scores: Tensor, label: Tensor, own: Tensor
) -> tuple[Tensor, Tensor]:
    """Of scores [N, N] the best of each item's label, `own` [N] where no other item has it, and the
    best of other labels.
    """
    same_label = (label[:, None] == label[None, :]).fill_diagonal_(False)
    others = label[:, None] != label[None, :]
    same = scores.masked_fill(~same_label, -1.0).amax(1)
    right = torch.where(same_label.any(1), same, own)
    return right, scores.masked_fill(~others, -1.0).amax(1)


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The embedding network alone."""
    return DeployedEmbedding(cast(CosineClassifier, network).body)


def change(batch: Batch, options: Augment, signature: Signature) -> Batch:
    """A training batch with its pictures augmented."""
    return {**batch, "image": augment(batch["image"], options)}
