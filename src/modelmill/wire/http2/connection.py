"""HTTP/2 (RFC 9113) for a server: frames, settings and the life of streams, on asyncio.

It knows nothing of gRPC: `accept` makes an `Http2Stream` of each request, which gets what arrives
and sends its answer.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

from hpack.exceptions import HPACKError

from modelmill.wire.http2.hpack import (
    LIST_BYTES,
    HeaderReader,
    Headers,
    Malformed,
)
from modelmill.wire.http2.sender import (
    ACK,
    CALM,
    CLOSED,
    COMPRESSION,
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL,
    FRAME_BYTES,
    FRAME_SIZE,
    GOAWAY,
    HEAD,
    NO_ERROR,
    PADDED,
    PING,
    PRIORITISED,
    PROTOCOL,
    REFUSED,
    RST_STREAM,
    SETTINGS,
    STREAM_WINDOW,
    TOP,
    WINDOW_UPDATE,
    WORD,
    Http2Stream,
    Sender,
    Violation,
    frame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_STREAMS = 256
CONNECTION_WINDOW = 16 << 20
PAUSE_BYTES, ABORT_BYTES = 1 << 20, 8 << 20
"""Unsent bytes from which no more data is written, and from which a client that never reads is let
go.
"""
CONTINUATIONS = 16
ENDURANCE, RECOVERY = 20_000.0, 2_000.0
"""What a connection may cost in frames that carry nothing, at once and per second; a reset stream
costs 20.
"""
LINGER_SECONDS = 5

_SETTING = struct.Struct(">HI")
OURS = frame(
    SETTINGS,
    0,
    0,
    b"".join(
        _SETTING.pack(*s)
        for s in (
            (3, MAX_STREAMS),
            (4, STREAM_WINDOW),
            (5, FRAME_BYTES),
            (6, LIST_BYTES),
        )
    ),
) + frame(WINDOW_UPDATE, 0, 0, WORD.pack(CONNECTION_WINDOW - 65_535))
_WORDS = b"this port speaks gRPC (HTTP/2), not HTTP/1\n"
HTTP1 = (
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"
    b"content-type: text/plain\r\ncontent-length: %d\r\n\r\n%b"
    % (
        len(_WORDS),
        _WORDS,
    )
)

Accept = Callable[[Sender, int, Any], Http2Stream]
OnFrame = Callable[[int, int, bytes], None]
"""Takes a frame: its flags, its stream's number and its payload."""


