"""One request and its response on a connection.

ASGI hands a body over by an event and a response back in two messages, each a write of its own.
Here a body that is already whole can be taken at once, and a response leaves in one write: the
functions for both are in the scope.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from modelmill.wire.http1.fast_path import Answer, KnownHeads
from modelmill.wire.http1.response import response_head
from modelmill.wire.http1.scope import LEARN, RESPOND, TAKE


def declared_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The Content-Length of a request; None where it has none."""
    return next(
        (int(value) for name, value in headers if name == b"content-length"),
        None,
    )


class Cycle(RequestResponseCycle):
    """A request; `take` and `respond` go past ASGI's messages."""

    def __init__(self, scope: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(scope, *arguments, **options)
        self.head = b""
        self.heads: KnownHeads | None = None
        scope[TAKE], scope[RESPOND], scope[LEARN] = (
            self.take,
            self.respond,
            self.learn,
        )

    def learn(self, answer: Answer) -> None:
        """Answer the next requests with the same head in this way, when this one's was whole and
        plain.
        """
        if not self.head or self.heads is None or not self._is_plain():
            return
        length = declared_length(self.scope["headers"])
        if length is not None:
            self.heads.learn(self.head, length, answer)

    def _is_plain(self) -> bool:
        """Whether nothing but the body follows the head, and another request may come."""
        if not self.keep_alive or self.scope["http_version"] != "1.1":
            return False
        return not any(name == b"expect" for name, _ in self.scope["headers"])

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
        """Send a whole response of a content type, without its body for a request of its `head`.

        False when it has to go through `send`, because the client is slow to take what was sent
        before.
        """
        if self.response_started or self.flow.write_paused:
            return False
        self.response_started = self.response_complete = True
        if not self.disconnected:
            parts = response_head(
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
