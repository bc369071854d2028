"""transformer: an attention encoder over question and passage; best started from a `bert`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.base import Choice, Facts, Fraction, Plan, Signature, TrainSettings
from modelmill.tasks.question_answering import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "an attention encoder that points at the answer; start it --from a bert of the same language"
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


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    width: Annotated[int, Meta(ge=16, le=2048, multiple_of=16, description="of a word's state")] = 128
    heads: Annotated[int, Meta(ge=1, le=32, description="into which attention is split")] = 4
    layers: Annotated[int, Meta(ge=1, le=24, description="blocks")] = 2
    dropout: Annotated[Fraction, Meta(description="of states")] = 0.3

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that do not go together."""
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} is not a multiple of twice heads={self.heads}")


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """What is trained already is changed with care."""
    if facts.base:
        settings = {"learning_rate": 2e-4, "dropout": 0.2}
        yield Choice(why="the model it starts from knows the language", settings=settings)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Question [N, Q], passage, features [N, C, F] and endings [N, C] -> start and end [N, C + 1], place 0 for none."""
    from modelmill.tasks._transformer import Encoder
    from modelmill.tasks.question_answering._network import SpanHead

    encoder = Encoder(
        signature.preprocessing.tokens,
        width=settings.width,
        heads=settings.heads,
        layers=settings.layers,
        dropout=settings.dropout,
    )
    return SpanHead(encoder, settings.width, settings.dropout)
