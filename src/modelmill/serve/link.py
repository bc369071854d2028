"""The gateway's connection to one worker; holds the calls it was given until they are answered."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from modelmill.errors import Cancelled
from modelmill.serve.wire import HEAD, Answer, Batch, Call, frame, read_batch

if TYPE_CHECKING:
    from modelmill.serve.pool import Pool

DEPTH = 2
"""Batches in a worker's hands: it decodes the next while it runs the last."""
LONG_SECONDS = 0.25
"""A worker whose batches take longer gets one at a time: waiting for it in the queue is better than at its door."""


class Pending:
    """A call until it is answered."""

    __slots__ = (
        "abandoned", "arrived", "attempts", "call", "deadline", "future", "key", "priority", "request_id", "rows",
        "sent", "size",
    )  # fmt: skip

    def __init__(
        self, call: Call, key: str, priority: int, deadline: float, future: "asyncio.Future[Answer]", arrived: float
    ) -> None:
        self.call, self.key, self.priority, self.deadline, self.future = call, key, priority, deadline, future
        self.arrived, self.attempts, self.rows, self.size = arrived, 0, 1, 0
        self.sent = 0.0
        self.request_id = ""
        self.abandoned: Callable[[], bool] | None = None
        for tensor in call.tensors:
            self.size += len(tensor.data)
            if tensor.shape:
                self.rows = tensor.shape[0]
        if call.data is not None:
            self.size += len(call.data)

    def gone(self) -> bool:
        """Answered, cancelled, or its client has left: then whoever still waits is told."""
        if self.future.done():
            return True
        if self.abandoned is not None and self.abandoned():
            self.future.set_exception(Cancelled("the client has gone"))
            return True
        return False


class Link(asyncio.Protocol):
    """One worker as the pool sees it."""

    def __init__(self, pool: "Pool", path: str) -> None:
        self.pool, self.path = pool, path
        self.held: dict[int, Pending] = {}
        self.batches: deque[int] = deque()
        self.retired = False
        self.busy_since = 0.0
        self.seconds = 0.0
        self.suspect = False
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    @property
    def connected(self) -> bool:
        """Whether the worker is there."""
        return self._transport is not None

    @property
    def idle(self) -> bool:
        """Connected, wanted, and without a batch."""
        return self._transport is not None and not self.batches and not self.retired

    @property
    def open(self) -> bool:
        """Whether a batch more may be sent ahead of the last one's answers."""
        ahead = len(self.batches) < DEPTH and not self.suspect and self.seconds < LONG_SECONDS
        return self._transport is not None and not self.retired and ahead

    def send(self, batch: list[Pending], now: float) -> None:
        """Give the worker a batch."""
        assert self._transport is not None
        held = self.held
        for pending in batch:
            held[pending.call.id] = pending
            pending.sent = now
        if not self.batches:
            self.busy_since = now
        self.batches.append(len(batch))
        self.suspect = batch[0].attempts > 0
        self._transport.write(frame([pending.call for pending in batch]))

    def retire(self) -> None:
        """Let go of the worker as soon as it has answered what it holds."""
        self.retired = True
        if not self.batches:
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
        if not buffer and len(data) >= HEAD and int.from_bytes(data[:HEAD], "little") + HEAD == len(data):
            self._answered(read_batch(memoryview(data)[HEAD:]))  # the usual case: one whole frame
            return
        buffer += data
        while len(buffer) >= HEAD:
            end = HEAD + int.from_bytes(buffer[:HEAD], "little")
            if len(buffer) < end:
                return
            batch = read_batch(bytes(buffer[HEAD:end]))
            del buffer[:end]
            self._answered(batch)

    def _answered(self, batch: Batch) -> None:
        now = time.monotonic()
        self.batches.popleft()
        self.seconds = now - self.busy_since
        self.busy_since, self.suspect = now, False
        held = self.held
        for answer in batch.answers:
            pending = held.pop(answer.id, None)
            if pending is not None and not pending.future.done():
                pending.future.set_result(answer)
        self.pool.ran(batch)
        if self.retired and not self.batches:
            self.close()
        else:
            self.pool.pump()

    def connection_lost(self, error: Exception | None) -> None:
        """The worker has gone: the pool decides what becomes of its calls."""
        self._transport = None
        held, self.held = list(self.held.values()), {}
        self.batches.clear()
        self.pool.lost(self, held)
