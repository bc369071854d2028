"""transformer: a transformer encoder and decoder, trained from scratch."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.base import Choice, Facts, Plan, Signature, TrainSettings
from modelmill.tasks.networks.attention_settings import Blocks, Dropout
from modelmill.tasks.translation import Preprocessing

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "an encoder and a decoder of attention with rotary positions, from scratch"
)
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


class Settings(Blocks, frozen=True, kw_only=True):
    """Options of the network."""

    layers: Annotated[
        int,
        Meta(
            ge=1, le=24, description="blocks that read, and as many that write"
        ),
    ] = 3
    dropout: Dropout = 0.2


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """More epochs over few pairs."""
    yield facts.epochs(10, 29_000, least=4)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Source ids [N, S] and target ids [N, T] -> decoder states [tokens, width]."""
    from modelmill.tasks.networks.seq2seq import Transformer

    tokens = signature.preprocessing.tokens
    return Transformer(tokens, **settings.shape)
