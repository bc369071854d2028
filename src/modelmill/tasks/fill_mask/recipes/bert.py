"""bert: a small attention encoder that learns a language by filling in hidden words."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks._text import Preprocessing
from modelmill.tasks.base import Fraction, Signature, TrainSettings
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "a small attention encoder with rotary positions, pre-trained on your own text"
INPUT = Preprocessing(minimum_count=2)
TRAIN = TrainSettings(
    epochs=30,
    batch_size=64,
    optimiser="adamw",
    learning_rate=1e-3,
    beta2=0.98,
    weight_decay=0.05,
    warmup=0.06,
    clip=1.0,
)


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    width: Annotated[int, Meta(ge=16, le=2048, multiple_of=16, description="of a word's state")] = 192
    heads: Annotated[int, Meta(ge=1, le=32, description="into which attention is split")] = 6
    layers: Annotated[int, Meta(ge=1, le=24, description="blocks")] = 3
    dropout: Annotated[Fraction, Meta(description="of states")] = 0.1

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that do not go together."""
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} is not a multiple of twice heads={self.heads}")


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Token ids [N, L] and places [N, P] -> logits [N, P, tokens]."""
    from modelmill.tasks._transformer import Encoder, Filler

    tokens = signature.preprocessing.tokens
    encoder = Encoder(
        tokens, width=settings.width, heads=settings.heads, layers=settings.layers, dropout=settings.dropout
    )
    return Filler(encoder, settings.width, tokens)
