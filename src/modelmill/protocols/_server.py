"""HTTP/1.1 on the wire: uvicorn's httptools protocol with limits, time-outs and honest refusals.

A request pays for none of it with a timer: one sweep per server looks at every connection about once a second and
asks whether it still makes progress. What httptools refuses by itself (both length headers, two lengths, signs and
lists as a length, bare LF, folded lines, NUL) is answered as JSON; what it lets pass and another server could read
differently (a transfer coding other than `chunked`, a coded HTTP/1.0 body, two hosts, fields after a chunked body
that pretend to be headers) is refused or dropped here. Source: RFC 9112, sections 3.2, 6.1, 6.3, 7.1, 9.3 and 9.6.
"""

import asyncio
import logging
import socket
from collections.abc import Collection
from typing import Any, NoReturn, cast

import httptools
import msgspec
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from modelmill.settings import Limits

log = logging.getLogger("modelmill.gateway")

STEP = 8 << 10  # a head is read in such steps, so that what one read makes of it stays small
BODY_STEP = 64 << 10
PIPELINED = 32  # requests that may wait on one connection for the answer to the first
LINGER_BYTES = 16 << 20  # what a refused client may still send: closing at once would destroy the answer on its way
EXTRA_REFUSED = 256  # connections above the limit that are refused in words; beyond these they are just closed
SWEEP_SECONDS = 1.0
TCP_CLOSE = 7  # linux/tcp_states.h
GONE = "modelmill.gone"
CHECKED = frozenset((b"host", b"transfer-encoding", b"expect"))
BUSY = ("busy", 0)


