"""transformer: a small attention encoder over words, trained from scratch on a CPU."""

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
from modelmill.tasks.decoding.text_tokenizer import (
    Preprocessing,
    epochs,
    pieces,
)
from modelmill.tasks.networks.attention_settings import (
    Blocks,
    Dropout,
    Layers,
    Width,
)

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "a small attention encoder with rotary positions, trained from scratch"
)
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


ENOUGH = 300_000
"""Words over which the default epochs of a pre-trained model take some minutes on two cores."""


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """A pre-trained model overfits soon: more dropout, a longer average of weights."""
    yield from pieces(facts)
    if facts.base:
        settings = {"dropout": 0.4, "word_dropout": 0.3, "ema": 0.998}
        yield Choice(
            why="the model it starts from knows the language", settings=settings
        )
        yield epochs(facts, plan.input, TRAIN.epochs, ENOUGH)


class Settings(Blocks, frozen=True, kw_only=True):
    """Options of the network."""

    width: Width = 128
    layers: Layers = 2
    dropout: Dropout = 0.3
    word_dropout: Annotated[
        Fraction,
        Meta(description="share of words that are unknown in training"),
    ] = 0.2


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Token ids [N, L] -> logits [N, classes]."""
    from modelmill.tasks.networks.transformer import Classifier, Encoder

    encoder = Encoder(
        signature.preprocessing.tokens,
        **settings.shape,
        word_dropout=settings.word_dropout,
    )
    return Classifier(
        encoder, settings.width, signature.classes, settings.dropout
    )
