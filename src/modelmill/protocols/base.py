"""What the protocols share: requests, responses, endpoints, and the one table from error codes to
HTTP status.
"""

import asyncio
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
)
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from modelmill.errors import (
    Expired,
    InvalidInput,
    MethodNotAllowed,
    MillError,
    NotFound,
    TooLarge,
)
from modelmill.serve.gateway import Gateway
from modelmill.serve.wire import Answer, Tensor
from modelmill.types import KeyInfo, ServedVersion, StreamPart
from modelmill.wire.budget import BodyBudget
from modelmill.wire.encoding import unpacked_body
from modelmill.wire.http1.scope import GONE, LEARN, TAKE

T = TypeVar("T")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

STATUS = {
    "invalid_input": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "too_large": 413,
    "overloaded": 429,
    "cancelled": 499,
    "internal": 500,
    "model_failed": 500,
    "bundle_corrupt": 500,
    "not_installed": 501,
    "unavailable": 503,
    "timeout": 504,
    "storage_full": 507,
}
"""HTTP status of every error code."""

JSON = "application/json"
BOM = b"\xef\xbb\xbf"
"""Byte order mark that some programs write before a text in UTF-8."""
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
"""An escape of JSON; the group is a lone surrogate."""
MAX_ID = 128
VERSION = b"x-modelmill-version"
"""Header that pins a prediction to a version."""


class Response(NamedTuple):
    """What goes back."""

    body: bytes = b""
    status: int = 200
    content_type: str = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class StreamingResponse(NamedTuple):
    """What goes back piece by piece: each as soon as it is there. The pieces end early where the
    client leaves.
    """

    pieces: AsyncGenerator[bytes]
    content_type: str = "text/event-stream"
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = (
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    )


class Disconnected(Exception):
    """The client has gone before its request was complete."""


class SlowBody(Expired):
    """A body did not arrive in time."""


class UnknownPath(NotFound):
    """No endpoint has this path."""


class WrongMethod(MethodNotAllowed):
    """The path takes the methods `allowed`, but not this one."""

    def __init__(self, message: str, allowed: list[str]) -> None:
        super().__init__(message)
        self.allowed = allowed


