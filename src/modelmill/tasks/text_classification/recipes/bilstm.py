"""bilstm: an embedding, a bidirectional LSTM, and a dense layer over its pooled states."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.base import Fraction, Signature, TrainSettings
from modelmill.tasks.decoding.text_tokenizer import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "a bidirectional LSTM over word embeddings, trained from scratch"
INPUT = Preprocessing(vocabulary=10_000, length_limit=256)
TRAIN = TrainSettings(
    epochs=8,
    batch_size=64,
    optimiser="adamw",
    learning_rate=4e-3,
    weight_decay=0.01,
    warmup=0.1,
    label_smoothing=0.1,
    clip=1.0,
    patience=3,
    precision="fp32",
)


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    embedding: Annotated[
        int, Meta(ge=1, le=4096, description="width of the word embeddings")
    ] = 64
    hidden: Annotated[
        int, Meta(ge=1, le=4096, description="width of the LSTM, each way")
    ] = 64
    dense: Annotated[
        int, Meta(ge=1, le=8192, description="width of the dense layer")
    ] = 64
    dropout: Annotated[
        Fraction,
        Meta(description="of embeddings, pooled states and the dense layer"),
    ] = 0.5
    word_dropout: Annotated[
        Fraction, Meta(description="share of words hidden while training")
    ] = 0.1


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """int64 [N, L] -> logits [N, classes]."""
    from modelmill.tasks.networks.layers import BiLstm

    return BiLstm(
        signature.preprocessing.tokens,
        signature.classes,
        width=settings.embedding,
        hidden=settings.hidden,
        dense=settings.dense,
        dropout=settings.dropout,
        word_dropout=settings.word_dropout,
    )
