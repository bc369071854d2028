"""Content encodings of HTTP bodies: gzip and deflate (the zlib format, RFC 9110 section 8.4.1),
both ways.
"""

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

from modelmill.errors import InvalidInput, TooLarge

T = TypeVar("T")


WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
WORTH = 1024
"""Bytes below which an answer goes as it is."""
SMALL = 4096
"""Compressed bytes that are unpacked in the event loop; more, and a bomb would be felt there."""
BRISK = 1 << 16
"""Bytes that are compressed in the event loop."""

_threads = ThreadPoolExecutor(2, "bodies")


class UnknownCoding(InvalidInput):
    """The Content-Encoding of a body is not known."""


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run what would hold up the event loop; two at a time, so that memory stays bounded."""
    return await asyncio.get_running_loop().run_in_executor(
        _threads, work, *arguments
    )


async def unpacked_body(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The body without its Content-Encoding; raises `TooLarge` while unpacking, `InvalidInput` for
    a damaged one, and `UnknownCoding`.
    """
    name = encoding.strip().lower().decode("latin-1")
    if name in ("", "identity"):
        return body
    if name not in WBITS:
        raise UnknownCoding(
            f"Content-Encoding is gzip, deflate or identity, not {name[:40]!r}"
        )
    if len(body) <= SMALL:
        return unpack(body, name, limit)
    return await in_thread(unpack, body, name, limit)


def unpack(body: bytes, name: str, limit: int) -> bytes:
    """One compressed stream, at most `limit` bytes of it; raises `TooLarge`, `InvalidInput`."""
    stream = zlib.decompressobj(WBITS[name])
    try:
        found = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not valid {name}: {error}") from error
    if len(found) > limit:
        raise TooLarge(f"the body exceeds {limit:,} bytes when it is unpacked")
    _check_end(stream.eof, len(stream.unused_data), name)
    return found


def _check_end(ended: bool, rest: int, name: str) -> None:
    """Raises `InvalidInput` unless the stream is whole and nothing follows it."""
    if not ended:
        raise InvalidInput(f"the body ends in the middle of its {name} stream")
    if rest:
        raise InvalidInput(f"{rest} bytes follow the {name} stream of the body")


async def packed_body(body: bytes, accepted: bytes) -> tuple[bytes, str]:
    """The body as Accept-Encoding wants it, and the name of its encoding (empty: as it was)."""
    if len(body) < WORTH or not (name := preferred(accepted)):
        return body, ""
    small = len(body) <= BRISK
    packed = (
        zlib.compress(body, 1, WBITS[name])
        if small
        else await in_thread(zlib.compress, body, 1, WBITS[name])
    )
    return (packed, name) if len(packed) < len(body) else (body, "")


@lru_cache(256)
def preferred(accepted: bytes) -> str:
    """`gzip` or `deflate` when Accept-Encoding prefers it, else an empty string (RFC 9110 section
    12.5.3).
    """
    weights = _weights(accepted[:1024].decode("latin-1"))
    others = weights.get("*", 0.0)
    best = max(("gzip", "deflate"), key=lambda name: weights.get(name, others))
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else ""


def _weights(accepted: str) -> dict[str, float]:
    """How much each coding is wanted."""
    weights: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, _, rest = part.partition(";")
        weights[name.strip()] = _quality(rest)
    return weights


def _quality(text: str) -> float:
    """The value of `q=...`; 1 without one, 0 for what is no number."""
    name, mark, value = text.partition("=")
    if not mark or name.strip() != "q":
        return 1.0
    try:
        number = float(value.partition(";")[0])
    except ValueError:
        return 0.0
    return number if 0 <= number <= 1 else 0.0
