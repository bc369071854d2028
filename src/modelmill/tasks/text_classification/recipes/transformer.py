"""transformer: a small attention encoder over words, trained from scratch on a CPU."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks._text import Preprocessing
from modelmill.tasks.base import Choice, Facts, Fraction, Plan, Signature, TrainSettings
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "a small attention encoder with rotary positions, trained from scratch"
INPUT = Preprocessing()
TRAIN = TrainSettings(
    epochs=8,
    batch_size=32,
    optimiser="adamw",
    learning_rate=5e-4,
    weight_decay=0.05,
    warmup=0.1,
    label_smoothing=0.1,
    clip=1.0,
    ema=0.99,
)


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """What is trained already is changed with care."""
    if facts.base:
        settings = {"learning_rate": 2e-4, "epochs": 6, "dropout": 0.2}
        yield Choice(why="the model it starts from knows the language", settings=settings)


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    width: Annotated[int, Meta(ge=16, le=2048, multiple_of=16, description="of a word's state")] = 128
    heads: Annotated[int, Meta(ge=1, le=32, description="into which attention is split")] = 4
    layers: Annotated[int, Meta(ge=1, le=24, description="blocks")] = 2
    dropout: Annotated[Fraction, Meta(description="of states")] = 0.3
    word_dropout: Annotated[Fraction, Meta(description="share of words that are unknown in training")] = 0.2

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that do not go together."""
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} is not a multiple of twice heads={self.heads}")


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Token ids [N, L] -> logits [N, classes]."""
    from modelmill.tasks._transformer import Classifier, Encoder

    encoder = Encoder(
        signature.preprocessing.tokens,
        width=settings.width,
        heads=settings.heads,
        layers=settings.layers,
        dropout=settings.dropout,
        word_dropout=settings.word_dropout,
    )
    return Classifier(encoder, settings.width, signature.classes, settings.dropout)
