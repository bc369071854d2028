"""How speech recognition is trained: by the CTC loss, over all alignments of a text."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.automatic_speech_recognition.decoding import greedy
from modelmill.tasks.automatic_speech_recognition.measures import distance
from modelmill.tasks.base import Signature, TrainSettings

SCORE = "right"
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The CTC loss per character (Graves et al. 2006); recordings without a text are left out."""
    scores = network(batch["audio"], batch["length"])
    positions = network.positions(batch["length"])  # type: ignore[operator]
    return _loss(scores, positions, batch)


def _loss(scores: Tensor, positions: Tensor, batch: Batch) -> Tensor:
    losses = F.ctc_loss(
        scores.float().transpose(0, 1),
        batch["text"],
        positions,
        batch["count"],
        reduction="none",
        zero_infinity=True,
    )
    return (losses * (batch["count"] > 0)).sum() / batch["count"].sum().clamp(
        min=1
    )


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The same loss, and `right`: 1 minus the character error rate."""
    scores = network(batch["audio"], batch["length"])
    positions = network.positions(batch["length"])  # type: ignore[operator]
    errors = sum(
        _errors(row[:count], text[:size])
        for row, count, text, size in zip(
            scores.float().cpu(),
            positions.tolist(),
            batch["text"].tolist(),
            batch["count"].tolist(),
            strict=True,
        )
        if size
    )
    share = 1 - errors / max(1, int(batch["count"].sum()))
    return {
        "loss": _loss(scores, positions, batch),
        "right": torch.tensor(share),
    }


def _errors(scores: Tensor, text: list[int]) -> int:
    """The edit distance of a transcript to its reference, in characters."""
    labels = [chr(number) for number in range(1, scores.shape[1])]
    transcript = "".join(one.text for one in greedy(scores.numpy(), labels))
    return distance([chr(number) for number in text], transcript)


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network itself, which takes recordings without padding."""
    return network
