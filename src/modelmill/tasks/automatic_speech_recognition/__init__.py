"""automatic-speech-recognition: a recording in, what is said in it out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from modelmill.errors import InvalidInput
from modelmill.tasks.automatic_speech_recognition.decoding import (
    TimedText,
    beam,
    greedy,
    words,
)
from modelmill.tasks.automatic_speech_recognition.measures import (
    error_rate,
    sheet,
)
from modelmill.tasks.base import (
    NOTE,
    Arrays,
    Context,
    Evaluation,
    Item,
    Items,
    Measured,
    Model,
    Raw,
    Run,
)
from modelmill.tasks.decoding import audio_decoder
from modelmill.tasks.decoding.padding import padded
from modelmill.tasks.inputs import AudioTask
from modelmill.types import Json, Struct, TensorSpec

MOST_BEAMS, MOST_STEPS = 100, 200_000
"""Texts that are followed, and at how many places of a recording in all: others wait for it."""
SECONDS = f"{NOTE}seconds"
SCORES = "scores"
SHOWN = 16
Array = np.ndarray[Any, Any]


class Preprocessing(audio_decoder.Preprocessing, frozen=True, kw_only=True):
    """How a recording becomes samples, and how many of them are transcribed at once; travels in the
    manifest.
    """

    seconds: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=120,
            description="of the longest recording to train on; 0: from the data",
        ),
    ] = 0.0
    max_seconds: Annotated[
        float,
        msgspec.Meta(
            gt=0, le=120, description="most of them when taken from the data"
        ),
    ] = 20.0
    window: Annotated[
        float,
        msgspec.Meta(
            ge=2,
            le=120,
            description="seconds of the windows in which a longer recording is transcribed",
        ),
    ] = 20.0
    overlap: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=10, description="seconds that two of these share"
        ),
    ] = 1.0
    hop: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=0.1,
            description="seconds between two answers",
            extra={"derived": True},
        ),
    ] = 0.02

    @property
    def length(self) -> int:
        """Samples of the longest recording that is trained on."""
        return max(1, round(self.seconds * self.rate))

    @property
    def step(self) -> int:
        """Samples between two answers."""
        return max(1, round(self.hop * self.rate))

    @property
    def places_heard(self) -> int:
        """Answers of a window."""
        return round(self.window / self.hop)

    @property
    def places_shared(self) -> int:
        """Answers of a window that its neighbour on one side gives instead."""
        return round(self.overlap / self.hop / 2)


class Parameters(Struct, frozen=True, kw_only=True):
    """How far is searched for a text, and what is answered."""

    return_timestamps: Annotated[
        bool | Literal["word", "char"],
        msgspec.Meta(
            description="also when each word (true, word) or character is said",
            extra={"wanted": "true, false, 'word' or 'char'"},
        ),
    ] = False
    num_beams: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=MOST_BEAMS)] | None,
        msgspec.Meta(
            description="texts that are followed at a time; else the likeliest"
        ),
    ] = None


class SpeechRecognition(AudioTask):
    """What is said in a recording."""

    SUMMARY = "write down what is said in a recording"
    GIVES = "text"
    TARGETS = ("text",)
    CLASSES = 1
    METRIC = "wer"
    RECIPE = "ctc"
    SAMPLES = 500
    PREPROCESSING = Preprocessing
    PARAMETERS = Parameters

    def prepare(
        self, samples: Sequence[Raw], preprocessing: Preprocessing, folder: Path
    ) -> Preprocessing:
        """Rate and length taken from the training recordings."""
        recordings = [audio_decoder.read(sample) for sample in samples]
        lengths = [one.seconds for one in recordings]
        seconds = preprocessing.seconds or min(
            preprocessing.max_seconds, max(0.1, round(max(lengths) * 1.05, 2))
        )
        _check_some_fit(lengths, seconds)
        rate = audio_decoder.rate_of(recordings, preprocessing)
        return msgspec.structs.replace(
            preprocessing, rate=rate, seconds=seconds
        )

    def inputs(self, context: Context) -> list[TensorSpec]:
        """`audio`: samples -1..1 [-1, any length]."""
        return [TensorSpec(name="audio", datatype="FP32", shape=[-1, -1])]

    def outputs(self, context: Context) -> list[TensorSpec]:
        """`scores`: logarithms of the probabilities of nothing and of each character [-1, places,
        characters + 1].
        """
        shape = [-1, -1, len(context.labels) + 1]
        return [TensorSpec(name=SCORES, datatype="FP32", shape=shape)]

    def decode(
        self, data: Raw, context: Context, parameters: Any = None
    ) -> Arrays:
        """`audio`: the samples at the model's rate; raises `InvalidInput`, `TooLarge`."""
        recording = audio_decoder.read(data)
        samples = audio_decoder.at_rate(recording, context.preprocessing.rate)
        return {
            "audio": np.ascontiguousarray(samples),
            SECONDS: np.asarray(recording.seconds, np.float32),
        }

    def infer(
        self, runs: Mapping[str, Run], arrays: Arrays, context: Context
    ) -> Arrays:
        """Recordings of any length, long ones in windows whose halves of the overlap are put
        together.
        """
        how, audio = context.preprocessing, arrays["audio"]
        if audio.ndim != 2 or not audio.shape[1]:
            raise InvalidInput(
                f"audio wants the shape [batch, samples], not {list(audio.shape)}"
            )
        if audio.shape[1] <= how.places_heard * how.step:
            return {SCORES: runs[""]({"audio": audio})[SCORES]}
        return {SCORES: _scores_of_windows(runs[""], audio, how)}

    def encode(
        self, arrays: Arrays, context: Context, parameters: Parameters
    ) -> Json:
        """`{"text"}`, with `return_timestamps` also `chunks` and `duration`; `num_beams` looks
        further.

        Raises `InvalidInput`.
        """
        scores, hop = arrays[SCORES], context.preprocessing.hop
        characters = _characters(scores, context.labels, parameters.num_beams)
        text = "".join(one.text for one in characters).strip()
        stamps = parameters.return_timestamps
        if not stamps:
            return {"text": text}
        seconds = (
            float(arrays[SECONDS]) if SECONDS in arrays else len(scores) * hop
        )
        chunks = _chunks(characters, hop, seconds, stamps)
        return {"text": text, "chunks": chunks, "duration": round(seconds, 3)}

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """`audio` padded with silence, its `length`, and what is said: numbers of characters
        from 1, and how many.

        A recording that is longer than those trained on teaches nothing: its text counts as empty.
        """
        how = context.preprocessing
        samples = self.decode(item.data, context)["audio"]
        said = _numbers(str(item.target), context.labels)
        room = -(-how.length // how.step)
        known = len(samples) <= how.length and len(said) <= room
        targets = {
            "length": np.asarray(min(len(samples), how.length), np.int64),
            "text": padded(said, room, np.int64),
            "count": np.asarray(len(said) if known else 0, np.int64),
        }
        return {"audio": padded(samples, how.length, np.float32)}, targets

    def expected(self, item: Item) -> str:
        """What is said."""
        return str(item.target)

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """Word and character error rates, and a sheet of the worst."""
        return metrics(self.measured(model, items))


def _check_some_fit(lengths: Sequence[float], seconds: float) -> None:
    """Raises `InvalidInput` when all recordings are longer than those that are trained on."""
    if (shortest := min(lengths)) > seconds:
        raise InvalidInput(
            f"all recordings are longer than the {seconds:g} s that are trained on, the "
            f"shortest has {shortest:.1f} s: cut them at silences, or set max_seconds "
            "(at most 120)"
        )


def _scores_of_windows(run: Run, audio: Array, how: Preprocessing) -> Array:
    """Scores [N, places, characters + 1] of a recording that is longer than a window: of each
    window what is nearer to its middle than to that of another one.
    """
    half = how.places_shared
    stride = how.places_heard - 2 * half
    end = -(-audio.shape[1] // how.step) - 2 * half
    parts: list[Array] = []
    for start in range(0, max(1, end), stride):
        samples = slice(start * how.step, (start + how.places_heard) * how.step)
        scores = run({"audio": np.ascontiguousarray(audio[:, samples])})[SCORES]
        last = start + stride >= end
        parts.append(
            scores[:, half if start else 0 : None if last else half + stride]
        )
    return np.concatenate(parts, axis=1)


def _characters(
    scores: Array, labels: Sequence[str], beams: int | None
) -> list[TimedText]:
    """The characters of a recording; raises `InvalidInput` for more beams than its length
    allows.
    """
    if beams is None:
        return greedy(scores, labels)
    if beams * len(scores) > MOST_STEPS:
        most = MOST_STEPS // max(1, len(scores))
        raise InvalidInput(
            f"num_beams={beams} is too many for a recording of this length; at most {most} are "
            "followed"
        )
    return beam(scores, labels, beams) if beams > 1 else greedy(scores, labels)


def _numbers(text: str, labels: Sequence[str]) -> list[int]:
    """The characters of a text as numbers from 1; others are left out."""
    places = {label: number for number, label in enumerate(labels, 1)}
    return [places[letter] for letter in text if letter in places]


def _chunks(
    characters: Sequence[TimedText], hop: float, seconds: float, stamps: Any
) -> list[Json]:
    """Words (or characters) and when they are said, in seconds."""
    parts = (
        [one for one in characters if one.text.strip()]
        if stamps == "char"
        else words(characters)
    )
    return [
        {
            "text": one.text,
            "timestamp": [
                round(min(place * hop, seconds), 2)
                for place in (one.start, one.end)
            ],
        }
        for one in parts
    ]


def metrics(measured: Measured) -> Evaluation:
    """Word and character error rates over all recordings (less is better), and a sheet of the
    worst.
    """
    said = [answer["text"] for answer in measured.outputs]
    truths = list(measured.truths)
    pairs = list(zip(truths, said, strict=True))
    metrics: Json = {
        "wer": error_rate(_words(truths), _words(said)),
        "cer": error_rate(truths, said),
        "exact": float(np.mean([one == other for one, other in pairs])),
        "items": len(said),
    }
    rates = [error_rate([one], [other]) for one, other in pairs]
    worst = sorted(range(len(said)), key=lambda row: -rates[row])[:SHOWN]
    rows = [(*pairs[row], rates[row]) for row in worst]
    return Evaluation(
        metrics=metrics, pictures={"transcripts.png": sheet(rows)}
    )


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [text.split() for text in texts]


TASK = SpeechRecognition()
