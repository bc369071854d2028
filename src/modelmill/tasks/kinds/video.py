"""video: moving pictures in any of the formats that are read."""

from struct import pack

from modelmill.tasks.kinds.base import BYTES, JSON, InputKind

SIDE, FRAMES, RATE = 16, 3, 10


def example() -> bytes:
    """Three frames in which a bright square moves, as Motion JPEG in an AVI file."""
    frames = [_frame(at) for at in range(FRAMES)]
    header = _header(max(map(len, frames)))
    streams = _list(
        b"strl", _chunk(b"strh", _stream()), _chunk(b"strf", _format())
    )
    return _list(
        b"AVI ",
        _list(b"hdrl", _chunk(b"avih", header), streams),
        _list(b"movi", *(_chunk(b"00dc", frame) for frame in frames)),
        _chunk(b"idx1", _index(frames)),
        name=b"RIFF",
    )


def _header(largest: int) -> bytes:
    """Of the file: its rate and size, that it has an index, one stream, and the largest frame."""
    microseconds, index, streams = 1_000_000 // RATE, 0x10, 1
    numbers = (
        microseconds,
        0,
        0,
        index,
        FRAMES,
        0,
        streams,
        largest,
        SIDE,
        SIDE,
    )
    return pack("<14I", *numbers, *(0, 0, 0, 0))


def _frame(at: int) -> bytes:
    """A square that is further to the right in each frame, as JPEG."""
    import io

    from PIL import Image

    sheet = Image.new("RGB", (SIDE, SIDE), "black")
    sheet.paste("white", (4 * at, 6, 4 * at + 4, 10))
    written = io.BytesIO()
    sheet.save(written, "JPEG")
    return written.getvalue()


def _stream() -> bytes:
    """The header of the stream: kind and codec, then its rate and length."""
    numbers = pack(
        "<IHHIIIIIIII4H", *(0, 0, 0, 0), 1, RATE, 0, FRAMES, 0, 0, 0, *(0,) * 4
    )
    return b"vidsMJPG" + numbers


def _format() -> bytes:
    """The form of a frame, as Windows describes a bitmap."""
    return pack(
        "<IiiHH4sIiiII", 40, SIDE, SIDE, 1, 24, b"MJPG", 3 * SIDE**2, *(0,) * 4
    )


def _index(frames: list[bytes]) -> bytes:
    """Where each frame begins, from the word movi on; all of them stand by themselves."""
    entries = list[bytes]()
    place = 4
    for frame in frames:
        entries.append(pack("<4sIII", b"00dc", 0x10, place, len(frame)))
        place += len(_chunk(b"00dc", frame))
    return b"".join(entries)


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + pack("<I", len(data)) + data + bytes(len(data) % 2)


def _list(kind: bytes, *chunks: bytes, name: bytes = b"LIST") -> bytes:
    return _chunk(name, kind + b"".join(chunks))


INPUT = InputKind(
    name="video",
    article="a video",
    media=("video/*", BYTES, JSON),
    shown="film",
    example=example,
)
