"""One gRPC call over an HTTP/2 stream: messages, compression, deadline, status
(grpc/doc/PROTOCOL-HTTP2.md).
"""

import asyncio
import logging
import re
import zlib
from collections import deque
from collections.abc import Awaitable, Callable
from struct import Struct as Packer
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from google.protobuf.message import DecodeError

from modelmill.errors import (
    Expired,
    InvalidInput,
    MethodNotAllowed,
    MillError,
    TooLarge,
    Unavailable,
)
from modelmill.protocols.browser import refuse_other_sites
from modelmill.protocols.keys import key_of
from modelmill.serve.tracing import CURRENT, Span, Tracing
from modelmill.types import KeyInfo
from modelmill.wire.encoding import BRISK, SMALL, WORTH, in_thread, unpack
from modelmill.wire.http2.hpack import OK, Headers, Malformed, literal
from modelmill.wire.http2.sender import Http2Stream, Sender

if TYPE_CHECKING:
    from modelmill.protocols.v2.grpc.server import GrpcServer

log = logging.getLogger("modelmill.gateway")

STATUS = {
    "cancelled": 1,
    "invalid_input": 3,
    "timeout": 4,
    "not_found": 5,
    "forbidden": 7,
    "too_large": 8,
    "overloaded": 8,
    "storage_full": 8,
    "conflict": 9,
    "method_not_allowed": 12,
    "not_installed": 12,
    "internal": 13,
    "model_failed": 13,
    "unavailable": 14,
    "bundle_corrupt": 15,
    "unauthenticated": 16,
}
"""gRPC status of every error code."""

MESSAGE_CHARACTERS = 1000
BACKLOG = 8
"""Unread messages of a stream from which on its client gets no more window."""
CREDIT_BYTES = 256 << 10
ENCODINGS = {"gzip": 31, "deflate": 15}
"""Message encodings and what zlib calls them."""
UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
LONGEST = 24 * 3600.0
"""Deadlines further away than this, in seconds, are none."""

_TYPE = OK + literal(b"content-type", b"application/grpc")
_FINE = literal(b"grpc-status", b"0")
_ACCEPTED = literal(b"grpc-accept-encoding", b"identity,deflate,gzip")
_prefix = Packer(">BI")
_printable = bytes(range(0x20, 0x7F)).replace(b"%", b"").decode()

Handler = Callable[..., Awaitable[Any]]


class Method(NamedTuple):
    """One method of a service: `handler(call, request)` for one message each way, else
    `handler(call)`.
    """

    handler: Handler
    request: Any
    streaming: bool
    public: bool


class CallHead(NamedTuple):
    """The headers of a call."""

    method: Method | None
    path: str
    timeout: float | None
    encoding: str
    metadata: Headers
    refusal: int


def read_head(headers: Headers, methods: dict[str, Method]) -> CallHead:
    """What the headers ask for; `refusal` is the HTTP status for what is no gRPC. Raises
    `Malformed`.
    """
    if (
        not headers.get(b":method")
        or not headers.get(b":path")
        or b":scheme" not in headers
    ):
        raise Malformed("a request has a method, a scheme and a path")
    path = headers[b":path"].decode("latin-1")
    return CallHead(
        methods.get(path),
        path,
        _seconds(headers.get(b"grpc-timeout", b"")),
        headers.get(b"grpc-encoding", b"identity").decode("latin-1"),
        headers,
        _http_refusal(headers),
    )


def _http_refusal(headers: Headers) -> int:
    """The HTTP status of what is no gRPC, else 0."""
    if headers[b":method"] != b"POST":
        return 405
    kind = headers.get(b"content-type", b"")
    return 0 if kind.startswith(b"application/grpc") else 415


def _seconds(timeout: bytes) -> float | None:
    if not timeout:
        return None
    found = re.fullmatch(r"([0-9]{1,8})([HMSmun])", timeout.decode("latin-1"))
    if found is None:
        raise Malformed("grpc-timeout is a number and its unit")
    seconds = int(found[1]) * UNITS[found[2]]
    return seconds if seconds < LONGEST else None


