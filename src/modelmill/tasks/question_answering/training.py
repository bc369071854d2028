"""How readers are trained: where the answer begins and where it ends."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Arrays, Signature, TrainSettings

SCORE = "f1"
LONGEST = 30
CUT = 0.5
"""Share of the passages that are cut."""
Batch = dict[str, Tensor]


def sizes(arrays: Arrays) -> NDArray[Any]:
    """Tokens of each passage."""
    return (arrays["passage"] != 0).sum(1)  # type: ignore[no-any-return]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The cross-entropy of both ends, in nats, on average over the answers; some passages are
    `cut`.
    """
    part = cut(batch)
    return _loss(*_told(network, part), part["spans"], settings.label_smoothing)


def cut(batch: Batch) -> Batch:
    """Passages, some of them without a beginning and an end of a length by chance, none without its
    answers.

    What a question shares with its passage stays where the answer is: few questions teach more in
    many places.
    """
    spans, length = batch["spans"].long(), (batch["passage"] != 0).sum(1)
    first, last = spans[:, :, 0].amin(1), spans[:, :, 1].amax(1)
    drawn = torch.rand(3, len(spans), device=spans.device)
    some = (drawn[0] < CUT) & (first > 0)
    begin = torch.where(some, (drawn[1] * first).long(), 0)
    end = torch.where(some, last + (drawn[2] * (length - last + 1)).long(), length)
    place = (
        torch.arange(batch["passage"].shape[1], device=spans.device) + begin[:, None]
    )
    there, place = place < end[:, None], place.clamp(max=batch["passage"].shape[1] - 1)
    found = {
        name: batch[name].gather(1, place) * there
        for name in ("passage", "endings", "partners")
    }
    wide = place[:, :, None].expand(-1, -1, batch["features"].shape[2])
    found["features"] = batch["features"].gather(1, wide) * there[:, :, None]
    found["spans"] = torch.where(spans > 0, spans - begin[:, None, None], spans)
    return {**batch, **found}


def _loss(start: Tensor, end: Tensor, spans: Tensor, smoothing: float) -> Tensor:
    # Of several readers, one behind the other
    spans = spans.repeat(len(start) // len(spans), 1, 1)
    each = [
        _surprise(told, spans[:, answer, side], smoothing)
        for answer in range(spans.shape[1])
        for side, told in enumerate((start, end))
    ]
    return torch.stack(each).sum() / spans.shape[1]


def _surprise(told: Tensor, place: Tensor, smoothing: float) -> Tensor:
    """Smoothing goes to the places around: an end that is missed by a word is not all wrong."""
    near = told.gather(1, place[:, None])[:, 0]
    if not smoothing:
        return -near.mean()
    sides = [
        told.gather(1, (place[:, None] + step).clamp(1, told.shape[1] - 1))[:, 0]
        for step in (-1, 1)
    ]
    around = torch.where(place > 0, (sides[0] + sides[1]).clamp(min=-60) / 2, near)
    return -((1 - smoothing) * near + smoothing * around).mean()


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The same, the share of spans that are right, and the F1 of their places with the answer that
    is nearest.
    """
    start, end = _told(network, batch)
    both = start[:, 1:, None] + end[:, None, 1:]
    size = both.shape[1]
    allowed = (
        torch.ones(size, size, dtype=torch.bool, device=both.device)
        .triu()
        .tril(LONGEST)
    )
    likely, best = both.masked_fill(~allowed, -1e9).flatten(1).max(1)
    # Else it says that there is no answer: place 0
    some = likely >= start[:, 0] + end[:, 0]
    first = ((best // size + 1) * some)[:, None]
    last = ((best % size + 1) * some)[:, None]
    begins, ends = batch["spans"].unbind(2)
    same = (torch.minimum(last, ends) - torch.maximum(first, begins) + 1).clamp(min=0)
    both_sizes = (last - first + 1) + (ends - begins + 1)
    return {
        "loss": _loss(start, end, batch["spans"], 0.0),
        "em": ((first == begins) & (last == ends)).any(1).float().mean(),
        "f1": (2 * same / both_sizes).amax(1).mean(),
    }


def _told(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    used = int((batch["passage"] != 0).sum(1).max())
    # A place whose answer is behind what is used is none: all are before it.
    known = (
        batch[name][:, : max(1, used)]
        for name in ("passage", "features", "endings", "partners")
    )
    passage, common, endings, partners = known
    start, end = network(
        batch["question"].long(),
        passage.long(),
        common,
        endings.long(),
        partners.long(),
    )
    return F.log_softmax(start.float(), 1), F.log_softmax(end.float(), 1)


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network with log-probabilities at its end."""
    return Told(network)


class Told(nn.Module):
    """A reader whose answers are log-probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        question: Tensor,
        passage: Tensor,
        features: Tensor,
        endings: Tensor,
        partners: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Start and end [N, C + 1]."""
        start, end = self.network(question, passage, features, endings, partners)
        return F.log_softmax(start, 1), F.log_softmax(end, 1)
