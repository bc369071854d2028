"""gpt: a small causal transformer with rotary positions."""

from typing import TYPE_CHECKING, ClassVar

from modelmill.tasks.base import Signature, TrainSettings
from modelmill.tasks.networks.attention_settings import Blocks, Dropout, Layers
from modelmill.tasks.text_generation import Preprocessing

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "a small decoder with rotary positions, over characters or byte pairs; from scratch in "
    "minutes"
)
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


class Settings(Blocks, frozen=True, kw_only=True):
    """Options of the network."""

    HEAD: ClassVar[int] = 16
    """A head's width is a multiple of this: GroupQueryAttention wants it of its cache."""

    layers: Layers = 4
    dropout: Dropout = 0.05


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Token ids [N, L] -> logits [N, L, tokens]."""
    from modelmill.tasks.networks.transformer import Decoder

    preprocessing = signature.preprocessing
    return Decoder(
        preprocessing.tokens, **settings.shape, context=preprocessing.context
    )
