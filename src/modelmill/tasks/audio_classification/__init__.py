"""audio-classification: a recording in, labels with scores out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from modelmill.tasks.base import Arrays, Context, Raw
from modelmill.tasks.decoding import audio_decoder
from modelmill.tasks.evaluation.classification import Classifier
from modelmill.tasks.inputs import AudioTask
from modelmill.types import TensorSpec

LONGEST = 98
"""The percentile of the training recordings' lengths that is the model's, when it is taken from the
data.
"""


class Preprocessing(audio_decoder.Preprocessing, frozen=True, kw_only=True):
    """How a recording becomes so many samples; travels in the manifest."""

    seconds: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=60,
            description="that are listened to, from the middle; 0: from the data",
        ),
    ] = 0.0
    max_seconds: Annotated[
        float,
        msgspec.Meta(
            gt=0, le=60, description="most of them when taken from the data"
        ),
    ] = 10.0

    @property
    def length(self) -> int:
        """Samples that the model takes."""
        return max(1, round(self.seconds * self.rate))


class AudioClassification(Classifier, AudioTask):
    """Labels with scores for a recording."""

    SUMMARY = (
        "say what is heard in a recording, such as a word or a kind of noise"
    )
    RECIPE = "cnn"
    SAMPLES = 500
    PREPROCESSING = Preprocessing

    def prepare(
        self, samples: Sequence[Raw], preprocessing: Preprocessing, folder: Path
    ) -> Preprocessing:
        """Rate and length taken from the training recordings."""
        recordings = [audio_decoder.read(sample) for sample in samples]
        seconds = preprocessing.seconds
        if not seconds:
            usual = float(
                np.percentile([one.seconds for one in recordings], LONGEST)
            )
            seconds = min(preprocessing.max_seconds, max(0.1, round(usual, 2)))
        return msgspec.structs.replace(
            preprocessing,
            rate=audio_decoder.rate_of(recordings, preprocessing),
            seconds=seconds,
        )

    def inputs(self, context: Context) -> list[TensorSpec]:
        """`audio`: samples -1..1 [-1, length]."""
        return [
            TensorSpec(
                name="audio",
                datatype="FP32",
                shape=[-1, context.preprocessing.length],
            )
        ]

    def decode(
        self, data: Raw, context: Context, parameters: Any = None
    ) -> Arrays:
        """`audio`: the middle of the recording, silence on both sides where it is shorter; raises
        `InvalidInput`.
        """
        how = context.preprocessing
        samples = audio_decoder.at_rate(audio_decoder.read(data), how.rate)
        spare = len(samples) - how.length
        if spare > 0:
            samples = samples[spare // 2 : spare // 2 + how.length]
        elif spare < 0:
            samples = np.pad(samples, (-spare // 2, -spare - -spare // 2))
        return {"audio": np.ascontiguousarray(samples, np.float32)}


TASK = AudioClassification()
