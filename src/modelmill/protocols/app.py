"""The ASGI application: finds the endpoint, checks the key, calls its handler, answers errors in
its protocol's shape.

Deny by default: a path that no protocol declares public needs a key before anything else is looked
at.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import (
    AsyncGenerator,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from textwrap import shorten
from typing import Any, cast

import msgspec

from modelmill import plugins
from modelmill.control.kinds import kinds
from modelmill.errors import (
    Cancelled,
    MillError,
    Unauthenticated,
)
from modelmill.protocols.base import (
    STATUS,
    Begin,
    Disconnected,
    Endpoint,
    Finish,
    HttpProtocol,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    SlowBody,
    StreamingResponse,
    UnknownPath,
    WrongMethod,
    simple_error,
)
from modelmill.protocols.browser import (
    protected,
    protection,
    refuse_other_sites,
)
from modelmill.protocols.keys import admin_key_of, key_of, refuse_several_keys
from modelmill.serve.gateway import Gateway
from modelmill.serve.tracing import CURRENT, Span, Tracing
from modelmill.types import KeyInfo
from modelmill.wire.budget import BodyBudget, body_budget
from modelmill.wire.encoding import UnknownCoding
from modelmill.wire.http1.fast_path import Answer
from modelmill.wire.http1.scope import RESPOND

log = logging.getLogger("modelmill.gateway")

OTHER_STATUS = {UnknownCoding: 415, SlowBody: 408}
"""HTTP status of errors that have none of their code's."""
UPLOADS = ("/api/v1/datasets", "/api/v1/models")
ADMIN_BODY = 1 << 20
SHORT = 1 << 16
"""Bytes of a response up to which further requests with its head take the fast path."""
KNOWN_PATHS, KNOWN_PATH_BYTES = 4096, 256
"""Paths whose endpoint is remembered, and how long each may be."""
ADMIN = ("/api/", "/docs", "/openapi.json", "/redoc")
CHALLENGE = b'Bearer realm="modelmill"'
CHALLENGE_BROWSER = (
    b'Basic realm="modelmill: any user name, the key as password"'
)
"""What a caller without a key has to send; browsers prompt for a password."""
INDEX = re.compile(r"/api/v1/indexes(?:/[^/]+)?(/items|/search)?")
"""Paths of indexes: what is added and searched for is as large as any input."""


Match = tuple[Endpoint, HttpProtocol, dict[str, str]]
"""The endpoint of a path, its protocol, and the names in the path."""


def http_protocols() -> dict[str, HttpProtocol]:
    """Every protocol spoken over HTTP, by name."""
    modules = {
        name: plugins.load("protocols", name)
        for name in plugins.names("protocols")
    }
    return {
        name: cast(HttpProtocol, module)
        for name, module in modules.items()
        if hasattr(module, "ROUTES")
    }


