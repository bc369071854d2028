"""The gateway's connection to one worker; holds the calls it was given until they are answered."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import msgspec

from modelmill.errors import Cancelled
from modelmill.serve.wire import (
    CANCEL,
    HEAD,
    Answer,
    Batch,
    Call,
    Part,
    frame,
    read_batch,
)
from modelmill.types import StreamPart

if TYPE_CHECKING:
    from modelmill.serve.pool import Pool

log = logging.getLogger("modelmill.gateway")

ATTEMPTS = 2
"""Times that a call is given to a worker before it is blamed for ending workers. One that writes
texts gets one more, alone on a worker.
"""
DEPTH = 2
"""Batches in a worker's hands: it decodes the next while it runs the last."""
LONG_SECONDS = 0.25
"""A worker whose batches take longer gets one at a time: waiting for it in the queue is better than
at its door.
"""


class Pending(msgspec.Struct, eq=False):
    """A call until it is answered."""

    call: Call
    key: str
    priority: int
    deadline: float
    future: "asyncio.Future[Answer]"
    arrived: float
    attempts: int = 0
    rows: int = 1
    size: int = 0
    sent: float = 0.0
    batch: "Sent | None" = None
    request_id: str = ""
    pin: str = ""
    version: str = ""
    abandoned: Callable[[], bool] | None = None
    on_part: Callable[[StreamPart], None] | None = None

    def __post_init__(self) -> None:
        call = self.call
        for tensor in call.tensors:
            self.size += len(tensor.data)
            if tensor.shape:
                self.rows = tensor.shape[0]
        if call.data is not None:
            self.size += len(call.data)

    def gone(self) -> bool:
        """Answered, cancelled, or its client has left: then whoever still waits gets an error."""
        if self.future.done():
            return True
        if self.abandoned is not None and self.abandoned():
            self.future.set_exception(Cancelled("the client has gone"))
            return True
        return False


class Sent:
    """A batch in a worker's hands: how many of its calls lack an answer, and since when the worker
    could run it.
    """

    __slots__ = ("left", "since")

    def __init__(self, calls: int, since: float) -> None:
        self.left, self.since = calls, since


class Link(asyncio.Protocol):
    """One worker as the pool sees it."""

    def __init__(
        self, pool: "Pool", path: str, version: str = "", slots: int = 0
    ) -> None:
        self.pool = pool
        self.path = path
        self.version = version
        self.slots = slots
        self.held: dict[int, Pending] = {}
        self.batches: list[Sent] = []
        self.retired = False
        self.hung = False
        self.seconds = 0.0
        self.suspect = False
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    @property
    def connected(self) -> bool:
        """Whether the worker is there."""
        return self._transport is not None

    @property
    def ended(self) -> bool:
        """Whether there is nobody to talk to, or soon nobody."""
        return self._transport is None or self._transport.is_closing()

    @property
    def idle(self) -> bool:
        """Connected, wanted, and without a batch; or with room, where answers grow beside one
        another.
        """
        if self.slots:
            return (
                len(self.batches) < self.slots
                and not self.suspect
                and not self.retired
                and not self.ended
            )
        return not self.batches and not self.retired and not self.ended

    @property
    def open(self) -> bool:
        """Whether a batch more may be sent ahead of the last one's answers."""
        if self.slots:
            return False
        ahead = (
            len(self.batches) < DEPTH
            and not self.suspect
            and self.seconds < LONG_SECONDS
        )
        return ahead and not self.retired and not self.ended

    def send(self, batch: list[Pending], now: float) -> None:
        """Give the worker a batch; raises what can't be encoded before anything is sent."""
        assert self._transport is not None
        data = frame([pending.call for pending in batch])
        sent, held = Sent(len(batch), now), self.held
        for pending in batch:
            held[pending.call.id] = pending
            pending.sent, pending.batch = now, sent
            if self.slots:
                pending.future.add_done_callback(partial(self._let_go, pending))
        self.batches.append(sent)
        self.suspect = batch[0].attempts >= (ATTEMPTS if self.slots else 1)
        self._transport.write(data)

    def _let_go(
        self, pending: Pending, future: "asyncio.Future[Answer]"
    ) -> None:
        """Tell the worker when nobody waits any more for an answer that still grows."""
        if not self.ended and pending.call.id in self.held:
            assert self._transport is not None
            self._transport.write(
                frame([Call(pending.call.id, None, [], {}, [CANCEL])])
            )

    def busy(self, now: float) -> float:
        """For how many seconds the worker has been at one batch."""
        return (
            now - min(sent.since for sent in self.batches)
            if self.batches
            else 0.0
        )

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
        # Uvloop's own kind is no subclass
        self._transport = cast(asyncio.Transport, transport)
        if self.retired:
            self.close()
        else:
            self.pool.pump()

    def data_received(self, data: bytes) -> None:
        """Answers arrive in whole frames or parts of them."""
        buffer = self._buffer
        if (
            not buffer
            and len(data) >= HEAD
            and int.from_bytes(data[:HEAD], "little") + HEAD == len(data)
        ):
            # The usual case: one whole frame
            self._answered(read_batch(memoryview(data)[HEAD:]))
            return
        buffer += data
        self._take(buffer)

    def _take(self, buffer: bytearray) -> None:
        """Handle the whole frames at the head of the buffer."""
        while len(buffer) >= HEAD:
            end = HEAD + int.from_bytes(buffer[:HEAD], "little")
            if len(buffer) < end:
                return
            batch = read_batch(bytes(buffer[HEAD:end]))
            del buffer[:end]
            self._answered(batch)

    def _streamed(self, parts: list[Part], now: float) -> None:
        """Pass on the parts of streams; also an empty list says that the worker is alive."""
        for sent in self.batches:
            sent.since = now
        for part in parts:
            pending = self.held.get(part.id)
            if (
                pending is not None
                and pending.on_part is not None
                and not pending.future.done()
            ):
                pending.on_part(part.part)

    def _answered(self, batch: Batch) -> None:
        now = time.monotonic()
        held = self.held
        if self.slots:
            self._streamed(batch.parts, now)
            if not batch.answers:
                return
        sent: Sent | None = None
        for answer in batch.answers:
            pending = held.pop(answer.id, None)
            if pending is None:
                continue
            if (sent := pending.batch) is not None:
                sent.left -= 1
            if not pending.future.done():
                pending.future.set_result(answer)
        if sent is None or sent.left or sent not in self.batches:
            log.error(
                "%s did not answer the calls it was given: it is treated as lost",
                self.path,
            )
            self.abort()
            return
        self._ended(sent, now)
        self.pool.ran(batch)
        if self.retired and not self.batches:
            self.close()
        else:
            self.pool.pump()

    def _ended(self, sent: Sent, now: float) -> None:
        """One batch is done: those sent after it could not be run before. Batches may overtake one
        another.
        """
        at = self.batches.index(sent)
        del self.batches[at]
        for later in self.batches[at:]:
            later.since = now
        self.seconds = now - sent.since
        self.suspect = False
        self.hung = False

    def abort(self) -> None:
        """Cut the connection: what the worker holds goes to another one."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The worker has gone: the pool decides what becomes of its calls."""
        self._transport = None
        held, self.held = list(self.held.values()), {}
        self.batches.clear()
        self.pool.lost(self, held)
