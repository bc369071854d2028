"""HTTP/1.1 on the wire: uvicorn's httptools protocol with limits, time-outs and honest refusals.

What httptools refuses by itself (both length headers, two lengths, signs and lists as a length,
bare LF, folded lines, NUL) is answered as JSON. What it lets pass and another server could read
differently (a transfer coding other than `chunked`, a coded HTTP/1.0 body, two hosts, fields after
a chunked body that pretend to be headers) is refused or dropped here. Source: RFC 9112, sections
3.2, 6.1, 6.3, 7.1 and 9.3.
"""

import asyncio
import re
from collections.abc import Iterable
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from modelmill.settings import Limits
from modelmill.wire.http1.connection import (
    Http1Connection,
    Refusal,
    Sweeper,
    log,
)
from modelmill.wire.http1.cycle import Cycle, declared_length
from modelmill.wire.http1.fast_path import FastCycle, KnownHeads
from modelmill.wire.http1.scope import GONE

# More than this is read in steps, so that what is made of one read stays small
STEP = 16 << 10
PIPELINED = (
    32  # requests that may wait on one connection for the answer to the first
)
# uri-host of RFC 3986, or nothing, and a port
HOST = re.compile(
    rb"(?:\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?"
)
PORT = re.compile(rb":[0-9]*$")
CHECKED = frozenset((b"host", b"transfer-encoding", b"expect"))