class App:
    """All protocols and the admin API as one ASGI application. `default` is the deployment of calls
    that can't name one; bodies are received within `budget`.
    """

    def __init__(
        self,
        gateway: Gateway,
        admin: Any,
        default: str = "",
        budget: BodyBudget | None = None,
    ) -> None:
        self.gateway = gateway
        self.budget = budget or body_budget(gateway.limits)
        self.admin = admin
        self.default = default
        self.protocols = http_protocols()
        self._endpoints = [
            (endpoint, p)
            for p in self.protocols.values()
            for endpoint in p.ROUTES
        ]
        self._known: OrderedDict[tuple[str, str], Match] = OrderedDict()
        self._uploads = _upload_paths()
        self._owners = _owners(self.protocols.values())

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            return await _lifespan(receive, send)
        if scope["type"] != "http":
            return None
        if scope["path"].startswith(ADMIN):
            return await self._administer(scope, receive, send)
        request = Request(
            scope, receive, self.gateway, self.budget, self.default
        )
        try:
            if self.gateway.tracing is None:
                response = await self._respond(request)
            else:
                response = await self._traced(request, self.gateway.tracing)
        finally:
            request.release()
        if isinstance(response, StreamingResponse):
            await _stream(send, response, request)
        elif response is not None:
            await _answer(scope, send, response, request.id)
        return None

    def _teach(self, endpoint: Endpoint, request: Request) -> None:
        """Let the connection answer requests with this head by itself, as long as the key is
        good.
        """
        assert endpoint.fast_path is not None
        assert request.learn is not None
        if self.gateway.tracing is not None:
            return
        begin = endpoint.fast_path(request)
        if begin is not None:
            request.learn(self._fast_path(begin, request))

    def _fast_path(self, begin: Begin, request: Request) -> Answer:
        """What answers further requests with the head of this one."""
        gateway, caller = self.gateway, request.caller
        header = request.headers.get(b"authorization", b"")
        # Not the request itself: it refers to its connection
        line, protocol = (request.method, request.path), request.protocol

        def answer(
            body: bytes,
            gone: Callable[[], bool],
            done: Callable[[Response], None],
        ) -> bool:
            if gateway.known(header) is not caller:
                return False
            try:
                started = begin(body, gone)
            except Exception as error:
                done(self._failed(error, line, protocol))
                return True
            if started is None:
                return False
            future, finish = started
            future.add_done_callback(
                lambda _: done(self._finished(finish, line, protocol))
            )
            return True

        return answer

    def _finished(
        self, finish: Finish, line: tuple[str, str], protocol: HttpProtocol
    ) -> Response:
        try:
            return finish()
        except Exception as error:
            return self._failed(error, line, protocol)

    def _failed(
        self,
        error: Exception,
        line: tuple[str, str],
        protocol: HttpProtocol | None,
    ) -> Response:
        """The response of a failure of a request (method and path), in its protocol's shape."""
        protocol = protocol or self._owner(line[1])[1]
        if isinstance(error, MillError):
            return _refusal(error, protocol)
        log.error("%s %r failed", *line, exc_info=error)
        return _refusal(
            MillError("the gateway failed; its log says why"), protocol
        )

    async def _traced(
        self, request: Request, tracing: Tracing
    ) -> Response | StreamingResponse | None:
        """The response, with a span around what makes it."""
        span = self._span(request, tracing)
        CURRENT.set(span)
        response: Response | StreamingResponse | None = None
        try:
            response = await self._respond(request)
            if response is None:
                return None
            span.set({"http.response.status_code": response.status})
            response = response._replace(
                headers=(*response.headers, *_span_headers(span))
            )
            if isinstance(response, StreamingResponse):
                return response._replace(
                    pieces=_with_span(response.pieces, span)
                )
            return response
        finally:
            if not isinstance(response, StreamingResponse):
                span.end()

    def _span(self, request: Request, tracing: Tracing) -> Span:
        """A span that is named by the method and the pattern of the path."""
        patterns = (
            endpoint.pattern for endpoint, _, _ in self._matches(request.path)
        )
        headers = {
            key.decode("latin-1"): value.decode("latin-1")
            for key, value in request.headers.items()
        }
        return tracing.start(
            f"{request.method} {next(patterns, '')}".rstrip(),
            headers,
            {"http.request.method": request.method, "url.path": request.path},
        )

    async def _respond(
        self, request: Request
    ) -> Response | StreamingResponse | None:
        """The response, errors in their protocol's shape; None when the client has gone."""
        protocol: HttpProtocol | None = None
        line = (request.method, request.path)
        try:
            if len(request.headers) < len(request.given):
                refuse_several_keys(request.given)
            known = self._known.get(line)
            endpoint, protocol, names = known or self._find(request)
            if not endpoint.public:
                request.caller = self._caller(request)
            if known is None:
                self._remember(line, (endpoint, protocol, names))
            else:
                self._known.move_to_end(line)
            request.names, request.protocol = names, protocol
            response = await endpoint.handler(request)
            if isinstance(response, StreamingResponse):
                return response
            # A long response is written by its task, which lets others have their turn
            short = response.status == 200 and len(response.body) <= SHORT
            if (
                endpoint.fast_path is not None
                and request.learn is not None
                and short
            ):
                self._teach(endpoint, request)
        except (Disconnected, Cancelled):
            return None
        except Exception as error:
            return self._failed(error, line, protocol)
        return response

    def _remember(self, line: tuple[str, str], match: Match) -> None:
        """Spare the next request for the same path the search; for callers with a key."""
        if len(line[1].encode("utf-8", "replace")) > KNOWN_PATH_BYTES:
            return
        if len(self._known) >= KNOWN_PATHS:
            self._known.popitem(last=False)
        self._known[line] = match

    def _caller(self, request: Request) -> KeyInfo:
        """Who is calling; raises `Unauthenticated`."""
        headers = request.headers
        refuse_other_sites(headers)
        header = headers.get(b"authorization", b"")
        caller = self.gateway.known(header)
        if caller is None:
            caller = self.gateway.authorise(key_of(headers))
            self.gateway.remember(header, caller)
        return caller

    def _find(self, request: Request) -> Match:
        """The endpoint; raises `UnknownPath` and `WrongMethod` to callers with a key alone."""
        method = "GET" if request.method == "HEAD" else request.method
        allowed: set[str] = set()
        for match in self._matches(request.path):
            if match[0].method == method:
                return match
            allowed.add(match[0].method)
        refuse_other_sites(request.headers)
        self.gateway.authorise(key_of(request.headers))
        raise self._not_found(request.path, sorted(allowed))

    def _matches(self, path: str) -> Iterator[Match]:
        """The endpoints of a path, of any method."""
        for endpoint, protocol in self._endpoints:
            names = endpoint.match(path)
            if names is not None:
                yield endpoint, protocol, names

    def _not_found(self, path: str, allowed: list[str]) -> MillError:
        """The error of a path that takes these methods only, or none."""
        if allowed:
            return WrongMethod(
                f"{path[:200]} takes {' or '.join(allowed)}", allowed
            )
        return UnknownPath(
            f"there is nothing at {path[:120]}; {self._hint(path)}"
        )

    def _owner(self, path: str) -> tuple[str, HttpProtocol | None]:
        """The longest prefix that a protocol owns of this path, and the protocol."""
        for prefix, protocol in self._owners:
            if path == prefix or path.startswith(f"{prefix}/"):
                return prefix, protocol
        return "", None

    def _hint(self, path: str) -> str:
        """The endpoints near a path that does not exist."""
        prefix, _ = self._owner(path)
        if not prefix:
            return "the admin API is described at /docs"
        near = sorted(
            f"{endpoint.method} {endpoint.pattern}"
            for endpoint, _ in self._endpoints
            if endpoint.pattern.startswith(prefix)
        )
        return f"below {prefix} there is: {shorten(', '.join(near), 200, placeholder=' ...')}"

    async def _administer(
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """One request of the admin API."""
        request = Request(scope, receive, self.gateway, self.budget)
        try:
            request.caller = self._admin_caller(request)
            body = await self._admin_body(request)
            scope["state"] = {
                **scope.get("state", {}),
                "caller": request.caller,
            }
        except Disconnected:
            return
        except MillError as error:
            await _answer(scope, send, _admin_refusal(error, request.path))
            return
        else:
            await self.admin(scope, body, protected(scope, send))
        finally:
            request.release()
        if not _only_reads(request):
            self.gateway.tell_of_change()

    def _admin_caller(self, request: Request) -> KeyInfo:
        """Who is calling; raises `Unauthenticated`, and `Forbidden` for what needs an admin key."""
        refuse_several_keys(request.given)
        refuse_other_sites(request.headers)
        caller = self.gateway.authorise(
            admin_key_of(request.headers, request.method)
        )
        index = INDEX.fullmatch(request.path)
        if not (_only_reads(request) and index and index[1] != "/items"):
            self.gateway.require_admin(caller)
        return caller

    async def _admin_body(self, request: Request) -> Receive:
        """The body within its limit; that of an upload is taken in pieces by its route."""
        if request.method == "POST" and request.path in self._uploads:
            return request.receive
        index = INDEX.fullmatch(request.path)
        if not (index and index[1]):
            request.limit = ADMIN_BODY
        return await _whole_body(request)


def _upload_paths() -> set[str]:
    """Paths whose bodies are as large as an upload may be."""
    jobs = {
        f"/api/v1/jobs/{name}" for name, kind in kinds().items() if kind.FILE
    }
    return {*UPLOADS, *jobs}


def _owners(
    protocols: Iterable[HttpProtocol],
) -> list[tuple[str, HttpProtocol]]:
    """The protocols that own all paths below a prefix, the longest prefix first."""
    prefixes = {
        getattr(protocol, "PREFIX", ""): protocol for protocol in protocols
    }
    prefixes.pop("", None)
    return sorted(prefixes.items(), key=lambda own: -len(own[0]))


def _only_reads(request: Request) -> bool:
    """Whether a request of the admin API changes nothing."""
    index = INDEX.fullmatch(request.path)
    searches = index is not None and index[1] == "/search"
    return searches or request.method in ("GET", "HEAD")


async def _whole_body(request: Request) -> Receive:
    """The body, read within its limits, as if it were received now."""
    body = await request.body()
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> dict[str, Any]:
        return parts.pop() if parts else await request.receive()

    return replay


def _refusal(
    error: MillError,
    protocol: HttpProtocol | None,
    challenge: bytes = CHALLENGE,
) -> Response:
    """The response of an error, in its protocol's shape."""
    body = protocol.error(error) if protocol else simple_error(error)
    status = OTHER_STATUS.get(type(error)) or STATUS.get(error.code, 500)
    return Response(
        body, status, headers=tuple(_error_headers(error, challenge))
    )


def _error_headers(
    error: MillError, challenge: bytes
) -> Iterator[tuple[bytes, bytes]]:
    """What the caller may do about it."""
    if isinstance(error, WrongMethod):
        verbs = (
            ["HEAD", *error.allowed]
            if "GET" in error.allowed
            else error.allowed
        )
        yield b"allow", ", ".join(sorted(verbs)).encode()
    if error.retry_after is not None:
        yield b"retry-after", str(max(1, round(error.retry_after))).encode()
    if isinstance(error, Unauthenticated):
        yield b"www-authenticate", challenge


def _admin_refusal(error: MillError, path: str) -> Response:
    """The response of an error of the admin API."""
    refusal = _refusal(error, None, CHALLENGE_BROWSER)
    return refusal._replace(
        body=msgspec.json.encode({"error": error.message, "code": error.code}),
        headers=(*refusal.headers, *protection(path)),
    )


async def _answer(
    scope: Scope, send: Send, response: Response, request_id: str = ""
) -> None:
    headers = response.headers
    kind = response.content_type.encode()
    head = scope["method"] == "HEAD"
    if request_id:  # clients show it beside an error
        headers = (*headers, (b"x-request-id", request_id.encode()))
    respond = scope.get(RESPOND)
    if respond is not None and respond(
        response.status, kind, headers, response.body, head
    ):
        return
    length = (b"content-length", str(len(response.body)).encode())
    start = [(b"content-type", kind), length, *headers]
    await _start(send, response.status, start)
    await send(
        {"type": "http.response.body", "body": b"" if head else response.body}
    )


async def _start(
    send: Send, status: int, headers: Sequence[tuple[bytes, bytes]]
) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": headers}
    )


