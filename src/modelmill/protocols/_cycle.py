"""One request and its answer on a connection, with a short way beside ASGI's messages.

ASGI hands a body over by an event and an answer back in two messages, each a write of its own. Here a body that is
already whole can be taken at once, and an answer leaves in one write: both are found in the scope.
"""

from collections.abc import Callable, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

TAKE, RESPOND = "modelmill.take", "modelmill.respond"

Take = Callable[[], bytes | None]
Respond = Callable[[int, bytes, Sequence[tuple[bytes, bytes]], bytes, bool], bool]


class Cycle(RequestResponseCycle):
    """A request; `take` and `respond` are the short way."""

    def __init__(self, scope: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(scope, *arguments, **options)
        scope[TAKE], scope[RESPOND] = self.take, self.respond

    def take(self) -> bytes | None:
        """The body when all of it is here, else None: then `receive` waits for it."""
        if self.more_body or self.disconnected or self.waiting_for_100_continue:
            return None
        body, self.body = bytes(self.body), bytearray()
        return body

    def respond(
        self, status: int, kind: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes, head: bool
    ) -> bool:
        """Send a whole answer of a content type, without its body when only the `head` was asked for.

        False when it has to go through `send`, because the client is slow to take what was sent before.
        """
        if self.response_started or self.flow.write_paused:
            return False
        self.response_started = self.response_complete = True
        if not self.disconnected:
            parts = [STATUS_LINE[status]]
            for name, value in (*self.default_headers, *headers):
                parts += (name, b": ", value, b"\r\n")
            parts += (b"content-type: ", kind, b"\r\ncontent-length: ", b"%d" % len(body), b"\r\n")
            parts.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
            if not head:
                parts.append(body)
            self.transport.write(b"".join(parts))
            if not self.keep_alive:
                self.transport.close()
        self.message_event.set()
        self.on_response()
        return True
