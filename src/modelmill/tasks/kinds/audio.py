"""audio: a recording in any of the formats that are read."""

from modelmill.tasks.kinds.base import BYTES, JSON, InputKind


def example() -> bytes:
    """Half a second of a rising tone as WAV."""
    from modelmill.tasks.decoding.audio_decoder import tone

    return tone()


INPUT = InputKind(
    name="audio",
    article="a recording",
    media=("audio/*", BYTES, JSON),
    shown="player",
    example=example,
)
