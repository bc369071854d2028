"""transformer: attention reads the sentence and writes its translation."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.base import Choice, Facts, Fraction, Plan, Signature, TrainSettings
from modelmill.tasks.translation import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "an encoder and a decoder of attention with rotary positions, from scratch"
INPUT = Preprocessing()
TRAIN = TrainSettings(
    epochs=10,
    batch_size=128,
    optimiser="adamw",
    learning_rate=1e-3,
    beta2=0.98,
    weight_decay=0.05,
    warmup=0.1,
    label_smoothing=0.1,
    clip=1.0,
    ema=0.995,
)


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    width: Annotated[int, Meta(ge=16, le=2048, multiple_of=16, description="of a token's state")] = 256
    heads: Annotated[int, Meta(ge=1, le=32, description="into which attention is split")] = 4
    layers: Annotated[int, Meta(ge=1, le=24, description="blocks that read, and as many that write")] = 3
    dropout: Annotated[Fraction, Meta(description="of states")] = 0.2

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that do not go together."""
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} is not a multiple of twice heads={self.heads}")


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """Few pairs are seen more often."""
    yield facts.epochs(10, 29_000, least=4)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Source ids [N, S] and what stands before each token [N, T] -> states [N, T, width]."""
    from modelmill.tasks._seq2seq import Transformer

    tokens = signature.preprocessing.tokens
    return Transformer(
        tokens, width=settings.width, heads=settings.heads, layers=settings.layers, dropout=settings.dropout
    )