class Http2Connection(asyncio.Protocol):
    """One client's connection. `read` turns headers into what `accept(sender, number, read)` makes
    a stream of.
    """

    def __init__(
        self,
        read: Callable[[Headers], Any],
        accept: Accept,
        connections: "set[Http2Connection]",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._accept, self._connections = accept, connections
        self.transport: asyncio.Transport
        self.sender = Sender(self, self._loop)
        self.streams: dict[int, Http2Stream] = {}
        self.greeted, self.closing = False, False
        self.since = self._loop.time()
        self._room = CONNECTION_WINDOW
        self._last, self._refuse_above = 0, TOP
        self._rest, self._need = bytearray(), len(PREFACE)
        self._block: tuple[int, int, bytearray, int] | None = None
        self._decode: HeaderReader[Any] = HeaderReader(read)
        self._draining = False
        self._credit, self._refilled = ENDURANCE, self.since
        self._handlers = self._frame_handlers()

    def _frame_handlers(self) -> tuple[OnFrame, ...]:
        """What takes a frame, by its kind."""
        return (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_reset,
            self._on_settings,
            self._on_push,
            self._on_ping,
            self._on_goaway,
            self._on_window,
            self._on_continuation,
        )

    # ---- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        self.transport = self.sender.transport = cast(
            asyncio.Transport, transport
        )  # uvloop's own kind is no subclass
        self._connections.add(self)
        self.transport.set_write_buffer_limits(PAUSE_BYTES)
        self.transport.write(OURS)

    def connection_lost(self, error: Exception | None) -> None:
        """The client has gone with all its streams."""
        self.closing = True
        self._connections.discard(self)
        for stream in list(self.streams.values()):
            self._drop(stream)

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self.sender.paused = True

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.sender.paused = False
        self.sender.pump()

    def data_received(self, data: bytes) -> None:
        """Bytes arrive, in whole frames or parts of them."""
        if self.closing:
            return
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return
            data, self._rest = bytes(self._rest), bytearray()
        try:
            at = self._take(data)
        except Violation as violation:
            self.fail(violation.code, str(violation))
            return
        if at < len(data) and not self.closing:
            self._rest = bytearray(data[at:])
        if (
            self.sender.paused
            and self.transport.get_write_buffer_size() > ABORT_BYTES
        ):
            self.transport.abort()

    def _take(self, data: bytes) -> int:
        """Handle the whole frames at the head of `data`; returns where the rest begins."""
        at, size = 0, len(data)
        if not self.greeted:
            if not self._take_preface(data):
                return 0
            at = len(PREFACE)
        while size - at >= 9:
            word, flags, number = HEAD.unpack_from(data, at)
            length, kind = word >> 8, word & 255
            if length > FRAME_BYTES:
                raise _too_long(length)
            end = at + 9 + length
            if end > size:
                self._need = 9 + length
                return at
            if self._block is not None and kind != CONTINUATION:
                raise Violation(PROTOCOL, "a header block was interrupted")
            if kind < 10:
                self._handlers[kind](flags, number & TOP, data[at + 9 : end])
            else:
                self._cost(1)
            if self.closing:
                return size
            at = end
        self._need = 9
        return at

    def _take_preface(self, data: bytes) -> bool:
        """Whether what every client begins with is here; raises `Violation` for another
        protocol.
        """
        if data[: len(PREFACE)] != PREFACE[: len(data)]:
            if data[:1].isalpha():
                self.transport.write(HTTP1)
            raise Violation(PROTOCOL, "this is not HTTP/2")
        self.greeted = len(data) >= len(PREFACE)
        return self.greeted

    # ---- frames from the client

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._room -= size
        if self._room < CONNECTION_WINDOW >> 1:
            self._refill()
        if flags & PADDED:
            payload = _unpadded(payload)
        stream = self.streams.get(number)
        if stream is None or stream.ended:
            self._on_stray_data(stream, number)
            return
        stream.room -= size
        if stream.room < 0:
            self._blame(stream, FLOW_CONTROL)
        elif flags & END_STREAM:
            stream.ended = True
            stream.data(payload, True)
        else:
            if not payload:
                self._cost(1)
            stream.data(payload, False)

    def _refill(self) -> None:
        """Let the client send on, all streams together; raises `Violation` when it did not wait."""
        if self._room < 0:
            raise Violation(
                FLOW_CONTROL, "more data than the connection's window"
            )
        self.transport.write(
            frame(
                WINDOW_UPDATE, 0, 0, WORD.pack(CONNECTION_WINDOW - self._room)
            )
        )
        self._room = CONNECTION_WINDOW

    def _on_stray_data(self, stream: Http2Stream | None, number: int) -> None:
        """Data after the end of a stream, or of one that was reset."""
        if number > self._last or not number & 1:
            raise Violation(
                PROTOCOL, f"data on stream {number}, which was never opened"
            )
        self._cost(1)
        if stream is not None:
            self._blame(stream, CLOSED)

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = _unpadded(payload)
        if flags & PRIORITISED:
            if len(payload) < 5:
                raise Violation(FRAME_SIZE, "headers without their priority")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._on_block(flags, number, payload)
        else:
            self._block = (flags, number, bytearray(payload), 0)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[1] != number:
            raise Violation(PROTOCOL, "a continuation of no header block")
        first, _, block, count = self._block
        block += payload
        _check_block(len(block), count)
        self._block = (first, number, block, count + 1)
        if flags & END_HEADERS:
            self._block = None
            self._on_block(first, number, bytes(block))

    def _on_block(self, flags: int, number: int, block: bytes) -> None:
        """A whole header block: a request, or trailers, which nothing needs."""
        if len(block) > LIST_BYTES:
            raise Violation(
                CALM, f"a header block of more than {LIST_BYTES} bytes"
            )
        head = None
        try:
            head = self._decode(block)
        except HPACKError as error:
            raise Violation(
                COMPRESSION, f"headers can't be decoded: {error}"
            ) from error
        except Malformed:
            self._cost(20)
        if not number & 1:
            raise Violation(PROTOCOL, f"a client can't open stream {number}")
        if number <= self._last:
            self._on_trailers(flags, number)
            return
        self._last = number
        if number > self._refuse_above:
            return  # the client knows, and tries elsewhere
        if head is None or len(self.streams) >= MAX_STREAMS:
            self._turn_away(number, PROTOCOL if head is None else REFUSED)
            return
        stream = self.streams[number] = self._accept(self.sender, number, head)
        stream.ended = bool(flags & END_STREAM)
        stream.opened()
        if stream.ended and stream.open:
            stream.data(b"", True)

    def _turn_away(self, number: int, code: int) -> None:
        """Reset a stream that is not begun."""
        self._cost(20)
        self.transport.write(frame(RST_STREAM, 0, number, WORD.pack(code)))

    def _on_trailers(self, flags: int, number: int) -> None:
        self._cost(1)
        stream = self.streams.get(number)
        if stream is not None and not stream.ended:
            if not flags & END_STREAM:
                raise Violation(PROTOCOL, "headers in the middle of a stream")
            stream.ended = True
            stream.data(b"", True)

    def _on_priority(self, flags: int, number: int, payload: bytes) -> None:
        self._cost(1)
        if len(payload) != 5:
            raise Violation(FRAME_SIZE, "a priority has five bytes")

    def _on_reset(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Violation(FRAME_SIZE, "a reset has four bytes")
        if not number or number > self._last:
            raise Violation(PROTOCOL, f"stream {number} was never opened")
        self._cost(20)
        stream = self.streams.get(number)
        if stream is not None:
            self._drop(stream)
            self._close_if_done()

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        self._cost(10)
        if number or len(payload) % 6 or (flags & ACK and payload):
            raise Violation(FRAME_SIZE, "malformed settings")
        if flags & ACK:
            return
        for name, value in _SETTING.iter_unpack(payload):
            self.sender.follow(name, value, self.streams)
        self.transport.write(frame(SETTINGS, ACK, 0))
        self.sender.pump()

    def _on_push(self, flags: int, number: int, payload: bytes) -> None:
        raise Violation(PROTOCOL, "clients can't push")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        self._cost(2)
        if number or len(payload) != 8:
            raise Violation(FRAME_SIZE, "malformed ping")
        if not flags & ACK:
            self.transport.write(frame(PING, ACK, 0, payload))
        elif self._draining and self._refuse_above == TOP:
            self._refuse_new()

    def _refuse_new(self) -> None:
        """What the client sent before it knew of the end has arrived: it opens no more streams."""
        self._refuse_above = self._last
        self.transport.write(_goaway(self._last, NO_ERROR))
        self._close_if_done()

    def _on_goaway(self, flags: int, number: int, payload: bytes) -> None:
        self._cost(
            10
        )  # the client opens no more streams and waits for its answers

    def _on_window(self, flags: int, number: int, payload: bytes) -> None:
        self._cost(1)
        if len(payload) != 4:
            raise Violation(FRAME_SIZE, "a window update has four bytes")
        more = WORD.unpack(payload)[0] & TOP
        stream = self.streams.get(number)
        if not number:
            self.sender.window += more
            if not more or self.sender.window > TOP:
                raise _window_violation(more)
        elif number > self._last:
            raise Violation(PROTOCOL, f"stream {number} was never opened")
        elif stream is not None:
            stream.window += more
            if not more or stream.window > TOP:
                self._blame(stream, FLOW_CONTROL if more else PROTOCOL)
        self.sender.pump()

    def _cost(self, price: float) -> None:
        """Frames that carry nothing may not come for ever: they would keep the process busy for
        nobody.
        """
        self._credit -= price
        if self._credit < 0:
            now = self._loop.time()
            self._credit = min(
                ENDURANCE, self._credit + (now - self._refilled) * RECOVERY
            )
            self._refilled = now
            if self._credit < 0:
                raise Violation(CALM, "too many frames that carry nothing")

    def _blame(self, stream: Http2Stream, code: int) -> None:
        """Reset a stream for what its client did; that may not come for ever either."""
        self.reset(stream, code)
        self._cost(20)

    # ---- streams and the end

    def finished(self, stream: Http2Stream) -> None:
        """The response is written; a client that still sends has to stop."""
        self.streams.pop(stream.number, None)
        if not stream.ended:
            self.transport.write(
                frame(RST_STREAM, 0, stream.number, WORD.pack(NO_ERROR))
            )
        if self._draining:
            self._close_if_done()

    def reset(self, stream: Http2Stream, code: int) -> None:
        """End a stream without an answer."""
        if stream.open:
            self.transport.write(
                frame(RST_STREAM, 0, stream.number, WORD.pack(code))
            )
            self._drop(stream)
            self._close_if_done()

    def _drop(self, stream: Http2Stream) -> None:
        stream.open = False
        self.streams.pop(stream.number, None)
        self.sender.forget(stream)
        stream.lost()

    def fail(self, code: int, why: str) -> None:
        """End the connection with a reason."""
        if not self.closing:
            if self.greeted:
                self.transport.write(
                    _goaway(min(self._last, self._refuse_above), code, why)
                )
            self._close()
            for stream in list(self.streams.values()):
                self._drop(stream)

    def drain(self) -> None:
        """Take no new streams, as soon as the client knows, and close when the last is answered."""
        if not self.greeted:
            self.fail(NO_ERROR, "")
        elif not self.closing and not self._draining:
            self._draining = True
            self.transport.write(
                _goaway(TOP, NO_ERROR) + frame(PING, 0, 0, b"draining")
            )

    def _close_if_done(self) -> None:
        if (
            self._draining
            and self._refuse_above != TOP
            and not self.streams
            and not self.closing
        ):
            self._close()

    def _close(self) -> None:
        """Say the last words and go when the client has: what arrives unread at a close would take
        them back.
        """
        self.closing = True
        self._rest = bytearray()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()  # TLS says goodbye by itself
        # A client may never read the last words
        self._loop.call_later(LINGER_SECONDS, self.transport.abort)


def _check_block(size: int, parts: int) -> None:
    """Raises `Violation` for a header block that takes too much."""
    if size > LIST_BYTES or parts >= CONTINUATIONS:
        raise Violation(
            CALM,
            f"a header block of more than {LIST_BYTES} bytes or {CONTINUATIONS} parts",
        )


def _too_long(length: int) -> Violation:
    return Violation(
        FRAME_SIZE,
        f"a frame of {length} bytes; at most {FRAME_BYTES} are taken",
    )


def _window_violation(more: int) -> Violation:
    return Violation(
        FLOW_CONTROL if more else PROTOCOL,
        "the connection's window is beyond its bounds",
    )


def _goaway(last: int, code: int, why: str = "") -> bytes:
    return frame(
        GOAWAY, 0, 0, WORD.pack(last) + WORD.pack(code) + why.encode()[:200]
    )


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise Violation(PROTOCOL, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
