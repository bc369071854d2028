"""How vectors of texts are learnt: what belongs together lies nearer than all else in the batch."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.networks.transformer import Sentences

SCORE = "score"
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """By what the data say: pairs, pairs with scores, or labels."""
    scale = cast(Sentences, network).scale
    one = network(batch["ids"].long())
    if "label" in batch:
        return by_labels(one, batch["label"], scale)
    other = network(batch["other"].long())
    if "score" in batch:
        return by_scores((one * other).sum(1), batch["score"], scale)
    return by_pairs(one, other, batch, scale)


def by_pairs(one: Tensor, other: Tensor, batch: Batch, scale: float) -> Tensor:
    """Each text picks its other among those of the batch, and back (InfoNCE, van den Oord 2018,
    arXiv 1807.03748).
    """
    logits = scale * one @ other.T
    loss = torch.zeros((), device=logits.device)
    for scores, ids in ((logits, batch["other"]), (logits.T, batch["ids"])):
        # The same text once more is as right as the own one, so it is not held against it.
        same = (ids[:, None] == ids[None, :]).all(2).fill_diagonal_(False)
        wanted = torch.arange(len(scores), device=scores.device)
        loss = loss + F.cross_entropy(scores.masked_fill(same, -1e4), wanted) / 2
    return loss


def by_labels(vectors: Tensor, label: Tensor, scale: float) -> Tensor:
    """Texts of one label pick one another (Khosla et al. 2020, Supervised contrastive learning,
    arXiv 2004.11362).
    """
    alike = (label[:, None] == label[None, :]).fill_diagonal_(False)
    own = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    told = (scale * vectors @ vectors.T).masked_fill(own, -1e4).log_softmax(1)
    each = -(told * alike).sum(1) / alike.sum(1).clamp(min=1)
    return each[alike.any(1)].mean() if alike.any() else each.sum() * 0.0


def by_scores(cosines: Tensor, score: Tensor, scale: float) -> Tensor:
    """Pairs are to be in the order of their scores: CoSENT, as in sentence-transformers' loss of
    that name.
    """
    later = score[:, None] < score[None, :]
    apart = scale * (cosines[:, None] - cosines[None, :])
    return torch.cat([torch.zeros(1, device=apart.device), apart[later]]).logsumexp(0)


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The loss over the batch; `score` is larger where it is smaller."""
    value = loss(network, batch, settings)
    return {"loss": value, "score": -value}


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network itself."""
    return network
