"""One HTTP connection in time: how it begins and ends, what it is refused with, and how long it may
take.

No request pays for a timer: one sweep per server looks at every connection about once a second and
asks whether it still makes progress.
"""

import asyncio
import logging
import socket
from collections.abc import Collection
from typing import Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from modelmill.settings import Limits

log = logging.getLogger("modelmill.gateway")

# What a refused client may still send: closing at once would destroy the answer on its way
LINGER_BYTES = 16 << 20
# connections above the limit that are refused in words; beyond these they are just closed
EXTRA_REFUSED = 256
SWEEP_SECONDS = 1.0
SWEPT_AT_ONCE = 256  # about half a millisecond; then requests have their turn
TCP_CLOSE = 7  # linux/tcp_states.h
BUSY = ("busy", 0)


class Refusal(Exception):
    """What a client gets instead of an answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Discard:
    """Takes the place of a parser when nothing more is wanted of a client."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._left = transport, LINGER_BYTES

    def feed_data(self, data: bytes) -> None:
        """Forget it; too much of it ends the connection."""
        self._left -= len(data)
        if self._left < 0:
            self._transport.abort()


class Http1Connection(HttpToolsProtocol):
    """A connection with time-outs; `GuardedProtocol` adds what is read from it."""

    limits: Limits
    sweeper: "Sweeper"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ws_protocol_class = None
        self._gone = self.gone  # bound once
        self._active: RequestResponseCycle | None = (
            None  # whose answer is next on the wire
        )
        self._reads = self._messages = self._hosts = self._taken = 0
        self._in_head = self._unfinished = self._offered = False
        # bytes of the current head, or around the current body
        self._counted = 0
        self._spent = 0
        self._base = 0
        self._backlog = b""  # pipelined requests that were not parsed yet
        self._refusal: Refusal | None = None
        self._half_closed = self._probed = False
        self._condition, self._since = BUSY, 0.0

    def gone(self) -> bool:
        """Whether nobody is left to read an answer; costs next to nothing. In the scope as
        `modelmill.gone`.
        """
        return self.transport.is_closing() or (
            self._half_closed and self._was_reset()
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a client, or send it away when there are too many."""
        super().connection_made(transport)
        self.sweeper.arm(self.loop, self.connections)
        allowed = self.limits.connections
        if len(self.connections) > allowed:
            full = f"{allowed} connections are open, as many as are allowed"
            self.refuse(Refusal(503, full))
        if len(self.connections) > allowed + EXTRA_REFUSED:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application, also for requests that waited for others."""
        for cycle in (self._active, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                _disconnect(cycle)
        self.pipeline.clear()
        self._backlog = b""
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that has sent all requests may close its side: it gets its responses."""
        active, newest = self._active, self.cycle
        if (
            active is None
            or active.response_complete
            or active.disconnected
            or self.scheme == "https"
        ):
            return None  # TLS knows no half
        if self._refusal is None and not self._backlog:
            if newest.more_body and newest is active:
                return None  # half a request; the transport closes
            self._end_with(newest, active)
        self._half_closed = True
        return True

    def _end_with(
        self, newest: RequestResponseCycle, active: RequestResponseCycle
    ) -> None:
        """Close after the response to the newest request that came whole."""
        if newest.more_body:
            self.pipeline.popleft()
            newest = self.pipeline[0][0] if self.pipeline else active
        newest.keep_alive = False

    def shutdown(self) -> None:
        """Answer what was accepted, then close."""
        active = self._active
        if active is None or active.response_complete or active.disconnected:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error and let go of the client, after the answers that it is owed."""
        if self._refusal is not None or self.transport.is_closing():
            return None
        self._refusal = refusal
        self.parser = cast(Any, _Discard(self.transport))
        self._backlog = b""
        newest, owed = self.cycle, self._active
        if newest is not None and newest.more_body and self._is_in_body():
            self._abandon(newest)
            if newest is owed:
                if newest.response_started:
                    return self.transport.close()
                owed = None
        if owed is None or owed.response_complete:
            self._send_refusal(refusal)
        return None

    def _is_in_body(self) -> bool:
        return self._unfinished and not self._in_head

    def _abandon(self, cycle: RequestResponseCycle) -> None:
        """Give up the newest request: its body will never be whole."""
        _disconnect(cycle)
        if cycle is not self._active:
            self.pipeline.popleft()

    def _send_refusal(self, refusal: Refusal) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(
            _refusal_response(refusal, self.server_state.default_headers)
        )
        if self._half_closed or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.flow.resume_reading()
            self.transport.write_eof()  # and read on for a while: see LINGER_BYTES

    # ---- time

    def look(self, now: float) -> None:
        """End what makes no progress. Called by the sweep, with the time of the loop in seconds."""
        condition = self._look_closer()
        if condition != self._condition:
            self._condition, self._since = condition, now
            return
        what = condition[0]
        longest = self.sweeper.patience.get(what)
        if longest is not None and now - self._since > longest:
            self._end(what, longest)

    def _end(self, what: str, seconds: float) -> None:
        """Let go of a client that has kept the connection waiting for so long."""
        if what == "head":
            late = f"the headers were not complete within {seconds:g} seconds"
            self.refuse(Refusal(408, late))
        elif what == "body":
            late = f"no byte of the body came for {seconds:g} seconds"
            self.refuse(Refusal(408, late))
        elif what in ("unread", "reset"):
            self.transport.abort()
        else:
            self.transport.close()

    def _look_closer(self) -> tuple[str, int]:
        """What the connection waits for, with a number that changes when there is progress."""
        if unsent := self.transport.get_write_buffer_size():
            return "unread", unsent
        cycle = self._active
        if cycle is None or cycle.response_complete:
            return self._look_for_request()
        if self._half_closed:
            return self._look_for_client(cycle)
        if cycle.disconnected:
            return "refused", 0
        due = (
            cycle.more_body
            and not cycle.body
            and not cycle.message_event.is_set()
        )
        if (
            due
            and not cycle.waiting_for_100_continue
            and not self.flow.read_paused
        ):
            return "body", self._reads
        return BUSY

    def _look_for_request(self) -> tuple[str, int]:
        """What a connection waits for that owes no response."""
        if self._refusal is not None:
            return "refused", 0
        if self._unfinished:
            return ("head" if self._in_head else "unwanted"), self._messages
        return "idle", self._messages

    def _look_for_client(self, cycle: RequestResponseCycle) -> tuple[str, int]:
        """Find out whether a client that closed its side still waits: one that left resets what it
        is sent.
        """
        if self._was_reset():
            return "reset", 0
        if (
            not self._probed
            and not cycle.response_started
            and cycle.scope["http_version"] == "1.1"
        ):
            self._probed = True
            # An answer in between that all clients skip
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return BUSY

    def _was_reset(self) -> bool:
        try:
            end = self.transport.get_extra_info("socket")
            return bool(
                end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
                == TCP_CLOSE
            )
        except OSError:  # a Unix socket: there the write itself fails
            return False


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Tell the application that a client has gone."""
    cycle.disconnected = True
    cycle.message_event.set()


def _refusal_response(
    refusal: Refusal, headers: Collection[tuple[bytes, bytes]]
) -> bytes:
    """A whole response, after which the connection is closed."""
    body = msgspec.json.encode({"error": str(refusal)})
    content = [STATUS_LINE[refusal.status]]
    for name, value in headers:
        content += [name, b": ", value, b"\r\n"]
    if refusal.status == 503:
        content.append(b"retry-after: 1\r\n")
    content.append(b"content-type: application/json\r\nconnection: close\r\n")
    content.append(b"content-length: %d\r\n\r\n" % len(body))
    return b"".join([*content, body])


class Sweeper:
    """Looks at every connection of a server now and then; rests while there are none.

    `patience` is for how many seconds a connection may wait for each thing.
    """

    def __init__(self, limits: Limits) -> None:
        shortest = min(
            limits.header_seconds, limits.body_seconds, limits.idle_seconds
        )
        self.patience = {
            "idle": limits.idle_seconds,
            "head": limits.header_seconds,
            "refused": limits.header_seconds,
            "body": limits.body_seconds,
            "unread": limits.body_seconds,
            "unwanted": limits.body_seconds,
            "reset": 0.0,
        }
        self._seconds = min(SWEEP_SECONDS, shortest / 4)
        self._armed = False

    def arm(
        self, loop: asyncio.AbstractEventLoop, connections: Collection[Any]
    ) -> None:
        """Begin to look, unless that is under way."""
        if not self._armed:
            self._armed = True
            loop.call_later(self._seconds, self._sweep, loop, connections)

    def _sweep(
        self,
        loop: asyncio.AbstractEventLoop,
        connections: Collection[Any],
        waiting: list[Any] | None = None,
    ) -> None:
        if waiting is None:
            waiting = list(connections)
        now = loop.time()
        for connection in waiting[:SWEPT_AT_ONCE]:
            if connection in connections:
                _look_at(connection, now)
        if len(waiting) > SWEPT_AT_ONCE:
            loop.call_soon(
                self._sweep, loop, connections, waiting[SWEPT_AT_ONCE:]
            )
            return
        self._armed = False
        if connections:
            self.arm(loop, connections)


def _look_at(connection: Http1Connection, now: float) -> None:
    try:
        connection.look(now)
    except Exception:
        log.exception("a connection could not be looked at")
