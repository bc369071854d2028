"""cnn: a small residual network that looks at the log-mel spectrogram; minutes on a CPU."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from modelmill.tasks.audio_classification import Preprocessing
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
    "a residual network over the log-mel spectrogram, for words, commands and noises; "
    "minutes on a CPU"
)
INPUT = Preprocessing()
TRAIN = TrainSettings(
    epochs=30,
    batch_size=32,
    optimiser="muon",
    learning_rate=0.02,
    weight_decay=0.05,
    warmup=0.1,
    label_smoothing=0.1,
    clip=1.0,
    ema=0.99,
)
ENOUGH = 2000
"""Recordings on which the default epochs take minutes on two cores."""


class Changes(Struct, frozen=True, kw_only=True):
    """How far training recordings are changed; 0 leaves a property alone."""

    shift: Annotated[
        Fraction, Meta(description="in time, share of the length, up to")
    ] = 0.1
    noise: Annotated[
        Fraction,
        Meta(
            description="deviation of white noise, share of the loudest sample, up to"
        ),
    ] = 0.02


AUGMENT = Changes()


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the network."""

    mels: Annotated[
        int, Meta(ge=8, le=256, description="bands of the spectrogram")
    ] = 40
    channels: Annotated[
        int,
        Meta(
            ge=4,
            le=512,
            description="of the first stage; each stage doubles them",
        ),
    ] = 24
    stages: Annotated[
        int,
        Meta(
            ge=1,
            le=5,
            description="each after the first halves bands and frames",
        ),
    ] = 4
    hidden_bands: Annotated[
        Fraction,
        Meta(description="most bands that are hidden in training, as a share"),
    ] = 0.2
    hidden_frames: Annotated[
        Fraction,
        Meta(description="most frames that are hidden in training, as a share"),
    ] = 0.2
    dropout: Annotated[Fraction, Meta(description="before the last layer")] = (
        0.1
    )


def fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]:
    """Fewer epochs over more recordings."""
    yield facts.epochs(TRAIN.epochs, ENOUGH)


def network(settings: Settings, signature: Signature) -> "nn.Module":
    """Samples [N, length] -> logits [N, classes]."""
    from torch import nn

    from modelmill.tasks.networks.layers import conv, residual_stages
    from modelmill.tasks.networks.mel_spectrogram import LogMel, SpecAugment

    channels, stages = settings.channels, settings.stages
    return nn.Sequential(
        LogMel(signature.preprocessing.rate, settings.mels),
        SpecAugment(settings.hidden_bands, settings.hidden_frames),
        nn.Unflatten(1, (1, settings.mels)),
        conv(1, channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        *residual_stages(channels, stages, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(settings.dropout),
        nn.Linear(channels << stages - 1, signature.classes),
    )
