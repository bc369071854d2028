"""encoder: a small transformer encoder whose mean state is a text's embedding."""

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
from modelmill.tasks.feature_extraction import Preprocessing
from modelmill.tasks.networks.attention_settings import Blocks, Layers

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "a small attention encoder trained to tell what belongs together from all else "
    "(contrastive)"
)
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


class Settings(Blocks, frozen=True, kw_only=True):
    """Options of the network."""

    layers: Layers = 2
    word_dropout: Annotated[
        Fraction,
        Meta(description="share of tokens that are unknown in training"),
    ] = 0.1
    scale: Annotated[
        float,
        Meta(gt=0, le=256, description="factor of the cosines in the softmax"),
    ] = 20.0


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """More epochs over few texts."""
    yield facts.epochs(TRAIN.epochs, 29_000, least=4)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Token ids [N, L] -> unit vectors [N, dimensions]."""
    from modelmill.tasks.networks.transformer import Encoder, SentenceEncoder

    preprocessing = signature.preprocessing
    encoder = Encoder(
        preprocessing.tokens,
        **settings.shape,
        word_dropout=settings.word_dropout,
    )
    return SentenceEncoder(
        encoder, settings.width, preprocessing.dimensions, settings.scale
    )
