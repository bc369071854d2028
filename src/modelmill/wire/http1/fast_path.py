"""The fast path: a request whose head is known is answered without parsing and without a task
(docs/decisions/0009).

The application teaches a connection how to answer further requests with the head of one that it has
answered: `KnownHeads` keeps that, and a `FastCycle` stands for the request meanwhile.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from modelmill.wire.http1.response import response_head

Answer = Callable[[bytes, Callable[[], bool], Callable[[Any], None]], bool]
"""Answers a body by a callback, as the application taught it. False: the request has to be parsed
and given to the application.
"""


class KnownHeads:
    """Whole heads of requests, byte for byte, and how requests with them are answered: method,
    path, key and lengths are the same, so that nothing is parsed.
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
        """Parse the next request with this head again."""
        self._known.pop(head, None)


class Never:
    """An event that nobody waits for."""

    def set(self) -> None:
        """Nothing happens."""


class FastCycle:
    """A request that is answered without parsing; its connection treats it as any other cycle."""

    response_started = waiting_for_100_continue = False
    more_body = False
    body = b""
    message_event = Never()
    scope: ClassVar[dict[str, str]] = {"http_version": "1.1"}

    __slots__ = (
        "_connection",
        "disconnected",
        "keep_alive",
        "response_complete",
    )

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
            parts = response_head(
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
