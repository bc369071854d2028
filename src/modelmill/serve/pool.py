"""One deployment in the gateway: a queue for all its replicas, and a link to each of them.

The gateway keeps a call until it is answered: when a worker is lost, its calls return to the head of the queue
and go to another one, once.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

from modelmill.errors import Expired, InvalidInput, MillError, ModelFailed, Overloaded, Unavailable, from_code
from modelmill.serve.batcher import BatchLimits, take
from modelmill.serve.wire import HEAD, Answer, Call, Tensor, frame, read_answers

log = logging.getLogger("modelmill.gateway")

ATTEMPTS = 2
_numbers = itertools.count(1)


def refuse_unsendable(call: Call) -> None:
    """Raises `InvalidInput` for parameters that JSON can say and MessagePack can't, before they join a batch."""
    try:
        frame([Call(call.id, None, [], call.parameters)])
    except (OverflowError, RecursionError) as error:
        raise InvalidInput(f"parameters hold what can't be passed on: {error}") from error


class Pending:
    """A call until it is answered."""

    __slots__ = ("arrived", "attempts", "call", "deadline", "future", "size")

    def __init__(self, call: Call, deadline: float, future: "asyncio.Future[Answer]") -> None:
        self.call, self.deadline, self.future = call, deadline, future
        self.size = len(call.data or b"") + sum(len(tensor.data) for tensor in call.tensors)
        self.attempts = 0
        self.arrived = time.monotonic()

    def gone(self) -> bool:
        """Answered, abandoned or cancelled."""
        return self.future.done()


class Link(asyncio.Protocol):
    """The connection to one worker; holds the calls it was given."""

    def __init__(self, pool: "Pool", path: str) -> None:
        self.pool, self.path = pool, path
        self.held: dict[int, Pending] = {}
        self.retired = False
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    @property
    def connected(self) -> bool:
        """Whether the worker is there."""
        return self._transport is not None

    @property
    def idle(self) -> bool:
        """Connected, wanted, and without a batch."""
        return self._transport is not None and not self.held and not self.retired

    def send(self, batch: list[Pending]) -> None:
        """Give the worker a batch."""
        assert self._transport is not None
        data = frame([pending.call for pending in batch])
        self.held = {pending.call.id: pending for pending in batch}
        self._transport.write(data)

    def retire(self) -> None:
        """Let go of the worker as soon as it has answered what it holds."""
        self.retired = True
        if not self.held:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The worker can take a batch."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own kind is no subclass
        self.pool.pump()

    def data_received(self, data: bytes) -> None:
        """Answers arrive in whole frames or parts of them."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= HEAD:
            end = HEAD + int.from_bytes(buffer[:HEAD], "little")
            if len(buffer) < end:
                return
            answers = read_answers(buffer[HEAD:end])
            del buffer[:end]
            self._settle(answers)

    def _settle(self, answers: list[Answer]) -> None:
        for answer in answers:
            pending = self.held.pop(answer.id, None)
            if pending is not None and not pending.future.done():
                pending.future.set_result(answer)
        if self.retired and not self.held:
            self.close()
        self.pool.pump()

    def connection_lost(self, error: Exception | None) -> None:
        """The worker has gone; what it held goes to another."""
        self._transport = None
        held, self.held = list(self.held.values()), {}
        self.pool.lost(self, held)


class Pool:
    """The queue of one deployment and the links to its ready workers."""

    def __init__(self, deployment: str, batch: BatchLimits, queue_limit: int, waited: Callable[[float], None]) -> None:
        self.deployment, self._waited = deployment, waited
        self._batch, self._queue_limit = batch, queue_limit
        self._queue: deque[Pending] = deque()
        self._links: dict[str, Link] = {}
        self._connecting: dict[str, asyncio.Task[None]] = {}

    @property
    def connected(self) -> int:
        """How many workers can be reached right now."""
        return sum(link.connected and not link.retired for link in self._links.values())

    @property
    def pending(self) -> int:
        """Calls that wait or are being answered."""
        return sum(not waiting.gone() for waiting in self._queue) + sum(len(link.held) for link in self._links.values())

    def follow(self, sockets: Iterable[str]) -> None:
        """Connect to workers that are new and let go of those that are no longer wanted."""
        wanted = set(sockets)
        for path in wanted - self._links.keys() - self._connecting.keys():
            self._connecting[path] = asyncio.ensure_future(self._connect(path))
        for path in self._links.keys() - wanted:
            self._links[path].retire()

    async def submit(
        self, data: bytes | None, tensors: list[Tensor], parameters: Mapping[str, Any], timeout: float
    ) -> Answer:
        """Queue a call and wait for its answer; raises `Overloaded`, `Expired` or what the worker said."""
        if len(self._queue) >= self._queue_limit:
            self._queue = deque(waiting for waiting in self._queue if not waiting.gone())
        if len(self._queue) >= self._queue_limit:
            message = f"{len(self._queue)} calls already wait for '{self.deployment}'"
            raise Overloaded(message, retry_after=1)
        loop = asyncio.get_running_loop()
        call = Call(next(_numbers), data, tensors, dict(parameters))
        if parameters:
            refuse_unsendable(call)
        pending = Pending(call, time.monotonic() + timeout, loop.create_future())
        self._queue.append(pending)
        self.pump()
        timer = loop.call_later(timeout, self._expire, pending)
        try:
            answer = await pending.future
        finally:
            timer.cancel()
            pending.future.cancel()  # the caller may have gone: then what was not sent is dropped
        if answer.code:
            raise from_code(answer.code, answer.message)
        return answer

    def pump(self) -> None:
        """Give every idle worker a batch while calls wait."""
        for link in self._links.values():
            if not self._queue:
                return
            if link.idle:
                now = time.monotonic()
                batch, expired = take(self._queue, now, self._batch)
                for pending in expired:
                    self._expire(pending)
                if batch:
                    for pending in batch:
                        self._waited(now - pending.arrived)
                    link.send(batch)

    def lost(self, link: Link, held: list[Pending]) -> None:
        """A worker has gone with calls in its hands."""
        if self._links.get(link.path) is link:
            del self._links[link.path]
        for pending in reversed(held):
            pending.attempts += 1
            if pending.gone():
                continue
            if pending.attempts < ATTEMPTS:
                self._queue.appendleft(pending)
            else:
                log.error("call %d ended %d workers of %s", pending.call.id, ATTEMPTS, self.deployment)
                self._fail(pending, ModelFailed("the model's process ended twice on this input"))
        if held:
            log.warning("a worker of %s was lost with %d calls", self.deployment, len(held))
        self.pump()

    def close(self) -> None:
        """Refuse what waits, let the workers finish what they hold, and disconnect."""
        for task in list(self._connecting.values()):
            task.cancel()
        while self._queue:
            self._fail(self._queue.popleft(), Unavailable(f"'{self.deployment}' was undeployed"))
        for link in list(self._links.values()):
            link.retire()

    async def _connect(self, path: str) -> None:
        try:
            link = Link(self, path)
            self._links[path] = link
            await asyncio.get_running_loop().create_unix_connection(lambda: link, path)
        except OSError as error:
            log.warning("no connection to %s: %s", path, error)
            self._links.pop(path, None)
        finally:
            self._connecting.pop(path, None)

    def _expire(self, pending: Pending) -> None:
        self._fail(pending, Expired(f"'{self.deployment}' did not answer in the time allowed"))

    @staticmethod
    def _fail(pending: Pending, error: MillError) -> None:
        with suppress(asyncio.InvalidStateError):
            pending.future.set_exception(error)
