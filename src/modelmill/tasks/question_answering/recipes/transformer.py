"""transformer: an attention encoder over question and passage; best started from a `bert`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelmill.tasks.base import Choice, Facts, Plan, Signature, TrainSettings
from modelmill.tasks.networks.attention_settings import (
    Blocks,
    Dropout,
    Layers,
    Width,
)
from modelmill.tasks.question_answering import Preprocessing

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "an attention encoder that points at the answer; start it --from a bert of the same "
    "language"
)
INPUT = Preprocessing()
TRAIN = TrainSettings(
    epochs=15,
    batch_size=32,
    optimiser="adamw",
    learning_rate=5e-4,
    weight_decay=0.05,
    warmup=0.1,
    label_smoothing=0.1,
    clip=1.0,
    ema=0.99,
)


class Settings(Blocks, frozen=True, kw_only=True):
    """Options of the network."""

    width: Width = 128
    layers: Layers = 2
    dropout: Dropout = 0.3


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """A smaller learning rate and less dropout when training starts from a version."""
    if facts.base:
        settings = {"learning_rate": 2e-4, "dropout": 0.2}
        yield Choice(
            why="the model it starts from knows the language", settings=settings
        )


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Question [N, Q], passage [N, C] and its match features -> logits of start and end [N, C + 1],
    position 0 for "no answer".
    """
    from modelmill.tasks.networks.transformer import Encoder
    from modelmill.tasks.question_answering.network import SpanHead

    encoder = Encoder(signature.preprocessing.tokens, **settings.shape)
    return SpanHead(encoder, settings.width, settings.dropout)
