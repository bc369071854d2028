"""attention: a bidirectional GRU encoder and a GRU decoder with additive attention."""

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
from modelmill.tasks.translation import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "recurrent networks with additive attention: shows which words a translation comes from"
INPUT = Preprocessing()
TRAIN = TrainSettings(
    epochs=10,
    batch_size=128,
    optimiser="adamw",
    learning_rate=2e-3,
    weight_decay=0.01,
    warmup=0.05,
    label_smoothing=0.1,
    clip=1.0,
    ema=0.995,
)


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    width: Annotated[
        int, Meta(ge=8, le=2048, description="of a token's vector")
    ] = 256
    hidden: Annotated[
        int, Meta(ge=8, le=2048, description="of the recurrent states")
    ] = 256
    dropout: Annotated[Fraction, Meta(description="of vectors and states")] = (
        0.3
    )


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """More epochs over few pairs."""
    yield facts.epochs(10, 29_000, least=4)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Source ids [N, S] and target ids [N, T] -> decoder states [tokens, width]."""
    from modelmill.tasks.networks.seq2seq import Recurrent

    tokens = signature.preprocessing.tokens
    return Recurrent(
        tokens,
        width=settings.width,
        hidden=settings.hidden,
        dropout=settings.dropout,
    )
