"""reader: recurrent layers over the passage with question-aligned attention (DrQA)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.base import (
    Choice,
    Facts,
    Fraction,
    Plan,
    Signature,
    TrainSettings,
)
from modelmill.tasks.question_answering import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "recurrent, with question-aligned attention and exact matches; learns from a few "
    "thousand questions"
)
INPUT = Preprocessing()
TRAIN = TrainSettings(
    epochs=9,
    batch_size=32,
    optimiser="adamw",
    learning_rate=2e-3,
    weight_decay=0.02,
    warmup=0.1,
    label_smoothing=0.1,
    clip=1.0,
    ema=0.99,
)


FEW = 600_000
"""Words of training passages below which an ensemble of two readers trains in a quarter of an hour.
"""


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """An ensemble of two and more epochs for little data."""
    words = round(facts.counts["train"] * facts.inputs.words)
    if words < FEW:
        settings = {"members": 2, "epochs": 14, "dropout": 0.35}
        yield Choice(
            why=f"about {words:,} words are little to learn from",
            settings=settings,
        )


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    width: Annotated[
        int, Meta(ge=8, le=2048, description="of a word's vector")
    ] = 64
    hidden: Annotated[
        int,
        Meta(ge=8, le=2048, description="of the recurrent states, each way"),
    ] = 96
    layers: Annotated[
        int, Meta(ge=1, le=8, description="recurrent layers over the passage")
    ] = 2
    known: Annotated[
        int,
        Meta(
            ge=10,
            le=1_000_000,
            description="commonest words, that have vectors",
        ),
    ] = 1000
    members: Annotated[
        int,
        Meta(ge=1, le=16, description="readers that vote; each takes its time"),
    ] = 1
    dropout: Annotated[Fraction, Meta(description="of vectors and states")] = (
        0.4
    )
    word_dropout: Annotated[
        Fraction,
        Meta(description="share of words that are unknown in training"),
    ] = 0.1


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Question [N, Q], passage [N, C] and its match features -> logits of start and end [N, C + 1],
    position 0 for "no answer".
    """
    from modelmill.tasks.question_answering.network import (
        Reader,
        ReaderEnsemble,
    )

    def member() -> Reader:
        return Reader(
            signature.preprocessing.tokens,
            width=settings.width,
            hidden=settings.hidden,
            layers=settings.layers,
            known=settings.known,
            dropout=settings.dropout,
            word_dropout=settings.word_dropout,
        )

    return (
        member()
        if settings.members == 1
        else ReaderEnsemble(member() for _ in range(settings.members))
    )
