"""Transcripts in the formats of OpenAI's audio API: segments, words, subtitles."""

from collections.abc import Iterator, Sequence
from typing import Any

from modelmill.tasks.decoding.unspaced_scripts import joined

Json = dict[str, Any]
PAUSE, LONGEST = 0.6, 8.0
"""Seconds of silence that end a segment, and how long one may get."""
FORMATS = ("json", "text", "srt", "vtt", "verbose_json")


def segments_of(words: Sequence[Json]) -> list[Json]:
    """Joins words `{text, timestamp}` into segments `{id, start, end, text}`, which end at a
    pause.
    """
    segments: list[Json] = []
    for word in words:
        if segments and _goes_on(segments[-1], word):
            _extend(segments[-1], word)
            continue
        start, end = word["timestamp"]
        segments.append(
            {
                "id": len(segments),
                "start": start,
                "end": end,
                "text": word["text"],
            }
        )
    return segments


def _goes_on(segment: Json, word: Json) -> bool:
    """Whether a word belongs to the segment before it."""
    start, end = word["timestamp"]
    return bool(
        start - segment["end"] <= PAUSE and end - segment["start"] <= LONGEST
    )


def _extend(segment: Json, word: Json) -> None:
    segment["end"] = word["timestamp"][1]
    segment["text"] = joined(segment["text"], word["text"])


def subtitles(segments: Sequence[Json], kind: str) -> str:
    """As SubRip (srt) or WebVTT (vtt)."""
    point, head = (",", "") if kind == "srt" else (".", "WEBVTT\n\n")
    return head + "".join(_subtitles(segments, point, numbered=kind == "srt"))


def _subtitles(
    segments: Sequence[Json], point: str, *, numbered: bool
) -> Iterator[str]:
    for number, segment in enumerate(segments, 1):
        yield f"{number}\n" if numbered else ""
        start, end = (_clock(segment[name], point) for name in ("start", "end"))
        yield f"{start} --> {end}\n{segment['text']}\n\n"


def _clock(seconds: float, point: str) -> str:
    whole = round(seconds * 1000)
    minutes, left = divmod(whole, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{left // 1000:02}{point}{left % 1000:03}"


def verbose(
    segments: Sequence[Json], words: Sequence[Json], wanted: Sequence[str]
) -> Json:
    """`segments` and `words`, as far as they are `wanted`; segments by default."""
    document: Json = (
        {"segments": segments} if "segment" in wanted or not wanted else {}
    )
    if "word" in wanted:
        document["words"] = list(map(_timed, words))
    return document


def _timed(word: Json) -> Json:
    start, end = word["timestamp"]
    return {"word": word["text"], "start": start, "end": end}
