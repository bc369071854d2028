"""What the protocols share of texts that grow: parts as they come, each once, and the first before anything is sent."""

from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from modelmill.types import Json


async def parts_of(stream: AsyncIterator[bytes]) -> AsyncIterator[Json]:
    """Parts of an answer, one for each token, then the whole one, which has no `at`.

    After a worker was lost another says the beginning again: that is left out.
    """
    last = 0
    async for data in stream:
        part = msgspec.json.decode(data)
        if "at" not in part:
            yield part
            return
        if part["number"] > last:
            last = part["number"]
            yield part


async def begun(events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The same events, of which the first is there, if any: what is wrong from the beginning is raised here."""
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