def _check_prefix(flag: int, size: int, limit: int) -> None:
    """Raises `InvalidInput`, `TooLarge` for a message that is not taken."""
    if flag > 1:
        raise InvalidInput(f"a message begins with 0 or 1, not {flag}")
    if size > limit:
        raise TooLarge(
            f"the message has {size:,} bytes; at most {limit:,} are taken"
        )


def _unknown_encoding(encoding: str) -> MethodNotAllowed:
    return MethodNotAllowed(
        f"the encoding {encoding[:40]!r} is not known; gzip and deflate are"
    )


def _status(error: MillError) -> bytes:
    """The trailers of a call that ends with an error."""
    block = literal(b"grpc-status", str(STATUS.get(error.code, 13)).encode())
    words = error.message.encode("utf-8", "replace").decode()[
        :MESSAGE_CHARACTERS
    ]
    block += literal(b"grpc-message", quote(words, safe=_printable).encode())
    if error.retry_after is not None:
        milliseconds = round(error.retry_after * 1000)
        block += literal(b"grpc-retry-pushback-ms", str(milliseconds).encode())
    if error.code == "method_not_allowed":
        block += _ACCEPTED
    return block


def _span(tracing: Tracing, head: CallHead) -> Span:
    """A span that is named by the method."""
    metadata = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in head.metadata.items()
    }
    service, _, name = head.path[1:].partition("/")
    attributes = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": name,
    }
    return tracing.start(head.path[1:], metadata, attributes)


