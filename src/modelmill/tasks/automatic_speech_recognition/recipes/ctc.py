"""ctc: convolutions and a GRU that predict a character or a blank for every 20 ms."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.audio_classification.recipes.cnn import Changes
from modelmill.tasks.automatic_speech_recognition import Preprocessing
from modelmill.tasks.base import (
    Choice,
    Facts,
    Fraction,
    Plan,
    Signature,
    TrainSettings,
)
from modelmill.types import Struct

if TYPE_CHECKING:
    from torch import nn

SUMMARY = (
    "log-mel spectrogram, convolutions and a bidirectional GRU; characters by CTC, greedy "
    "or by beam search"
)
INPUT = Preprocessing()
AUGMENT = Changes(shift=0.0, noise=0.02)
TRAIN = TrainSettings(
    epochs=30,
    batch_size=16,
    optimiser="adamw",
    learning_rate=2e-3,
    weight_decay=0.01,
    warmup=0.1,
    clip=5.0,
    ema=0.99,
)
STEPS = 600
"""Least steps of a training: a CTC network predicts blanks alone at first."""
SMALL_BATCH = 8
"""Recordings of a step where there are few: half of the usual ones cost two thirds of the time."""


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    mels: Annotated[
        int, Meta(ge=8, le=256, description="bands of the spectrogram")
    ] = 40
    channels: Annotated[
        int, Meta(ge=8, le=1024, description="of the convolutions")
    ] = 96
    hidden: Annotated[
        int,
        Meta(
            ge=8,
            le=1024,
            description="width of each direction of the recurrent layers",
        ),
    ] = 96
    layers: Annotated[int, Meta(ge=1, le=6, description="recurrent layers")] = 2
    hidden_bands: Annotated[
        Fraction,
        Meta(description="most bands that are hidden in training, as a share"),
    ] = 0.2
    hidden_frames: Annotated[
        Fraction,
        Meta(description="most frames that are hidden in training, as a share"),
    ] = 0.1
    dropout: Annotated[Fraction, Meta(description="between layers")] = 0.2


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """Longer epochs, of smaller batches, where there are too few recordings for `STEPS`."""
    assert plan.train is not None
    count, least = facts.counts["train"], math.ceil(STEPS / TRAIN.epochs)
    usual = math.ceil(count / plan.train.batch_size)
    if plan.train.epochs == TRAIN.epochs and usual < least:
        yield Choice(
            why=f"{count:,} recordings are too few to learn from in {TRAIN.epochs} passes",
            settings={"epoch_steps": least, "batch_size": SMALL_BATCH},
        )


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Samples [N, S] -> log-probabilities [N, positions, characters + 1]."""
    from modelmill.tasks.automatic_speech_recognition.network import Ctc

    return Ctc(signature, settings)
