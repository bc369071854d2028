"""How speech recognition is trained: all ways to say a text are counted together."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.automatic_speech_recognition.decoding import greedy
from modelmill.tasks.automatic_speech_recognition.measures import distance
from modelmill.tasks.base import Signature, TrainSettings

SCORE = "right"
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The CTC loss for each character (Graves et al. 2006); recordings without a text teach
    nothing.
    """
    scores = network(batch["audio"], batch["length"])
    places = network.places(batch["length"])  # type: ignore[operator]
    return _loss(scores, places, batch)


def _loss(scores: Tensor, places: Tensor, batch: Batch) -> Tensor:
    each = F.ctc_loss(
        scores.float().transpose(0, 1),
        batch["text"],
        places,
        batch["count"],
        reduction="none",
        zero_infinity=True,
    )
    return (each * (batch["count"] > 0)).sum() / batch["count"].sum().clamp(min=1)


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The same loss, and the share of characters that are right: 1 minus the character error
    rate.
    """
    scores = network(batch["audio"], batch["length"])
    places = network.places(batch["length"])  # type: ignore[operator]
    labels = [chr(number) for number in range(1, scores.shape[2])]
    wrong = 0
    for row, count, text, said in zip(
        scores,
        places.tolist(),
        batch["text"].tolist(),
        batch["count"].tolist(),
        strict=True,
    ):
        heard = "".join(
            one.text for one in greedy(row[:count].float().cpu().numpy(), labels)
        )
        wrong += distance([chr(number) for number in text[:said]], heard) if said else 0
    right = 1 - wrong / max(1, int(batch["count"].sum()))
    return {"loss": _loss(scores, places, batch), "right": torch.tensor(right)}


def deployed(network: nn.Module, signature: Signature) -> nn.Module:
    """The network itself: it takes recordings without padding."""
    return network
