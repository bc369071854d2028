"""How text embeddings are trained: texts that belong together lie nearer than the rest of the
batch.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.networks.transformer import SentenceEncoder

SCORE = "score"
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The loss of pairs, scored pairs or labels, by what the data hold."""
    scale = cast(SentenceEncoder, network).scale
    first = network(batch["ids"].long())
    if "label" in batch:
        return by_labels(first, batch["label"], scale)
    second = network(batch["other"].long())
    if "score" in batch:
        return by_scores((first * second).sum(1), batch["score"], scale)
    return by_pairs(first, second, batch, scale)


def by_pairs(
    first: Tensor, second: Tensor, batch: Batch, scale: float
) -> Tensor:
    """InfoNCE (van den Oord 2018, arXiv 1807.03748): each text picks its partner among those of the
    batch, in both directions.
    """
    logits = scale * first @ second.T
    there, back = (
        _picking(logits, batch["other"]),
        _picking(logits.T, batch["ids"]),
    )
    return there / 2 + back / 2


def _picking(scores: Tensor, ids: Tensor) -> Tensor:
    """The loss of picking each partner by scores [N, N]; `ids` [N, L] are the partners' tokens."""
    # Duplicates of a partner are right as well: they are no negatives.
    same = (ids[:, None] == ids[None, :]).all(2).fill_diagonal_(False)
    targets = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores.masked_fill(same, -1e4), targets)


def by_labels(vectors: Tensor, label: Tensor, scale: float) -> Tensor:
    """Supervised contrastive loss: texts of a label pick one another (Khosla et al. 2020, arXiv
    2004.11362).
    """
    same_label = (label[:, None] == label[None, :]).fill_diagonal_(False)
    log_shares = _log_shares(scale * vectors @ vectors.T)
    losses = -(log_shares * same_label).sum(1) / same_label.sum(1).clamp(min=1)
    return (
        losses[same_label.any(1)].mean()
        if same_label.any()
        else losses.sum() * 0.0
    )


def _log_shares(scores: Tensor) -> Tensor:
    """The logarithm of the probability with which each text picks each other one, [N, N]."""
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return scores.masked_fill(own, -1e4).log_softmax(1)


def by_scores(cosines: Tensor, score: Tensor, scale: float) -> Tensor:
    """CoSENT loss: cosines of pairs are ordered by their scores (as in sentence-transformers)."""
    lower = score[:, None] < score[None, :]
    differences = scale * (cosines[:, None] - cosines[None, :])
    return torch.cat(
        [torch.zeros(1, device=differences.device), differences[lower]]
    ).logsumexp(0)


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The loss over the batch; `score` is the negative loss."""
    value = loss(network, batch, settings)
    return {"loss": value, "score": -value}


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network itself."""
    return network