async def _stream(
    send: Send, response: StreamingResponse, request: Request
) -> None:
    """Pieces as they come; when the client has gone nobody goes on making them."""
    headers = [
        (b"content-type", response.content_type.encode()),
        *response.headers,
    ]
    if request.id:
        headers.append((b"x-request-id", request.id.encode()))
    await _start(send, response.status, headers)
    try:
        await _send_pieces(send, response.pieces, request.gone)
    finally:
        await response.pieces.aclose()


async def _send_pieces(
    send: Send, pieces: AsyncGenerator[bytes], gone: Callable[[], bool] | None
) -> None:
    """The body of a response piece by piece, until the client has gone."""
    async for piece in pieces:
        if gone is not None and gone():
            return
        await send(
            {"type": "http.response.body", "body": piece, "more_body": True}
        )
    await send({"type": "http.response.body", "body": b""})


def _span_headers(span: Span) -> list[tuple[bytes, bytes]]:
    return [
        (key.encode(), value.encode()) for key, value in span.response_headers
    ]


async def _with_span(
    pieces: AsyncGenerator[bytes], span: Span
) -> AsyncGenerator[bytes]:
    """The same pieces; the span ends after them."""
    try:
        async for piece in pieces:
            yield piece
    finally:
        await pieces.aclose()
        span.end()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
