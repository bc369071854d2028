"""The bare baseline: an ASGI app that reads a body and answers 40 bytes. Started by `bench.peers`,
with uvicorn.
"""

from collections.abc import Awaitable, Callable
from typing import Any

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"40"),
    ],
}
BODY = {"type": "http.response.body", "body": bytes(40)}


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """One request."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send(START)
    await send(BODY)
