"""Server-sent events of texts as they are written, several beside one another."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from modelmill.errors import MillError
from modelmill.protocols.base import Request
from modelmill.protocols.openai.completion_request import Completion
from modelmill.protocols.openai.errors import error
from modelmill.protocols.openai.shapes import (
    part_event,
    role_event,
    usage_event,
    usage_of,
)
from modelmill.tasks.kinds import Sent
from modelmill.types import Json, StreamPart

DONE = b"data: [DONE]\n\n"


class Arrived(NamedTuple):
    """A part of an answer by the answer's number, what it failed with, or None behind its last."""

    number: int
    part: StreamPart | MillError | None


Parts = asyncio.Queue[Arrived]


async def events(
    request: Request, completion: Completion
) -> AsyncGenerator[bytes]:
    """Server-sent events of all answers, as they are written; a failure in between is an event."""
    story = Story(completion)
    async with _parts(request, completion) as parts:
        left = len(completion.calls)
        while left:
            arrived = await parts.get()
            left -= not isinstance(arrived.part, StreamPart)
            for one in story.events(arrived):
                yield one
    if completion.usage:
        yield usage_event(completion, story.usages)
    yield DONE


class Story:
    """What was sent of the answers to a request, and what they used."""

    def __init__(self, completion: Completion) -> None:
        self.usages = dict[int, Json]()
        self._completion = completion
        self._roles = set[int]()
        self._begun = False

    def events(self, arrived: Arrived) -> list[bytes]:
        """The events of what has arrived; raises a failure before which nothing was sent."""
        number, part = arrived
        if part is None:
            return []
        if isinstance(part, MillError):
            if not self._begun:
                raise part
            return [b"data: " + error(part) + b"\n\n"]
        self._begun = True
        if part.finish_reason:
            self.usages[number] = usage_of(part)
        return [*self._role(number), part_event(self._completion, number, part)]

    def _role(self, number: int) -> list[bytes]:
        """The event with which an answer of a chat begins, once."""
        if not self._completion.chat or number in self._roles:
            return []
        self._roles.add(number)
        return [role_event(self._completion, number)]


@asynccontextmanager
async def _parts(
    request: Request, completion: Completion
) -> AsyncIterator[Parts]:
    """A queue of the parts of all answers; when it is left, none goes on."""
    parts = Parts()
    tasks = [
        asyncio.create_task(_gather(request, number, *call, parts))
        for number, call in enumerate(completion.calls)
    ]
    try:
        yield parts
    finally:
        for task in tasks:
            task.cancel()


async def _gather(
    request: Request, number: int, prompt: Sent, parameters: Json, parts: Parts
) -> None:
    """Put the parts of an answer that show something into the queue, then its end."""
    try:
        async for part in request.stream(prompt.data, parameters, prompt.kind):
            if part.text or part.logprob is not None or part.finish_reason:
                parts.put_nowait(Arrived(number, part))
        parts.put_nowait(Arrived(number, None))
    except MillError as failure:
        parts.put_nowait(Arrived(number, failure))
