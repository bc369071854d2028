"""What was said, and when, as OpenAI's audio API gives it: segments, words, subtitles."""

from collections.abc import Iterator, Sequence
from typing import Any

from modelmill.tasks.decoding.unspaced_scripts import joined

Json = dict[str, Any]
PAUSE, LONGEST = 0.6, 8.0
"""Seconds of silence that end a segment, and how long one may get."""
FORMATS = ("json", "text", "srt", "vtt", "verbose_json")


def segments(words: Sequence[Json]) -> list[Json]:
    """Words `{"text", "timestamp"}` put together to what is said in one breath: `{id, start, end,
    text}`.
    """
    found: list[Json] = []
    for word in words:
        start, end = word["timestamp"]
        last = found[-1] if found else None
        if last is None or start - last["end"] > PAUSE or end - last["start"] > LONGEST:
            found.append(
                {"id": len(found), "start": start, "end": end, "text": word["text"]}
            )
        else:
            last["end"], last["text"] = end, joined(last["text"], word["text"])
    return found


def subtitles(parts: Sequence[Json], kind: str) -> str:
    """As SubRip (srt) or WebVTT (vtt)."""
    point, head = (",", "") if kind == "srt" else (".", "WEBVTT\n\n")
    return head + "".join(_subtitles(parts, point, numbered=kind == "srt"))


def _subtitles(parts: Sequence[Json], point: str, *, numbered: bool) -> Iterator[str]:
    for number, part in enumerate(parts, 1):
        yield f"{number}\n" if numbered else ""
        yield f"{_clock(part['start'], point)} --> {_clock(part['end'], point)}\n{part['text']}\n\n"


def _clock(seconds: float, point: str) -> str:
    whole = round(seconds * 1000)
    minutes, left = divmod(whole, 60_000)
    return (
        f"{minutes // 60:02}:{minutes % 60:02}:{left // 1000:02}{point}{left % 1000:03}"
    )


def verbose(
    parts: Sequence[Json], words: Sequence[Json], wanted: Sequence[str]
) -> Json:
    """`segments`, and `words`, as far as they are `wanted`: segments, if nothing is said."""
    document: Json = {"segments": parts} if "segment" in wanted or not wanted else {}
    if "word" in wanted:
        document["words"] = [
            {
                "word": one["text"],
                "start": one["timestamp"][0],
                "end": one["timestamp"][1],
            }
            for one in words
        ]
    return document