class _Refusal(Exception):
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


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `guarded` makes the class that a server is given."""

    limits: Limits
    sweeper: "Sweeper"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ws_protocol_class = None
        self._gone = self.gone  # bound once
        self._active: RequestResponseCycle | None = None  # whose answer is next on the wire
        self._reads = self._messages = self._hosts = self._taken = 0
        self._in_head = self._unfinished = self._offered = False
        self._counted, self._spent, self._base = 0, 0, 0  # bytes of the current head, or around the current body
        self._backlog = b""  # pipelined requests that were not parsed yet
        self._refusal: _Refusal | None = None
        self._half_closed = self._probed = False
        self._condition, self._since = BUSY, 0.0

    def gone(self) -> bool:
        """Whether nobody is left to read an answer; costs next to nothing. In the scope as `modelmill.gone`."""
        return self.transport.is_closing() or (self._half_closed and self._was_reset())

    # ---- what the transport says

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a client, or send it away when there are too many."""
        super().connection_made(transport)
        self.sweeper.arm(self.loop, self.connections)
        above = len(self.connections) - self.limits.connections
        if above > 0:
            self._refuse(_Refusal(503, f"{self.limits.connections} connections are open, as many as are allowed"))
            if above > EXTRA_REFUSED:
                transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application, also of requests that waited behind others."""
        for cycle in (self._active, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        self._backlog = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came. Nearly every request is one small piece on a connection where nothing else waits."""
        self._reads += 1
        if len(data) > STEP or self.pipeline or self._backlog:
            self._feed_in_steps(data)
        else:
            self._feed(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that has asked everything may close its side and wait: it gets its answers."""
        active, newest = self._active, self.cycle
        if active is None or active.response_complete or active.disconnected:
            return None
        if self._refusal is None and not self._backlog:
            if newest.more_body:
                if newest is active:
                    return None  # half a request; the transport closes
                self.pipeline.popleft()
                newest = self.pipeline[0][0] if self.pipeline else active
            newest.keep_alive = False
        self._half_closed = True
        return True

    def shutdown(self) -> None:
        """Answer what was accepted, then close."""
        active = self._active
        if active is None or active.response_complete or active.disconnected:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _feed(self, data: bytes | memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._refuse(_refusal_of(error))
        except httptools.HttpParserUpgrade as offer:
            self._decline_upgrade(data[offer.args[0] :])
        if self._unfinished:
            self._count(len(data))

    def _feed_in_steps(self, data: bytes) -> None:
        view = memoryview(self._backlog + data if self._backlog else data)
        self._backlog = b""
        while view and len(self.pipeline) < PIPELINED:
            size = BODY_STEP if self._unfinished and not self._in_head else STEP
            self._feed(view[:size])
            view = view[size:]
        if view:
            self._backlog = bytes(view)
            self.flow.pause_reading()

    def _feed_backlog(self) -> None:
        if not self.transport.is_closing():
            self._feed_in_steps(b"")
            if not self._backlog and not self.pipeline:
                self.flow.resume_reading()
            self._when_quiet()

    def _count(self, size: int) -> None:
        """Bound what a head, or the framing and trailers of a chunked body, may cost; raises nothing, refuses."""
        if self._counted != self._messages:
            self._counted, self._spent, self._base = self._messages, 0, self._taken
            if size > STEP:
                return  # the end of a body with the beginning of a head behind it
        self._spent += size
        if self._in_head:
            if self._spent > self.limits.header_bytes:
                self._refuse(self._too_large())
        elif self._spent - 16 * (self._taken - self._base) > self.limits.header_bytes + BODY_STEP:
            self._refuse(_Refusal(400, "the chunked body is little more than framing"))

    def _too_large(self) -> _Refusal:
        limits = self.limits
        return _Refusal(
            431, f"the request line and headers exceed {limits.header_bytes:,} bytes or {limits.headers} headers"
        )

    # ---- what the parser says

    def on_message_begin(self) -> None:
        """A request line begins."""
        super().on_message_begin()
        self.scope[GONE] = self._gone  # type: ignore[typeddict-unknown-key]
        self._messages += 1
        self._hosts = 0
        self._in_head = self._unfinished = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; what follows a chunked body under the name of trailers is dropped."""
        if not self._in_head:
            return
        name = name.lower()
        if name in CHECKED:
            self._check_header(name, value)
        self.headers.append((name, value))

    def _check_header(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._hosts += 1
        elif name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue" and self.parser.get_http_version() == "1.1"
        elif value.lower() != b"chunked" or self.parser.get_http_version() == "1.0":
            raise _Refusal(501, "the only transfer coding that is understood is 'chunked', in HTTP/1.1")

    def on_headers_complete(self) -> None:
        """Hand the request to the application, unless something is wrong with its head."""
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise _Refusal(505, f"HTTP/{version} is not spoken here; HTTP/1.1 and HTTP/1.0 are")
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            raise _Refusal(400, f"a request names one host; this one has {self._hosts} Host headers")
        if len(self.headers) > self.limits.headers:
            raise self._too_large()
        self._in_head = False
        if self.parser.should_upgrade():
            self._offered = True  # answered when the parser stops, see `_decline_upgrade`
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body; reading pauses when the application is slow."""
        self._taken += len(body)
        cycle = self.cycle
        if cycle.response_complete or cycle.disconnected:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The body is whole."""
        if self._offered:
            return
        self._unfinished = False
        cycle = self.cycle
        cycle.more_body = False
        if not cycle.response_complete:
            cycle.message_event.set()

    def _decline_upgrade(self, rest: bytes | memoryview) -> None:
        """Answer a request that offers another protocol as if it did not, with its body (RFC 9110, section 7.8).

        Java's client offers h2c with every first request. httptools takes no body after an offer, so the request
        is read once more without it.
        """
        self._offered = self._unfinished = False
        method = self.parser.get_method()
        if method == b"CONNECT":
            return self._refuse(_Refusal(501, "this is no proxy: CONNECT is not served"))
        head = [method, b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._feed(b"".join([*head, b"\r\n"]))
        if rest:
            self._feed(rest)
        return None

    # ---- answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Go on with the next request. No timer is set: the sweep finds idle connections."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if self._backlog:
            if not self.pipeline:
                self.loop.call_soon(self._feed_backlog)
        elif not self.pipeline:
            self.flow.resume_reading()
            if self._refusal is not None or self._half_closed:
                self._when_quiet()

    def _when_quiet(self) -> None:
        """After the last answer: refuse what came behind it, or close when the client has closed its side."""
        if self._backlog or (self._active is not None and not self._active.response_complete):
            return
        if self._refusal is not None:
            self._send_refusal(self._refusal)
        elif self._half_closed:
            self.transport.close()

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer with an error and let go of the client, after the answers that it is owed."""
        if self._refusal is not None or self.transport.is_closing():
            return
        self._refusal = refusal
        self.parser = cast(Any, _Discard(self.transport))
        self._backlog = b""
        newest, owed = self.cycle, self._active
        if newest is not None and newest.more_body and self._unfinished and not self._in_head:
            newest.disconnected = True  # its body will never be whole
            newest.message_event.set()
            if newest is owed:
                if newest.response_started:
                    return self.transport.close()
                owed = None
            else:
                self.pipeline.popleft()
        if owed is None or owed.response_complete:
            self._send_refusal(refusal)
        return None

    def _send_refusal(self, refusal: _Refusal) -> None:
        body = msgspec.json.encode({"error": str(refusal)})
        content = [STATUS_LINE[refusal.status]]
        for name, value in self.server_state.default_headers:
            content += [name, b": ", value, b"\r\n"]
        if refusal.status == 503:
            content.append(b"retry-after: 1\r\n")
        content.append(b"content-type: application/json\r\nconnection: close\r\n")
        content.append(b"content-length: %d\r\n\r\n" % len(body))
        self.transport.write(b"".join([*content, body]))
        if self._half_closed:
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
        what, waited, limits = condition[0], now - self._since, self.limits
        if what == "idle" and waited > limits.idle_seconds:
            self.transport.close()
        elif what == "head" and waited > limits.header_seconds:
            self._refuse(_Refusal(408, f"the headers were not complete within {limits.header_seconds:g} seconds"))
        elif what == "body" and waited > limits.body_seconds:
            self._refuse(_Refusal(408, f"no byte of the body came for {limits.body_seconds:g} seconds"))
        elif what == "refused" and waited > limits.header_seconds:
            self.transport.close()
        elif (what == "unread" and waited > limits.body_seconds) or what == "reset":
            self.transport.abort()
        elif what == "unwanted" and waited > limits.body_seconds:
            self.transport.close()

    def _look_closer(self) -> tuple[str, int]:
        """What the connection waits for, with a number that changes when there is progress."""
        if unsent := self.transport.get_write_buffer_size():
            return "unread", unsent
        cycle = self._active
        if cycle is None or cycle.response_complete:
            if self._refusal is not None:
                return "refused", 0
            if self._unfinished:
                return ("head" if self._in_head else "unwanted"), self._messages
            return "idle", self._messages
        if self._half_closed:
            return self._look_for_client(cycle)
        if cycle.disconnected:
            return "refused", 0
        due = cycle.more_body and not cycle.body and not cycle.message_event.is_set()
        if due and not cycle.waiting_for_100_continue and not self.flow.read_paused:
            return "body", self._reads
        return BUSY

    def _look_for_client(self, cycle: RequestResponseCycle) -> tuple[str, int]:
        """Find out whether a client that closed its side still waits: one that left resets what it is sent."""
        if self._was_reset():
            return "reset", 0
        if not self._probed and not cycle.response_started and cycle.scope["http_version"] == "1.1":
            self._probed = True
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # an answer in between that all clients skip
        return BUSY

    def _was_reset(self) -> bool:
        try:
            end = self.transport.get_extra_info("socket")
            return bool(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE)
        except OSError:  # a Unix socket: there the write itself fails
            return False


class Sweeper:
    """Looks at every connection of a server now and then; rests while there are none."""

    def __init__(self, limits: Limits) -> None:
        shortest = min(limits.header_seconds, limits.body_seconds, limits.idle_seconds)
        self._seconds = min(SWEEP_SECONDS, shortest / 4)
        self._armed = False

    def arm(self, loop: asyncio.AbstractEventLoop, connections: Collection[Any]) -> None:
        """Begin to look, unless that is under way."""
        if not self._armed:
            self._armed = True
            loop.call_later(self._seconds, self._sweep, loop, connections)

    def _sweep(self, loop: asyncio.AbstractEventLoop, connections: Collection[Any]) -> None:
        self._armed = False
        now = loop.time()
        for connection in tuple(connections):
            try:
                connection.look(now)
            except Exception:
                log.exception("a connection could not be looked at")
        if connections:
            self.arm(loop, connections)


def guarded(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol class of one server (`uvicorn.Config(http=...)`), with limits of its own."""
    return type("Guarded", (GuardedProtocol,), {"limits": limits, "sweeper": Sweeper(limits)})


def _refusal_of(error: httptools.HttpParserError) -> _Refusal:
    cause = error.__context__
    if isinstance(cause, _Refusal):
        return cause
    if cause is not None and not isinstance(cause, httptools.HttpParserError):
        log.error("a request could not be read", exc_info=cause)
    return _Refusal(400, f"this is not HTTP/1.1: {str(cause or error)[:200]}")
