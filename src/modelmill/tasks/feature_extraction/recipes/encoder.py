"""encoder: a small attention encoder whose mean state is a text's vector."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.base import Choice, Facts, Fraction, Plan, Signature, TrainSettings
from modelmill.tasks.feature_extraction import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "a small attention encoder trained to tell what belongs together from all else (contrastive)"
INPUT = Preprocessing(tokenizer="bpe", vocabulary=8000, length_limit=128)
TRAIN = TrainSettings(
    epochs=6,
    batch_size=256,
    optimiser="adamw",
    learning_rate=1e-3,
    beta2=0.98,
    weight_decay=0.05,
    warmup=0.1,
    clip=1.0,
    ema=0.99,
)


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    width: Annotated[int, Meta(ge=16, le=2048, multiple_of=16, description="of a token's state")] = 256
    heads: Annotated[int, Meta(ge=1, le=32, description="into which attention is split")] = 4
    layers: Annotated[int, Meta(ge=1, le=24, description="blocks")] = 2
    dropout: Annotated[Fraction, Meta(description="of states")] = 0.1
    word_dropout: Annotated[Fraction, Meta(description="share of tokens that are unknown in training")] = 0.1
    scale: Annotated[float, Meta(gt=0, le=256, description="factor of the cosines in the softmax")] = 20.0

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that do not go together."""
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} is not a multiple of twice heads={self.heads}")


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """Few texts are seen more often."""
    yield facts.epochs(TRAIN.epochs, 29_000, least=4)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Token ids [N, L] -> unit vectors [N, dimensions]."""
    from modelmill.tasks._transformer import Encoder, Sentences

    how = signature.preprocessing
    encoder = Encoder(
        how.tokens,
        width=settings.width,
        heads=settings.heads,
        layers=settings.layers,
        dropout=settings.dropout,
        word_dropout=settings.word_dropout,
    )
    return Sentences(encoder, settings.width, how.dimensions, settings.scale)