class Request:
    """One HTTP request, read straight from ASGI, with all that a handler needs to answer it.

    `names` are the values of the names in the endpoint's path. `caller` is set where the endpoint
    needs a key, `version` by `pick`. `gone` tells whether the client has left, where the server can
    tell; `default` is the deployment that is meant where a protocol has no way to name one.
    """

    __slots__ = (
        "_budget",
        "_held",
        "_take",
        "caller",
        "default",
        "gateway",
        "given",
        "gone",
        "headers",
        "learn",
        "limit",
        "method",
        "names",
        "path",
        "protocol",
        "receive",
        "version",
    )

    caller: KeyInfo
    names: Mapping[str, str]
    protocol: "HttpProtocol"
    version: ServedVersion

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        gateway: Gateway,
        budget: BodyBudget,
        default: str = "",
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.given: list[tuple[bytes, bytes]] = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(self.given)
        self.gone: Callable[[], bool] | None = scope.get(GONE)
        self.default = default
        self.receive = receive
        self.gateway = gateway
        self.limit = gateway.limits.body_bytes
        self.learn: Callable[[Any], None] | None = scope.get(LEARN)
        self._take: Callable[[], bytes | None] | None = scope.get(TAKE)
        self._budget = budget
        self._held = 0

    @property
    def pinned(self) -> str | None:
        """The number of the version that the caller wants, by the path or `X-Modelmill-Version`."""
        return self.names.get("version") or self.header(VERSION) or None

    def pick(self, name: str) -> ServedVersion:
        """The version of a deployment that answers this request, drawn once; raises `NotFound`."""
        self.version = self.gateway.pick(self.caller, name, self.pinned)
        return self.version

    def pick_again(self) -> ServedVersion:
        """The picked version as it is after a wait: the main one where it has left. Nothing is
        drawn again. Raises `NotFound`.
        """
        self.version = self.gateway.renewed(
            self.caller, self.version, self.pinned
        )
        return self.version

    async def predict(
        self,
        *,
        data: bytes | None = None,
        kind: str = "",
        tensors: list[Tensor] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Answer:
        """One prediction by the picked version; raises what went wrong as a `MillError`. `kind` is
        that of `data`, where it is not the one that the version takes first.
        """
        return await self.gateway.predict(
            self.caller,
            self.version,
            self.protocol.NAME,
            data=data,
            kind=kind,
            tensors=tensors,
            parameters=parameters,
            gone=self.gone,
            request_id=self.id,
            pinned=self.pinned is not None,
        )

    def stream(
        self, data: bytes, parameters: Mapping[str, Any], kind: str = ""
    ) -> AsyncIterator[StreamPart]:
        """The tokens of an answer by the picked version, as they are written; raises as `predict`
        does.
        """
        return self.gateway.stream(
            self.caller,
            self.version,
            self.protocol.NAME,
            data=data,
            kind=kind,
            parameters=parameters,
            gone=self.gone,
            request_id=self.id,
        )

    def header(self, name: bytes) -> str:
        """A header's value (names in lower case), or an empty string."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def id(self) -> str:
        """The name that the caller gave this request (`X-Request-Id`), or an empty string."""
        given = self.header(b"x-request-id")
        return (
            given
            if len(given) <= MAX_ID and given.isascii() and given.isprintable()
            else ""
        )

    async def content(self) -> bytes:
        """The whole body without its Content-Encoding; raises as `body` does, `InvalidInput` for
        what can't be unpacked and `UnknownCoding`.
        """
        body = await self.body()
        coding = self.headers.get(b"content-encoding")
        if coding is None:
            return body
        return await unpacked_body(body, coding, self.limit)

    async def body(self) -> bytes:
        """The whole body; raises `TooLarge`, `Overloaded` and `SlowBody` while reading, and
        `Disconnected` when the client leaves.
        """
        if (
            self._take is not None
            and (whole := self._take()) is not None
            and len(whole) <= self.limit
        ):
            return whole
        return await self._received()

    async def _received(self) -> bytes:
        """The body of a request that has not come whole yet."""
        declared = self.header(b"content-length")
        if is_number(declared) and int(declared) > self.limit:
            raise TooLarge(
                f"the body has {int(declared):,} bytes; at most {self.limit:,} are taken"
            )
        patience = self.gateway.limits.timeout_seconds
        try:
            async with asyncio.timeout(patience):
                return await self._gathered()
        except TimeoutError as error:
            raise SlowBody(
                f"the body did not arrive within {patience:g} seconds"
            ) from error

    async def _gathered(self) -> bytes:
        """The parts of the body as they come, which are held within the budget of the process."""
        chunks: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self.limit:
                raise TooLarge(f"the body exceeds {self.limit:,} bytes")
            self._hold(len(chunk))
            chunks.append(chunk)
            more = message.get("more_body", False)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _hold(self, size: int) -> None:
        self._budget.hold(self.caller.digest, size)
        self._held += size

    def release(self) -> None:
        """The body is not needed any more."""
        if self._held:
            self._budget.release(self.caller.digest, self._held)
            self._held = 0


Handler = Callable[[Request], Awaitable[Response | StreamingResponse]]


Finish = Callable[[], Response]
Begin = Callable[
    [bytes, Callable[[], bool]], "tuple[asyncio.Future[Any], Finish] | None"
]
"""Start answering a body; the second argument tells whether the client has gone. Returns a future
and a function that builds the response when it is done, or None to fall back to the handler. Both
raise `MillError`.
"""
FastPath = Callable[[Request], "Begin | None"]
"""How further requests with the very head of this one are answered without a task; None: only by
the handler.
"""


class Endpoint:
    """A method and a path pattern; `{name}` stands for one segment, `{name:path}` for one or more.

    The path is matched as ASGI gives it, percent-decoded: an encoded `/` is one. `public` endpoints
    need no key.
    """

    def __init__(
        self,
        method: str,
        pattern: str,
        handler: Handler,
        *,
        public: bool = False,
        fast_path: FastPath | None = None,
    ) -> None:
        self.method = method
        self.handler = handler
        self.public = public
        self.fast_path = fast_path
        self.pattern = pattern.replace(":path}", "}")
        self.regex = _regex_of(pattern)

    def match(self, path: str) -> dict[str, str] | None:
        """The values of the pattern's names, or None."""
        match = self.regex.fullmatch(path)
        return match.groupdict() if match else None


def _regex_of(pattern: str) -> re.Pattern[str]:
    """A path pattern as a regular expression, with a group for each name."""
    whole = re.sub(r"\{(\w+):path\}", r"(?P<\1>.+)", pattern)
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", whole))


class HttpProtocol(Protocol):
    """A protocol spoken over HTTP. `NAME` is what its predictions are counted under.

    It may also have a `PREFIX`, such as `/v1`: errors at any path below it, also at one that does
    not exist, then have its shape.
    """

    NAME: str
    ROUTES: list[Endpoint]

    def error(self, error: MillError) -> bytes:
        """The body of an error in the protocol's own shape."""


def is_number(text: str) -> bool:
    """Whether a header is a whole number of a sane length."""
    return text.isascii() and text.isdecimal() and len(text) < 19


def read_json(body: bytes) -> Any:
    """A JSON document; raises `InvalidInput` saying where it is wrong."""
    try:
        return decoded(msgspec.json.decode, body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidInput("the JSON is nested too deeply") from error


def decoded(
    decode: Callable[[bytes | memoryview], T], body: bytes | memoryview
) -> T:
    """What `decode` reads in a JSON document, which may begin with a byte order mark and hold lone
    surrogates. Raises what `decode` raises for anything else.
    """
    try:
        return decode(body)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Only now: a large document is not to be searched and copied for nothing
        whole = bytes(body)
        if (repaired := mended(whole)) == whole:
            raise
        return decode(repaired)


def mended(body: bytes) -> bytes:
    """A JSON document without its byte order mark; lone surrogates become U+FFFD."""
    body = body.removeprefix(BOM)
    if b"\\ud" not in body and b"\\uD" not in body:
        return body
    return _ESCAPE.sub(lambda match: b"\\ufffd" if match[1] else match[0], body)


def is_object(body: bytes) -> bool:
    """Whether a body begins as a JSON object does."""
    return body.removeprefix(BOM).lstrip()[:1] == b"{"


def simple_error(error: MillError) -> bytes:
    """`{"error": "text"}`, as the Open Inference Protocol and Hugging Face have it."""
    return msgspec.json.encode({"error": error.message})
