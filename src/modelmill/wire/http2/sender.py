"""The sending half of an HTTP/2 connection (RFC 9113): frames, and flow control as the client's
windows allow.
"""

import asyncio
import struct
from collections import deque
from typing import Protocol

from modelmill.wire.http2.hpack import SHRINK

(
    DATA,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    PUSH_PROMISE,
    PING,
    GOAWAY,
    WINDOW_UPDATE,
    CONTINUATION,
) = range(10)
END_STREAM = 1
ACK = 1
END_HEADERS = 4
PADDED = 8
PRIORITISED = 32
NO_ERROR = 0
PROTOCOL = 1
INTERNAL = 2
FLOW_CONTROL = 3
CLOSED = 5
FRAME_SIZE = 6
REFUSED = 7
CANCEL = 8
COMPRESSION = 9
CALM = 11
TOP = (1 << 31) - 1
STREAM_WINDOW = 1 << 20
FRAME_BYTES = 256 << 10
"""Largest frame, either way."""

HEAD = struct.Struct(">IBI")  # length and kind share the first four bytes
WORD = struct.Struct(">I")


class Violation(Exception):
    """The peer broke the protocol: the connection ends with this code."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame as it goes over the wire."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


class Http2Stream:
    """One request and its answer. What arrives comes to `opened`, `data` and `lost`; `sender` takes
    the answer.
    """

    __slots__ = (
        "drained",
        "ended",
        "number",
        "open",
        "progress",
        "queue",
        "room",
        "sender",
        "tail",
        "window",
    )

    def __init__(self, sender: "Sender", number: int) -> None:
        self.sender, self.number = sender, number
        self.window = sender.stream_window
        self.room = STREAM_WINDOW
        self.open, self.ended = True, False
        self.queue: deque[memoryview] | None = None
        self.tail: bytes | None = None
        self.progress = 0.0
        self.drained: asyncio.Future[None] | None = None

    def opened(self) -> None:
        """The request's headers are here; when `ended` is set nothing follows them."""
        raise NotImplementedError

    def data(self, payload: bytes, ended: bool) -> None:
        """A part of the request's body; `ended` with the last, which may be empty."""
        raise NotImplementedError

    def lost(self) -> None:
        """The client has reset the stream or its connection is gone: nothing can be answered any
        more.
        """
        raise NotImplementedError


class Owner(Protocol):
    """What the sender tells its connection."""

    def finished(self, stream: Http2Stream) -> None:
        """A stream's answer is written whole."""


class Sender:
    """Writes what streams answer. Header blocks are given encoded."""

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner, self._loop = owner, loop
        self.transport: asyncio.WriteTransport
        self.window = self.stream_window = 65_535
        self.paused = False
        self._frame_bytes = 16_384
        self._prefix = b""
        self._waiting: dict[int, Http2Stream] = {}

    def reply(
        self, stream: Http2Stream, head: bytes, body: bytes, tail: bytes
    ) -> None:
        """A whole answer: headers, body and trailers; ends the stream."""
        size, number = len(body), stream.number
        crowded = self.paused or stream.queue is not None
        if (
            crowded
            or size > stream.window
            or size > self.window
            or size > self._frame_bytes
        ):
            self.send(stream, head, body)
            self.finish(stream, tail)
            return
        stream.window -= size
        self.window -= size
        if self._prefix:
            head, self._prefix = self._prefix + head, b""
        pack = HEAD.pack
        self.transport.write(
            b"".join(
                (
                    pack(len(head) << 8 | HEADERS, END_HEADERS, number),
                    head,
                    pack(size << 8 | DATA, 0, number),
                    body,
                    pack(
                        len(tail) << 8 | HEADERS,
                        END_HEADERS | END_STREAM,
                        number,
                    ),
                    tail,
                )
            )
        )
        stream.open = False
        self._owner.finished(stream)

    def send(self, stream: Http2Stream, head: bytes, body: bytes) -> None:
        """Headers (empty: they were sent) and a part of the body."""
        if head:
            self._headers(stream, head, END_HEADERS)
        if stream.queue is None:
            stream.queue = deque()
        if body:
            stream.queue.append(memoryview(body))
            stream.progress = self._loop.time()
            self._waiting[stream.number] = stream
            self.pump()

    def finish(self, stream: Http2Stream, tail: bytes) -> None:
        """End the stream with a header block, after what is still to be sent."""
        if stream.queue:
            stream.tail = tail
            return
        self._headers(stream, tail, END_HEADERS | END_STREAM)
        stream.open = False
        self._owner.finished(stream)

    def grant(self, stream: Http2Stream, size: int) -> None:
        """Let the client send so many more bytes on a stream."""
        if stream.open and not stream.ended and size:
            stream.room += size
            self.transport.write(
                frame(WINDOW_UPDATE, 0, stream.number, WORD.pack(size))
            )

    def follow(
        self, name: int, value: int, streams: "dict[int, Http2Stream]"
    ) -> None:
        """Obey one of the client's settings; raises `Violation`."""
        if name == 1 and value < 4096:
            self._prefix = SHRINK
        elif name == 4:
            self._resize_windows(value, streams)
        elif name == 5:
            if not 16_384 <= value < 1 << 24:
                raise Violation(PROTOCOL, f"{value} is no size of a frame")
            self._frame_bytes = min(value, FRAME_BYTES)
        elif name == 2 and value > 1:
            raise Violation(PROTOCOL, "push is on or off")

    def _resize_windows(
        self, size: int, streams: "dict[int, Http2Stream]"
    ) -> None:
        """The window that streams begin with, also of those that have begun."""
        if size > TOP:
            raise Violation(FLOW_CONTROL, "an initial window beyond 2^31")
        for stream in streams.values():
            stream.window += size - self.stream_window
        self.stream_window = size

    def pump(self) -> None:
        """Write what the windows allow, one frame for each stream in turn."""
        while self._waiting and not self.paused:
            wrote = False
            for stream in list(self._waiting.values()):
                wrote = self._write_some(stream) or wrote
            if not wrote:
                return

    def forget(self, stream: Http2Stream) -> None:
        """The stream is no more: what waits for it to be sent need not."""
        self._waiting.pop(stream.number, None)
        if stream.drained is not None and not stream.drained.done():
            stream.drained.set_result(None)

    def overdue(self, seconds: float) -> list[Http2Stream]:
        """Streams whose client has not read for so long."""
        before = self._loop.time() - seconds
        return [
            stream
            for stream in self._waiting.values()
            if stream.progress < before
        ]

    def _headers(self, stream: Http2Stream, block: bytes, flags: int) -> None:
        block, self._prefix = self._prefix + block, b""
        self.transport.write(frame(HEADERS, flags, stream.number, block))

    def _write_some(self, stream: Http2Stream) -> bool:
        """One frame of a stream, if the windows have room for it."""
        if not stream.queue:
            return False
        chunk = stream.queue[0]
        size = min(len(chunk), stream.window, self.window, self._frame_bytes)
        if size <= 0 or self.paused:
            return False
        stream.window -= size
        self.window -= size
        stream.progress = self._loop.time()
        self.transport.write(
            HEAD.pack(size << 8 | DATA, 0, stream.number) + chunk[:size]
        )
        if size < len(chunk):
            stream.queue[0] = chunk[size:]
            return True
        stream.queue.popleft()
        if not stream.queue:
            self.forget(stream)
            if stream.tail is not None:
                self.finish(stream, stream.tail)
        return True
