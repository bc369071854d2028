"""One request and its answer on a connection, with a short way beside ASGI's messages.

ASGI hands a body over by an event and an answer back in two messages, each a write of its own. Here
a body that is already whole can be taken at once, and an answer leaves in one write: both are found
in the scope.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

TAKE = "modelmill.take"
RESPOND = "modelmill.respond"
LEARN = "modelmill.learn"


Answer = Callable[[bytes, Callable[[], bool], Callable[[Any], None]], bool]
"""Answer a body by a callback, as the application taught it; False: ask the application again."""


class Heads:
    """Whole heads of requests whose like need no parsing and no task: method, path, key and lengths
    are the same.
    """

    LENGTH, COUNT = 2048, 2048

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, Answer]] = {}
        self.get = self._known.get

    def learn(self, head: bytes, length: int, answer: Answer) -> None:
        """Remember how requests with this head and a body of this length are answered."""
        if len(self._known) >= self.COUNT:
            self._known.clear()
        self._known[head] = (length, answer)

    def forget(self, head: bytes) -> None:
        """The application has to look at such requests again."""
        self._known.pop(head, None)


class Never:
    """An event that nobody waits for."""

    def set(self) -> None:
        """Nothing happens."""


class Shortcut:
    """A request that is answered without parsing; for its connection it is a cycle like any
    other.
    """

    response_started = waiting_for_100_continue = False
    more_body = False
    body = b""
    message_event = Never()
    scope: ClassVar[dict[str, str]] = {"http_version": "1.1"}

    __slots__ = ("_connection", "disconnected", "keep_alive", "response_complete")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.disconnected = self.response_complete = False
        self.keep_alive = True

    def done(self, response: Any) -> None:
        """Write the response; the next request may come."""
        connection = self._connection
        self.response_complete = True
        if not self.disconnected and not connection.transport.is_closing():
            kind = response.content_type.encode()
            default = connection.server_state.default_headers
            parts = head_of(
                response.status,
                kind,
                (*default, *response.headers),
                len(response.body),
                self.keep_alive,
            )
            parts.append(response.body)
            connection.transport.write(b"".join(parts))
            if not self.keep_alive:
                connection.transport.close()
        connection.on_response_complete()


def head_of(
    status: int,
    kind: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    length: int,
    keep_alive: bool,
) -> list[bytes]:
    """Status line and headers of an answer, in parts."""
    parts = [STATUS_LINE[status]]
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    parts += (b"content-type: ", kind, b"\r\ncontent-length: ", b"%d" % length, b"\r\n")
    parts.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    return parts


class Cycle(RequestResponseCycle):
    """A request; `take` and `respond` are the short way."""

    def __init__(self, scope: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(scope, *arguments, **options)
        self.head = b""
        self.heads: Heads | None = None
        scope[TAKE], scope[RESPOND], scope[LEARN] = self.take, self.respond, self.learn

    def learn(self, answer: Answer) -> None:
        """Answer the next requests with the same head in this way, when this one's was whole and
        plain.
        """
        plain = self.keep_alive and self.scope["http_version"] == "1.1"
        if (
            self.head
            and self.heads is not None
            and plain
            and not any(n == b"expect" for n, _ in self.scope["headers"])
        ):
            length = next(
                (
                    int(value)
                    for name, value in self.scope["headers"]
                    if name == b"content-length"
                ),
                -1,
            )
            if length >= 0:
                self.heads.learn(self.head, length, answer)

    def take(self) -> bytes | None:
        """The body when all of it is here, else None: then `receive` waits for it."""
        if self.more_body or self.disconnected or self.waiting_for_100_continue:
            return None
        body, self.body = bytes(self.body), bytearray()
        return body

    def respond(
        self,
        status: int,
        kind: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        head: bool,
    ) -> bool:
        """Send a whole answer of a content type, without its body when only the `head` was asked
        for.

        False when it has to go through `send`, because the client is slow to take what was sent
        before.
        """
        if self.response_started or self.flow.write_paused:
            return False
        self.response_started = self.response_complete = True
        if not self.disconnected:
            parts = head_of(
                status,
                kind,
                (*self.default_headers, *headers),
                len(body),
                self.keep_alive,
            )
            if not head:
                parts.append(body)
            self.transport.write(b"".join(parts))
            if not self.keep_alive:
                self.transport.close()
        self.message_event.set()
        self.on_response()
        return True
