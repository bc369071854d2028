"""Decoding of audio files to samples, shared by all audio tasks."""

import hashlib
import io
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from modelmill.errors import InvalidInput, TooLarge
from modelmill.tasks.base import Raw
from modelmill.types import Struct

Samples = np.ndarray[Any, np.dtype[np.float32]]
FORMATS = (
    "WAV",
    "WAVEX",
    "FLAC",
    "OGG",
    "MP3",
    "AIFF",
    "AU",
    "CAF",
    "W64",
    "RF64",
)
MAX_SECONDS, MAX_CHANNELS = 3600, 32
MAX_SAMPLES = 200_000_000
"""Most samples of all channels together."""
RATES = (1000, 384_000)
"""Least and largest sampling rate, in Hz."""
BLOCK = 1 << 18
"""Samples that are read at a time."""


class Preprocessing(Struct, frozen=True, kw_only=True):
    """How a recording becomes samples; travels in the manifest."""

    rate: Annotated[
        int,
        msgspec.Meta(
            ge=0, le=48_000, description="samples a second; 0: from the data"
        ),
    ] = 0
    max_rate: Annotated[
        int,
        msgspec.Meta(
            ge=4000,
            le=48_000,
            description="most samples a second when taken from the data",
        ),
    ] = 16_000


class Recording(Struct, frozen=True, kw_only=True):
    """Mono audio: samples -1..1 at a sampling rate in Hz."""

    samples: Samples
    rate: int

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return len(self.samples) / self.rate


def read(data: Raw) -> Recording:
    """The recording of an audio file (WAV, FLAC, OGG, MP3, ...), its channels averaged.

    Raises `InvalidInput` for a file that is no recording, damaged or empty, or has samples that are
    not finite; `TooLarge` for a long one.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidInput(
            "a recording is wanted as the bytes of a sound file (WAV, FLAC, OGG, MP3)"
        )
    if not data:
        raise InvalidInput("the recording is empty (0 bytes)")
    samples, rate = _decoded(data)
    if not len(samples):
        raise InvalidInput("the recording holds no samples")
    if not np.isfinite(samples).all():
        raise InvalidInput("the recording holds samples that are no numbers")
    return Recording(samples=np.clip(samples, -1, 1), rate=rate)


def _decoded(data: bytes | bytearray | memoryview) -> tuple[Samples, int]:
    """The samples of a sound file and their rate; raises `InvalidInput`, `TooLarge`."""
    import soundfile  # here: what only lists tasks starts without it

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in FORMATS:
                raise InvalidInput(
                    f"{file.format} is not taken; send one of {', '.join(FORMATS)}"
                )
            _check(file.frames, file.channels, file.samplerate)
            return _mono(file), file.samplerate
    except soundfile.LibsndfileError as error:
        raise InvalidInput(
            f"not a sound file that can be read: {str(error.error_string)[:120]}"
        ) from error


def _check(frames: int, channels: int, rate: int) -> None:
    """Check the values of a header; raises `InvalidInput`, `TooLarge`."""
    if not RATES[0] <= rate <= RATES[1]:
        raise InvalidInput(
            f"the recording has {rate:,} samples a second; from {RATES[0]:,} to {RATES[1]:,} are "
            "taken"
        )
    if channels > MAX_CHANNELS:
        raise InvalidInput(
            f"the recording has {channels} channels; at most {MAX_CHANNELS} are taken"
        )
    if frames > rate * MAX_SECONDS or frames * channels > MAX_SAMPLES:
        raise TooLarge(
            f"the recording is {frames / rate:,.0f} s long; at most {MAX_SECONDS:,} s are taken"
        )


def _mono(file: Any) -> Samples:
    """All samples, block by block: the length in a header may be wrong."""
    blocks, count = list[Samples](), 0
    for block in file.blocks(BLOCK, dtype="float32", always_2d=True):
        blocks.append(block.mean(axis=1))
        count += len(block)
        _check(count, file.channels, file.samplerate)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def at_rate(recording: Recording, rate: int) -> Samples:
    """The samples resampled to another rate in Hz."""
    if recording.rate == rate:
        return recording.samples
    import soxr

    resampled: Samples = soxr.resample(
        recording.samples, recording.rate, rate, quality="HQ"
    ).astype(np.float32)
    return resampled if len(resampled) else np.zeros(1, np.float32)


def fingerprint(data: Raw) -> str:
    """The sha256 of the samples, at 16 bits, and their rate."""
    recording = read(data)
    rate = recording.rate.to_bytes(4, "little")
    return hashlib.sha256(rate + _sixteen_bits(recording.samples)).hexdigest()


def rate_of(recordings: Sequence[Recording], options: Preprocessing) -> int:
    """The sampling rate of a model for these recordings: their median rate, up to `max_rate`."""
    return options.rate or min(
        options.max_rate,
        int(np.median([recording.rate for recording in recordings])),
    )


def wav(samples: Samples, rate: int) -> bytes:
    """Samples as a 16-bit WAV file."""
    import wave

    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(_sixteen_bits(np.clip(samples, -1, 1)))
    return out.getvalue()


def _sixteen_bits(samples: Samples) -> bytes:
    """Samples -1..1 as whole numbers of 16 bits, little-endian."""
    return np.rint(samples * 32767).astype("<i2").tobytes()


def tone(seconds: float = 0.5, rate: int = 8000, pitch: float = 440.0) -> bytes:
    """A WAV file of a rising tone, as an example."""
    time = np.arange(int(seconds * rate)) / rate
    samples = 0.3 * np.sin(2 * np.pi * pitch * time * (1 + time))
    return wav(samples.astype(np.float32), rate)
