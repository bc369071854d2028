"""gpt: attention over what was written so far, with rotary positions."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.base import Fraction, Signature, TrainSettings
from modelmill.tasks.text_generation import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "a small decoder with rotary positions, over characters or byte pairs; from scratch in minutes"
INPUT = Preprocessing(context=256)
TRAIN = TrainSettings(
    epochs=13,
    epoch_steps=100,
    batch_size=24,
    optimiser="adamw",
    learning_rate=2e-3,
    beta2=0.98,
    weight_decay=0.1,
    warmup=0.05,
    clip=1.0,
)


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    width: Annotated[int, Meta(ge=16, le=4096, multiple_of=16, description="of a token's state")] = 256
    heads: Annotated[int, Meta(ge=1, le=64, description="into which attention is split")] = 4
    layers: Annotated[int, Meta(ge=1, le=48, description="blocks")] = 4
    dropout: Annotated[Fraction, Meta(description="of states")] = 0.05

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that do not go together."""
        if self.width % (16 * self.heads):
            raise ValueError(f"width={self.width} is not a multiple of 16 for each of heads={self.heads}")


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Token ids [N, L] -> logits [N, L, tokens]."""
    from modelmill.tasks._transformer import Decoder

    how = signature.preprocessing
    return Decoder(
        how.tokens,
        width=settings.width,
        heads=settings.heads,
        layers=settings.layers,
        context=how.context,
        dropout=settings.dropout,
    )