class GrpcCall(Http2Stream):
    """A call from its headers to its status."""

    __slots__ = (
        "_buffer",
        "_complete",
        "_extra",
        "_headed",
        "_held",
        "_messages",
        "_owed",
        "_task",
        "_timer",
        "_waiter",
        "caller",
        "gateway",
        "head",
        "server",
        "since",
        "stopping",
    )

    def __init__(
        self, server: "GrpcServer", sender: Sender, number: int, head: CallHead
    ) -> None:
        super().__init__(sender, number)
        self.server, self.head = server, head
        self.gateway = server.gateway
        self.since = server.loop.time()
        self.caller: KeyInfo
        self.stopping = self._complete = self._headed = False
        self._buffer, self._extra = bytearray(), b""
        self._messages: deque[tuple[int, bytes]] | None = None
        self._held = self._owed = 0
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None

    # ---- what arrives

    def opened(self) -> None:
        """Check the key, then the method; a call that is refused costs nothing more."""
        head = self.head
        if head.refusal:
            self.sender.finish(
                self, literal(b":status", str(head.refusal).encode())
            )
            return
        try:
            method = head.method
            if method is None or not method.public:
                self.caller = self._authorised()
            if method is None:
                raise MethodNotAllowed(f"there is no method {head.path[:200]}")
            if head.encoding not in ENCODINGS and head.encoding != "identity":
                raise _unknown_encoding(head.encoding)
        except MillError as error:
            self.refuse(error)
            return
        if head.timeout is not None:
            self._timer = self.server.loop.call_later(
                head.timeout, self._expire
            )
        if method.streaming:
            self._messages = deque()
            self._task = self.server.loop.create_task(
                self._run(self._converse, method)
            )

    def _authorised(self) -> KeyInfo:
        """Who is calling; raises `Unauthenticated`, `InvalidInput` for several keys."""
        gateway = self.gateway
        header = self.head.metadata.get(b"authorization", b"")
        caller = gateway.known(header)
        return self._newcomer(header) if caller is None else caller

    def _newcomer(self, header: bytes) -> KeyInfo:
        """Who sends this header for the first time."""
        refuse_other_sites(self.head.metadata)
        if (
            count := header.count(b",") + 1
        ) > 1:  # entries of one name are joined
            raise InvalidInput(
                f"a call has one authorization entry; this one has {count}"
            )
        caller = self.gateway.authorise(key_of(self.head.metadata))
        self.gateway.remember(header, caller)
        return caller

    def data(self, payload: bytes, ended: bool) -> None:
        """A part of the messages."""
        if ended and self._messages is None and len(payload) >= 5:
            flag, size = _prefix.unpack_from(payload)
            if (
                size == len(payload) - 5
                and size <= self.server.limit
                and flag < 2
            ):
                self._start(flag, payload[5:])
                return
        try:
            self._gather(payload, ended)
        except MillError as error:
            self.refuse(error)

    def _gather(self, payload: bytes, ended: bool) -> None:
        """Messages that come in parts, or several at once; raises `TooLarge`, `InvalidInput`,
        `Overloaded`.
        """
        if self._messages is None:
            self._messages = deque()
        buffer, messages = self._buffer, self._messages
        self._hold(len(payload))
        buffer += payload
        self._cut(buffer, messages)
        self._owed += len(payload)
        self._credit()
        self._complete = ended
        if ended and buffer:
            raise InvalidInput(
                f"the call ended within a message, of which {len(buffer)} bytes came"
            )
        if self._waiter is not None:
            self._wake()
        elif self._task is None:
            self._start_with_one(messages, buffer, ended)

    def _start_with_one(
        self, messages: deque[tuple[int, bytes]], buffer: bytearray, ended: bool
    ) -> None:
        """Begin when the only message is whole; raises `InvalidInput` when there are others."""
        if (
            len(messages) > 1
            or (messages and buffer)
            or (ended and not messages)
        ):
            raise InvalidInput(f"{self.head.path} takes exactly one message")
        if ended:
            self._start(*messages.popleft())

    def _cut(
        self, buffer: bytearray, messages: deque[tuple[int, bytes]]
    ) -> None:
        """Move the whole messages at the head of the buffer; raises `TooLarge`, `InvalidInput`."""
        while len(buffer) >= 5:
            flag, size = _prefix.unpack_from(buffer)
            _check_prefix(flag, size, self.server.limit)
            if len(buffer) < 5 + size:
                return
            messages.append((flag, bytes(memoryview(buffer)[5 : 5 + size])))
            del buffer[: 5 + size]

    def _hold(self, size: int) -> None:
        """Account for bytes that wait to be whole; raises `Overloaded` when all calls together hold
        too many.
        """
        self.server.budget.hold(self._owner(), size)
        self._held += size

    def _owner(self) -> str:
        """Whose budget the messages count on; all calls without a key share one."""
        method = self.head.method
        return "" if method is None or method.public else self.caller.digest

    def _credit(self) -> None:
        """Let the client send on, unless what it sent waits to be read."""
        assert self._messages is not None
        if self._owed >= CREDIT_BYTES and len(self._messages) < BACKLOG:
            self.sender.grant(self, self._owed)
            self._owed = 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lost(self) -> None:
        """The client has gone or has cancelled: so is the work for it."""
        self._release()

    def overdue(self, before: float) -> bool:
        """Whether the only message of the call has been arriving since then."""
        return self._task is None and self.since < before

    def stop(self) -> None:
        """End a stream after the answers to what has arrived."""
        if self.head.method is not None and self.head.method.streaming:
            self.stopping = True
            self._wake()

    # ---- the work

    def remaining(self) -> float | None:
        """Seconds until the client's deadline."""
        if self.head.timeout is None:
            return None
        return max(
            0.001, self.since + self.head.timeout - self.server.loop.time()
        )

    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return not self.open

    def _start(self, flag: int, message: bytes) -> None:
        self._task = self.server.loop.create_task(
            self._run(self._answer, flag, message)
        )

    async def _run(self, work: Handler, *given: Any) -> None:
        """The work of the call, whatever becomes of it."""
        span = self._traced()
        try:
            await work(*given)
        except MillError as error:
            self.refuse(error)
        except Exception:
            log.exception("%s failed", self.head.path)
            self.refuse(MillError("the gateway failed; its log says why"))
        finally:
            if span is not None:
                span.end()

    def _traced(self) -> Span | None:
        """The span of the call, which its answer names."""
        tracing = self.gateway.tracing
        if tracing is None:
            return None
        span = _span(tracing, self.head)
        CURRENT.set(span)
        self._extra = b"".join(
            [
                literal(key.encode(), value.encode())
                for key, value in span.response_headers
            ]
        )
        return span

    async def _answer(self, flag: int, message: bytes) -> None:
        method = self.head.method
        assert method is not None
        request = await self._parsed(flag, message)
        response = await method.handler(self, request)
        if self.open:
            head, body = await self._packed(response.SerializeToString())
            if self.open:
                self.sender.reply(self, head, body, _FINE)
                self._release()

    async def _converse(self, method: Method) -> None:
        await method.handler(self)
        if self.stopping:
            raise Unavailable(
                "the server stops: open the stream again", retry_after=1
            )
        if self.open:
            self.sender.finish(
                self, _FINE if self._headed else _TYPE + self._extra + _FINE
            )
            self._release()

    async def read(self) -> Any | None:
        """The next message of a stream; None when there are no more, or the server stops."""
        assert self._messages is not None
        while not self._messages:
            if self._complete or self.stopping:
                return None
            self._waiter = self.server.loop.create_future()
            await self._waiter
        flag, message = self._messages.popleft()
        self.server.budget.release(self._owner(), len(message) + 5)
        self._held -= len(message) + 5
        self._credit()
        return await self._parsed(flag, message)

    async def write(self, response: Any) -> None:
        """Send a message of a stream, as soon as its client has room for it."""
        head, body = await self._packed(response.SerializeToString())
        if not self.open:
            return
        self.sender.send(self, b"" if self._headed else head, body)
        self._headed = True
        while self.queue and self.open:
            if self.drained is None or self.drained.done():
                self.drained = self.server.loop.create_future()
            await asyncio.shield(self.drained)

    def refuse(self, error: MillError) -> None:
        """End the call with an error; what is still being done for it is cancelled."""
        if not self.open:
            return
        block = b"" if self._headed else _TYPE + self._extra
        self.sender.finish(self, block + _status(error))
        self._release()

    def _expire(self) -> None:
        self.refuse(Expired("the deadline of the call has passed"))

    def _release(self) -> None:
        """Let go of everything but the stream."""
        if self._timer is not None:
            self._timer.cancel()
        if self._held:
            self.server.budget.release(self._owner(), self._held)
            self._held = 0
        self._buffer, self._messages = bytearray(), deque()
        task = self._task
        if task is not None and task is not asyncio.current_task(
            self.server.loop
        ):
            task.cancel()

    # ---- messages

    async def _parsed(self, flag: int, message: bytes) -> Any:
        """A message as an object; raises `InvalidInput`, `TooLarge`."""
        if flag:
            message = await self._unpacked(message)
        assert self.head.method is not None
        try:
            return self.head.method.request.FromString(message)
        except DecodeError as error:
            raise InvalidInput(
                f"the message is not a {self.head.method.request.DESCRIPTOR.full_name}"
            ) from error

    async def _unpacked(self, message: bytes) -> bytes:
        """A compressed message as it was; raises `InvalidInput`, `TooLarge`."""
        encoding, limit = self.head.encoding, self.server.limit
        if encoding == "identity":
            raise InvalidInput(
                "a message is compressed, but grpc-encoding does not say how"
            )
        if len(message) <= SMALL:
            return unpack(message, encoding, limit)
        return await in_thread(unpack, message, encoding, limit)

    async def _packed(self, body: bytes) -> tuple[bytes, bytes]:
        """Headers, and a message with its prefix; compressed as the request was, if that is worth
        it.
        """
        head, encoding = _TYPE + self._extra, self.head.encoding
        if encoding == "identity" or len(body) < WORTH:
            return head, _prefix.pack(0, len(body)) + body
        pack = zlib.compress, body, 1, ENCODINGS[encoding]
        body = (
            pack[0](*pack[1:]) if len(body) <= BRISK else await in_thread(*pack)
        )
        return head + literal(
            b"grpc-encoding", encoding.encode()
        ), _prefix.pack(1, len(body)) + body