class GuardedProtocol(Http1Connection):
    """One connection. `guarded` makes the class that a server is given."""

    heads: KnownHeads
    hosts: frozenset[bytes]

    def data_received(self, data: bytes) -> None:
        """Parse what came. Nearly every request is one small piece on a connection where nothing
        else waits.
        """
        self._reads += 1
        if self._take_fast_path(data):
            return None
        if len(data) > STEP or self.pipeline or self._backlog:
            return self._feed_in_steps(data)
        begins = not self._unfinished and data.startswith(b"POST ")
        messages = self._messages
        self._feed(data)
        if begins and not self._unfinished and self._messages == messages + 1:
            self._offer_head(data)
        return None

    def _offer_head(self, data: bytes) -> None:
        """Let the application teach the fast path for the head of this request, which came whole
        and alone.

        Only then is what stands before the first empty line its head: in a later piece it would be
        of the caller's choosing, and what is learnt for it would be open to others.
        """
        end = data.find(b"\r\n\r\n") + 4
        if isinstance(self.cycle, Cycle) and end <= KnownHeads.LENGTH:
            self.cycle.head, self.cycle.heads = data[:end], self.heads

    def _take_fast_path(self, data: bytes) -> bool:
        """Answer a whole request whose head is known, on a connection where nothing else is under
        way.
        """
        earlier = self.cycle
        if (
            (earlier is not None and not earlier.response_complete)
            or self._unfinished
            or self._backlog
        ):
            return False
        end = data.find(b"\r\n\r\n") + 4
        if (
            end < 4
            or end > KnownHeads.LENGTH
            or (known := self.heads.get(data[:end])) is None
        ):
            return False
        length, answer = known
        if (
            len(data) != end + length
            or self._refusal is not None
            or self._half_closed
            or self.transport.is_closing()
        ):
            return False
        cycle = FastCycle(self)
        self.cycle = self._active = cast(Any, cycle)
        if answer(data[end:], self._gone, cycle.done):
            self._messages += 1
            return True
        self.heads.forget(data[:end])
        self.cycle = self._active = earlier
        return False

    def _feed(self, data: bytes | memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as stop:
            self._stopped(stop, data)
        if self._unfinished:
            self._count(len(data))

    def _stopped(self, stop: Exception, data: bytes | memoryview) -> None:
        if isinstance(stop, httptools.HttpParserUpgrade):
            self._decline_upgrade(data[stop.args[0] :])
        else:
            self.refuse(_refusal_of(stop))

    def _feed_in_steps(self, data: bytes) -> None:
        """Parse one head or one body at a time, and keep what is more than a connection may have
        waiting.
        """
        if self._backlog:
            data, self._backlog = self._backlog + data, b""
        view, at = memoryview(data), 0
        while at < len(data) and len(self.pipeline) < PIPELINED:
            size = self._step(data, at)
            self._feed(view[at : at + size])
            at += size
        if at < len(data):
            self._backlog = data[at:]
            self.flow.pause_reading()

    def _step(self, data: bytes, at: int) -> int:
        """How many bytes to parse next: the rest of a body, or one head."""
        if self._is_in_body():
            return self._missing() or STEP
        end = data.find(b"\r\n\r\n", at, at + STEP)
        return STEP if end < 0 else end + 4 - at

    def _missing(self) -> int:
        """Bytes of the current body that have not come yet; 0 when its length was not declared."""
        declared = declared_length(self.scope["headers"]) or 0
        return max(0, declared + self._base - self._taken)

    def _feed_backlog(self) -> None:
        if not self.transport.is_closing():
            self._feed_in_steps(b"")
            if not self._backlog and not self.pipeline:
                self.flow.resume_reading()
            self._when_quiet()

    def _count(self, size: int) -> None:
        """Bound what a head, or the framing and trailers of a chunked body, may cost; raises
        nothing, refuses.
        """
        if self._counted != self._messages:
            self._counted, self._spent = self._messages, 0
            if size > STEP:
                return  # the end of a body with the beginning of the next head
        self._spent += size
        if self._in_head:
            if self._spent > self.limits.header_bytes:
                self.refuse(self._too_large())
        elif (
            self._spent - 16 * (self._taken - self._base)
            > 2 * self.limits.header_bytes
        ):
            self.refuse(
                Refusal(400, "the chunked body is little more than framing")
            )

    def _too_large(self) -> Refusal:
        limits = self.limits
        return Refusal(
            431,
            f"the request line and headers exceed {limits.header_bytes:,} bytes or "
            f"{limits.headers} headers",
        )

    # ---- what the parser says

    def on_message_begin(self) -> None:
        """A request line begins."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._messages += 1
        self._hosts = 0
        self._base = self._taken
        self._in_head = self._unfinished = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        name = name.lower()
        if name in CHECKED:
            self._check_header(name, value)
        self.headers.append((name, value))

    def _check_header(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._hosts += 1
            self._check_host(value)
        elif name == b"expect":
            self.expect_100_continue = (
                value.lower() == b"100-continue"
                and self.parser.get_http_version() == "1.1"
            )
        elif (
            value.lower() != b"chunked"
            or self.parser.get_http_version() == "1.0"
        ):
            raise Refusal(
                501,
                "the only transfer coding that is understood is 'chunked', in HTTP/1.1",
            )

    def _check_host(self, value: bytes) -> None:
        if not HOST.fullmatch(value):
            raise Refusal(
                400,
                f"the Host header is a name and a port, not {value[:80].decode('latin-1')!r}",
            )
        if self.hosts and PORT.sub(b"", value.lower()) not in self.hosts:
            raise Refusal(
                421,
                f"{value[:80].decode()} is not served here; the setting hosts says what is",
            )

    def on_headers_complete(self) -> None:
        """Hand the request to the application, unless something is wrong with its head."""
        parser, headers = self.parser, self.headers
        version = parser.get_http_version()
        in_pieces = self._counted == self._messages
        if (
            in_pieces
            or self._hosts != 1
            or version != "1.1"
            or len(headers) > self.limits.headers
        ):
            self._check_head(version)
        self.scope = self._scope(parser.get_method(), version)
        self.headers = []  # trailers of a chunked body are dropped
        self._in_head = False
        if parser.should_upgrade():
            self._offered = (
                True  # answered when the parser stops, see `_decline_upgrade`
            )
            return
        earlier = self.cycle
        cycle = self.cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version == "1.1" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if earlier is None or earlier.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _check_head(self, version: str) -> None:
        if version not in ("1.1", "1.0"):
            raise Refusal(
                505,
                f"HTTP/{version} is not spoken here; HTTP/1.1 and HTTP/1.0 are",
            )
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            raise Refusal(
                400,
                f"a request names one host; this one has {self._hosts} Host headers",
            )
        self._check_size()

    def _check_size(self) -> None:
        size = len(self.url) + sum(
            len(name) + len(value) + 4 for name, value in self.headers
        )
        if (
            size > self.limits.header_bytes
            or len(self.headers) > self.limits.headers
        ):
            raise self._too_large()

    def _scope(self, method: bytes, version: str) -> Any:
        """The request as ASGI has it (HTTP connection scope, spec 2.3)."""
        url = self.url
        if method == b"CONNECT":
            raise Refusal(501, "this is no proxy: CONNECT is not served")
        if url[:1] == b"/" and b"#" not in url:
            raw_path, _, query = url.partition(b"?")
        else:
            parsed = httptools.parse_url(url)
            raw_path, query = parsed.path or b"/", parsed.query or b""
        path = raw_path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "method": method.decode("ascii"),
            "scheme": self.scheme,
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self.headers,
            "server": self.server,
            "client": self.client,
            "state": self.app_state.copy(),
            GONE: self._gone,
        }

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
        """Answer a request that offers another protocol as if it did not, with its body (RFC 9110,
        section 7.8).

        Java's client offers h2c with every first request. httptools takes no body after an offer,
        so the request is read once more without it.
        """
        self._offered = self._unfinished = False
        head = self._head_without_offer()
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn has it
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(head)
        if rest:
            self._feed(rest)

    def _head_without_offer(self) -> bytes:
        """The head of the current request, as if no other protocol had been offered."""
        version = self.parser.get_http_version().encode()
        line = b"%b %b HTTP/%b\r\n" % (
            self.parser.get_method(),
            self.url,
            version,
        )
        headers = [
            b"%b: %b\r\n" % field
            for field in self.scope["headers"]
            if field[0] != b"upgrade"
        ]
        return b"".join([line, *headers, b"\r\n"])

    # ---- answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

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
        """After the last response: refuse what followed it, or close when the client has closed
        its side.
        """
        if self._backlog or (
            self._active is not None and not self._active.response_complete
        ):
            return
        if self._refusal is not None:
            self._send_refusal(self._refusal)
        elif self._half_closed:
            self.transport.close()


def guarded(
    limits: Limits, hosts: Iterable[str] = ()
) -> type[asyncio.Protocol]:
    """The protocol class of one server (`uvicorn.Config(http=...)`), with limits of its own; where
    `hosts` are given, requests to others are refused.
    """
    return type(
        "Guarded",
        (GuardedProtocol,),
        {
            "limits": limits,
            "sweeper": Sweeper(limits),
            "heads": KnownHeads(),
            "hosts": frozenset(host.lower().encode() for host in hosts),
        },
    )


def _refusal_of(error: Exception) -> Refusal:
    cause = error.__context__
    if isinstance(cause, Refusal):
        return cause
    if cause is not None and not isinstance(cause, httptools.HttpParserError):
        log.error("a request could not be read", exc_info=cause)
    return Refusal(400, f"this is not HTTP/1.1: {str(cause or error)[:200]}")
