"""How extractive question answering is trained: to predict the start and end of the answer."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Arrays, Signature, TrainSettings

SCORE = "f1"
MAX_ANSWER = 30
"""Tokens after the first of the longest answer that a validation considers."""
CROPPED = 0.5
"""Share of the passages that are cropped in training."""
Batch = dict[str, Tensor]


def sizes(arrays: Arrays) -> NDArray[Any]:
    """Tokens of each passage."""
    return (arrays["passage"] != 0).sum(1)  # type: ignore[no-any-return]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The summed cross-entropy of start and end in nats, the mean over the answers; a share of the
    passages is cropped.
    """
    cropped = crop(batch)
    start, end = _log_probabilities(network, cropped)
    return _loss(start, end, cropped["spans"], settings.label_smoothing)


def crop(batch: Batch) -> Batch:
    """A batch in which a share of the passages is cropped at both ends by a random length, never
    into an answer.

    Matches with the question stay where the answer is, so few questions teach more positions.
    """
    spans = batch["spans"].long()
    begin, end = _random_part(batch, spans)
    size = batch["passage"].shape[1]
    position = torch.arange(size, device=spans.device) + begin[:, None]
    mask = position < end[:, None]
    position = position.clamp(max=size - 1)
    cropped = {
        name: batch[name].gather(1, position) * mask
        for name in ("passage", "endings", "partners")
    }
    index = position[:, :, None].expand(-1, -1, batch["features"].shape[2])
    cropped["features"] = batch["features"].gather(1, index) * mask[:, :, None]
    cropped["spans"] = torch.where(
        spans > 0, spans - begin[:, None, None], spans
    )
    return {**batch, **cropped}


def _random_part(batch: Batch, spans: Tensor) -> tuple[Tensor, Tensor]:
    """The first token that is kept of each passage, and the one after the last, [N] each."""
    length = (batch["passage"] != 0).sum(1)
    first, last = spans[:, :, 0].amin(1), spans[:, :, 1].amax(1)
    chance = torch.rand(3, len(spans), device=spans.device)
    chosen = (chance[0] < CROPPED) & (first > 0)
    begin = torch.where(chosen, (chance[1] * first).long(), 0)
    end = torch.where(
        chosen, last + (chance[2] * (length - last + 1)).long(), length
    )
    return begin, end


def _loss(
    start: Tensor, end: Tensor, spans: Tensor, smoothing: float
) -> Tensor:
    # An ensemble in training gives the rows of its members one after another.
    spans = spans.repeat(len(start) // len(spans), 1, 1)
    losses = [
        _smoothed_loss(log_probabilities, spans[:, answer, side], smoothing)
        for answer in range(spans.shape[1])
        for side, log_probabilities in enumerate((start, end))
    ]
    return torch.stack(losses).sum() / spans.shape[1]


def _smoothed_loss(
    log_probabilities: Tensor, target: Tensor, smoothing: float
) -> Tensor:
    """Cross-entropy whose smoothing goes to the neighbouring positions: an end that is missed by a
    word is not all wrong.
    """
    exact = _picked(log_probabilities, target)
    if not smoothing:
        return -exact.mean()
    most = log_probabilities.shape[1] - 1
    left, right = (
        _picked(log_probabilities, (target + step).clamp(1, most))
        for step in (-1, 1)
    )
    around = torch.where(target > 0, (left + right).clamp(min=-60) / 2, exact)
    return -((1 - smoothing) * exact + smoothing * around).mean()


def _picked(values: Tensor, positions: Tensor) -> Tensor:
    """The value [N] at a position of each row [N, C]."""
    return values.gather(1, positions[:, None])[:, 0]


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The loss without smoothing, the share of exact spans (`em`), and the F1 of the predicted
    positions with the best of the answers.
    """
    start, end = _log_probabilities(network, batch)
    first, last = _predicted(start, end)
    begins, ends = batch["spans"].unbind(2)
    return {
        "loss": _loss(start, end, batch["spans"], 0.0),
        "em": ((first == begins) & (last == ends)).any(1).float().mean(),
        "f1": _f1(first, last, begins, ends).amax(1).mean(),
    }


def _predicted(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """First and last position [N, 1] of the likeliest answer; 0 where that is "no answer"."""
    both = start[:, 1:, None] + end[:, None, 1:]
    size = both.shape[1]
    likely, best = both.masked_fill(~_allowed(both), -1e9).flatten(1).max(1)
    answered = likely >= start[:, 0] + end[:, 0]
    first = (best // size + 1) * answered
    last = (best % size + 1) * answered
    return first[:, None], last[:, None]


def _allowed(both: Tensor) -> Tensor:
    """True [C, C] for ends that are not before their start, nor too far after it."""
    whole = torch.ones(both.shape[1:], dtype=torch.bool, device=both.device)
    return whole.triu().tril(MAX_ANSWER)


def _f1(first: Tensor, last: Tensor, begins: Tensor, ends: Tensor) -> Tensor:
    """The F1 of the predicted positions with those of each answer, [N, answers]."""
    same = (torch.minimum(last, ends) - torch.maximum(first, begins) + 1).clamp(
        min=0
    )
    both_sizes = (last - first + 1) + (ends - begins + 1)
    return 2 * same / both_sizes


def _log_probabilities(
    network: nn.Module, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of start and end [N, C + 1], without the padding that all passages
    share.
    """
    longest = max(1, int((batch["passage"] != 0).sum(1).max()))
    start, end = network(
        batch["question"].long(),
        batch["passage"][:, :longest].long(),
        batch["features"][:, :longest],
        batch["endings"][:, :longest].long(),
        batch["partners"][:, :longest].long(),
    )
    return F.log_softmax(start.float(), 1), F.log_softmax(end.float(), 1)


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network with a log-softmax over its logits."""
    return LogProbabilities(network)


class LogProbabilities(nn.Module):
    """A reader as it is deployed: logits become log-probabilities."""

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
        """The network's inputs -> log-probabilities of start and end [N, C + 1]."""
        start, end = self.network(
            question, passage, features, endings, partners
        )
        return F.log_softmax(start, 1), F.log_softmax(end, 1)
