"""What the protocols share of texts that grow: the first part is there before anything is sent."""

from collections.abc import AsyncGenerator

import msgspec

from modelmill.types import Json


async def begun(events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The same events, of which the first is there, if any: what is wrong from the beginning is
    raised here.
    """
    first = await anext(events, None)

    async def all_of_them() -> AsyncGenerator[bytes]:
        try:
            if first is not None:
                yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()

    return all_of_them()


def event(document: Json) -> bytes:
    """A server-sent event."""
    return b"data: " + msgspec.json.encode(document) + b"\n\n"
