"""bert: a small attention encoder that learns a language by filling in hidden words."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelmill.tasks.base import Choice, Facts, Plan, Signature, TrainSettings
from modelmill.tasks.decoding.text_tokenizer import (
    Preprocessing,
    epochs,
    pieces,
)
from modelmill.tasks.networks.attention_settings import Blocks, Heads, Width

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


ENOUGH = 150_000
"""Words over which the default epochs take a quarter of an hour on one core."""
LONG = 60
"""Words from which on a text is long."""
LONGER = 1.7
"""How many times more words of long texts are trained on in the same time."""


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """Fewer epochs over more text; subwords where words are not separated by spaces."""
    yield from pieces(facts)
    enough = ENOUGH if facts.inputs.words < LONG else round(LONGER * ENOUGH)
    yield epochs(facts, plan.input, TRAIN.epochs, enough)


class Settings(Blocks, frozen=True, kw_only=True):
    """Options of the network."""

    width: Width = 192
    heads: Heads = 6


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Token ids [N, L] and positions [N, P] -> logits [N, P, tokens]."""
    from modelmill.tasks.networks.transformer import Encoder, MaskedLM

    tokens = signature.preprocessing.tokens
    return MaskedLM(Encoder(tokens, **settings.shape), settings.width, tokens)
