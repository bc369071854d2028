"""How vectors are learnt: a classifier by angles, of which only the vectors are deployed.

A network gives `embed(image)`, vectors of any length [N, dimensions], and `logits(vectors,
labels)`.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.data.augment import Augment, augment
from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.networks.classifier_training import cross_entropy

SCORE = ""
"""The last epoch is kept: validation sees a part of the classes at once, and the schedule ends
where it should.
"""
Batch = dict[str, Tensor]


class Angles(nn.Module):
    """A body that makes vectors, with a unit vector for each class, told apart by the cosines
    between them.

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
        """Scaled cosines [N, classes]."""
        cosines = vectors @ F.normalize(self.classes.float(), dim=1).T
        return self.scale * (
            cosines - self.margin * F.one_hot(label, len(self.classes))
        )


class Vectors(nn.Module):
    """A network as it is deployed: without the classes of its training."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """[N, dimensions], each of length 1."""
        return F.normalize(self.body(x).float(), dim=1)


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """Cross-entropy of the scaled cosines."""
    vectors = network(batch["image"])
    return cross_entropy(
        cast(Angles, network).logits(vectors, batch["label"]), batch["label"], settings
    )


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """How often the nearest other item of the batch has the same label, and how much nearer it is
    than a wrong one.

    An item without a like one in the batch is compared with the vector of its class instead.
    """
    vectors, label = network(batch["image"]), batch["label"]
    scores = vectors @ vectors.T
    alike = (label[:, None] == label[None, :]).fill_diagonal_(False)
    others = label[:, None] != label[None, :]
    own = (
        vectors * F.normalize(cast(Angles, network).classes[label].float(), dim=1)
    ).sum(1)
    right = torch.where(alike.any(1), scores.masked_fill(~alike, -1.0).amax(1), own)
    wrong = scores.masked_fill(~others, -1.0).amax(1)
    return {
        "recall_at_1": (right > wrong).float().mean(),
        "margin": (right - wrong).mean(),
    }


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """It answers vectors."""
    return Vectors(cast(Angles, network).body)


def change(batch: Batch, how: Augment, signature: Signature) -> Batch:
    """A training batch with its pictures changed at random."""
    return {**batch, "image": augment(batch["image"], how)}
