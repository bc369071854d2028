"""bert: a small attention encoder that learns a language by filling in hidden words."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelmill.tasks.base import Choice, Facts, Plan, Signature, TrainSettings
from modelmill.tasks.decoding.text_tokenizer import Preprocessing, epochs, pieces
from modelmill.tasks.networks.attention_settings import Blocks, Heads, Width

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "a small attention encoder with rotary positions, pre-trained on your own text"
)
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
LONG = 60
LONGER = 1.7
"""Words over which so many epochs take a quarter of an hour on one core, and how many times more of
long texts.
"""


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """More text is seen less often, and what has no spaces between words in pieces of them."""
    yield from pieces(facts)
    # Of long texts a word takes less time.
    enough = ENOUGH if facts.inputs.words < LONG else round(LONGER * ENOUGH)
    yield epochs(facts, plan.input, TRAIN.epochs, enough)


class Settings(Blocks, frozen=True, kw_only=True):
    """Options of the network."""

    width: Width = 192
    heads: Heads = 6


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Token ids [N, L] and places [N, P] -> logits [N, P, tokens]."""
    from modelmill.tasks.networks.transformer import Encoder, Filler

    tokens = signature.preprocessing.tokens
    return Filler(Encoder(tokens, **settings.shape), settings.width, tokens)
