"""Server-sent events of answers that are written token by token."""

from collections.abc import AsyncGenerator

import msgspec

from modelmill.types import Json


async def after_first(events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Wait for the first event, so that an early failure becomes an HTTP error and not a broken
    stream; then yield all events.
    """
    first = await anext(events, None)

    async def all_events() -> AsyncGenerator[bytes]:
        try:
            if first is not None:
                yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()

    return all_events()


def event(document: Json) -> bytes:
    """A server-sent event."""
    return b"data: " + msgspec.json.encode(document) + b"\n\n"
