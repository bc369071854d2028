"""How readers are trained: where the answer begins and where it ends."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Signature, TrainSettings

SCORE = "f1"
LONGEST = 30
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The cross-entropy of both ends, in nats."""
    start, end = _told(network, batch)
    smoothing, span = settings.label_smoothing, batch["span"]
    return _surprise(start, span[:, 0], smoothing) + _surprise(end, span[:, 1], smoothing)


def _surprise(told: Tensor, place: Tensor, smoothing: float) -> Tensor:
    """Smoothing goes to the places around: an end that is missed by a word is not all wrong."""
    near = told.gather(1, place[:, None])[:, 0]
    if not smoothing:
        return -near.mean()
    sides = [told.gather(1, (place[:, None] + step).clamp(1, told.shape[1] - 1))[:, 0] for step in (-1, 1)]
    around = torch.where(place > 0, (sides[0] + sides[1]).clamp(min=-60) / 2, near)
    return -((1 - smoothing) * near + smoothing * around).mean()


def validate(network: nn.Module, batch: Batch, settings: TrainSettings) -> dict[str, Tensor]:
    """The same, the share of spans that are right, and the F1 of their places."""
    start, end = _told(network, batch)
    span = batch["span"]
    both = start[:, 1:, None] + end[:, None, 1:]
    size = both.shape[1]
    allowed = torch.ones(size, size, dtype=torch.bool, device=both.device).triu().tril(LONGEST)
    best = both.masked_fill(~allowed, -1e9).flatten(1).argmax(1)
    first, last = best // size + 1, best % size + 1
    same = (torch.minimum(last, span[:, 1]) - torch.maximum(first, span[:, 0]) + 1).clamp(min=0)
    both_sizes = (last - first + 1) + (span[:, 1] - span[:, 0] + 1)
    return {
        "loss": _surprise(start, span[:, 0], 0.0) + _surprise(end, span[:, 1], 0.0),
        "em": ((first == span[:, 0]) & (last == span[:, 1])).float().mean(),
        "f1": (2 * same / both_sizes).mean(),
    }


def _told(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    used = int((batch["passage"] != 0).sum(1).max())
    # A place whose answer is behind what is used is none: all are before it.
    passage, common = batch["passage"][:, : max(1, used)], batch["features"][:, : max(1, used)]
    start, end = network(batch["question"].long(), passage.long(), common)
    return F.log_softmax(start.float(), 1), F.log_softmax(end.float(), 1)


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network with log-probabilities at its end."""
    return Told(network)


class Told(nn.Module):
    """A reader whose answers are log-probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, question: Tensor, passage: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end [N, C + 1]."""
        start, end = self.network(question, passage, features)
        return F.log_softmax(start, 1), F.log_softmax(end, 1)
