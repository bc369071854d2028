"""One deployment in the gateway: a queue for all its replicas, and a link to each of them.

The gateway keeps a call until it is answered: when a worker is lost, its calls return to the head
of the queue and go to another one, once.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from modelmill.errors import (
    Expired,
    InvalidInput,
    MillError,
    ModelFailed,
    NotFound,
    Overloaded,
    Unavailable,
)
from modelmill.serve.batcher import BatchLimits, Lanes, admit, take
from modelmill.serve.link import ATTEMPTS, Link, Pending
from modelmill.serve.meter import Series
from modelmill.serve.wire import Answer, Batch, Call, Tensor, frame
from modelmill.types import StreamPart

log = logging.getLogger("modelmill.gateway")

ALONE = 1
"""The extra attempt, alone on a worker, of a call that writes texts: with others beside it, it may
be innocent.
"""
PURGE_SECONDS = 0.05
"""Least time between two purges of abandoned calls from a full queue: refusing must be cheap."""
UNSENDABLE = (OverflowError, RecursionError, ValueError)
"""What encoding raises for numbers beyond 64 bits, endless nesting, and halves of surrogate
pairs.
"""
_numbers = itertools.count(1)


@dataclass(frozen=True)
class PoolLimits:
    """What may wait (calls and bytes), and for how many seconds a worker may be busy with one
    batch.
    """

    queue: int = 2048
    queue_bytes: int = 1 << 30
    hang_seconds: float = 30.0


class Ask(NamedTuple):
    """What the callers of a pool may say beside the input; `kind` is of which kind that is, where
    it is not the one that the task takes first.
    """

    key: str = ""
    priority: int = 0
    timeout: float = 60.0
    outputs: tuple[str, ...] = ()
    gone: Callable[[], bool] | None = None
    request_id: str = ""
    pin: str = ""
    on_part: Callable[[StreamPart], None] | None = None
    kind: str = ""


class Pool:
    """The queue and the workers of one version of a deployment.

    `on_hang` is called with the socket of a worker that does not answer, again and again;
    `on_idle_call` when a call comes while there is no worker.
    """

    def __init__(
        self,
        deployment: str,
        batch: BatchLimits,
        limits: PoolLimits,
        series: Series,
        *,
        on_hang: Callable[[str], None] = lambda path: None,
        on_idle_call: Callable[[], None] = lambda: None,
    ) -> None:
        self.deployment = deployment
        self.batch = batch
        self.limits = limits
        self.series = series
        self.on_hang = on_hang
        self.on_idle_call = on_idle_call
        self.last_call = time.monotonic()
        self.shadow = False
        self.slots = 0
        self._lanes: Lanes[Pending] = Lanes()
        self._links: dict[str, Link] = {}
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._sweep_at = self._purged = 0.0
        self._sweep: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._leaving: set[str] = set()
        self._pumping = self._closed = False
        self._heir: Pool | None = None

    @property
    def connected(self) -> int:
        """How many workers can be reached right now."""
        return sum(
            link.connected and path not in self._leaving
            for path, link in self._links.items()
        )

    @property
    def busy(self) -> int:
        """How many workers hold a batch."""
        return sum(bool(link.batches) for link in self._links.values())

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return sum(not pending.gone() for pending in self._lanes)

    @property
    def pending(self) -> int:
        """Calls that wait or are being answered."""
        return self.waiting + sum(
            len(link.held) for link in self._links.values()
        )

    def oldest(self, now: float) -> float:
        """How many seconds the call at the head of the queue has waited."""
        return max(
            (
                now - pending.arrived
                for pending in self._lanes
                if not pending.gone()
            ),
            default=0.0,
        )

    def follow(self, sockets: Iterable[str], version: str = "") -> None:
        """Connect to workers that are new, all of one version, and let go of those that are no
        longer wanted.
        """
        wanted = set(sockets)
        for path in wanted - self._links.keys() - self._connecting.keys():
            self._connecting[path] = asyncio.ensure_future(
                self._connect(path, version)
            )
        self._leaving = {path for path in self._links if path not in wanted}
        self._let_go()

    def submit(
        self,
        data: bytes | None,
        tensors: list[Tensor],
        parameters: Mapping[str, Any],
        ask: Ask,
    ) -> Pending:
        """Queue a call; its future gives the answer, or raises `Expired`, `ModelFailed`,
        `Unavailable`.

        Raises `Overloaded` when too much waits, `InvalidInput` for parameters that can't be passed
        on.
        """
        if self._closed:
            raise Unavailable(f"'{self.deployment}' was undeployed")
        now = time.monotonic()
        call = Call(
            next(_numbers),
            data,
            tensors,
            dict(parameters) if parameters else {},
            list(ask.outputs),
            ask.kind,
        )
        weight = bytes_of_parameters(call) if parameters else 0
        future: asyncio.Future[Answer] = (
            asyncio.get_running_loop().create_future()
        )
        pending = Pending(
            call, ask.key, ask.priority, now + ask.timeout, future, now
        )
        pending.abandoned = ask.gone
        pending.request_id = ask.request_id
        pending.pin = ask.pin
        pending.on_part = ask.on_part
        pending.size += weight
        self._admit(pending)
        self._lanes.add(pending)
        self.last_call = now
        if not self._links:
            self.on_idle_call()
        if pending.deadline < self._sweep_at or self._sweep is None:
            self._sweep_by(pending.deadline)
        if not self._pumping:
            # Not at once: calls that arrived in the same turn of the loop share a batch, and a lone
            # one loses nothing.
            self._pumping = True
            asyncio.get_running_loop().call_soon(self.pump)
        return pending

    def pump(self) -> None:
        """Give workers batches while calls wait: the idle ones first, then ahead of their last
        batch.
        """
        self._pumping = False
        lanes = self._lanes
        if self._heir is not None:
            self._hand_over()
        while lanes.count:
            link = self._free()
            if link is None:
                break
            now = time.monotonic()
            batch, expired, wait = take(lanes, now, self.batch, idle=link.idle)
            for pending in expired:
                self._expire(pending)
            if wait:
                self._pump_in(wait)
                break
            if not batch:
                if not expired:
                    break
                continue
            observe = self.series.queue.observe
            for pending in batch:
                observe(now - pending.arrived)
                pending.version = link.version
                if pending.pin and pending.pin != link.version:
                    self._refuse_pinned(pending)
            self._send(
                link,
                [pending for pending in batch if not pending.future.done()],
                now,
            )
        if self._leaving:
            self._let_go()
        if (
            self._closed
            and lanes.count
            and not any(link.connected for link in self._links.values())
        ):
            self._hand_over()

    def _refuse_pinned(self, pending: Pending) -> None:
        """A call that waited for a version that has left."""
        gone = NotFound(f"'{self.deployment}' no longer serves {pending.pin}")
        self._fail(pending, gone)

    def _send(self, link: Link, batch: list[Pending], now: float) -> None:
        if not batch:
            return
        try:
            link.send(batch, now)
        except UNSENDABLE as error:
            self._take_apart(batch, error)

    def _take_apart(self, batch: list[Pending], error: Exception) -> None:
        """Refuse the calls of a batch that can't be sent, and queue the others again."""
        guilty = [
            pending for pending in batch if _unsendable(pending.call)
        ] or batch
        for pending in guilty:
            self._fail(
                pending, InvalidInput(f"the input can't be passed on: {error}")
            )
        for pending in reversed(batch):
            if not pending.future.done():
                self._lanes.put_back(pending)

    def _let_go(self) -> None:
        """Retire the workers that are no longer wanted; while nobody else is there they answer what
        waits first.
        """
        if not self._lanes.count or self.connected:
            for path in self._leaving & self._links.keys():
                self._links[path].retire()

    def ran(self, batch: Batch) -> None:
        """A worker has answered: count what it cost."""
        self.series.ran(
            len(batch.answers),
            batch.rows,
            batch.decode_seconds,
            batch.run_seconds,
            batch.encode_seconds,
        )

    def lost(self, link: Link, held: list[Pending]) -> None:
        """A worker has gone with calls in its hands."""
        self._forget(link)
        for pending in reversed(held):
            pending.attempts += 1
            if not pending.gone():
                self._try_again(pending)
        if held:
            log.warning(
                "a worker of %s was lost with %d calls",
                self.deployment,
                len(held),
            )
        self.pump()

    def _try_again(self, pending: Pending) -> None:
        """Queue a call whose worker was lost, or blame it when that came too often."""
        most = ATTEMPTS + ALONE if self.slots else ATTEMPTS
        if pending.attempts < most:
            self._lanes.put_back(pending)
        else:
            self._blame(pending)

    def watch(self, now: float) -> None:
        """Tell of workers that are busy with one batch for too long; whoever started them ends
        them.

        Answers that grow end when their callers have gone.
        """
        for link in self._links.values():
            if self.slots:
                for pending in list(link.held.values()):
                    pending.gone()
            seconds = link.busy(now)
            if seconds > self.limits.hang_seconds:
                self._report_hung(link, seconds)

    def _report_hung(self, link: Link, seconds: float) -> None:
        if not link.hung:
            log.error(
                "a worker of %s has not answered for %.0f s",
                self.deployment,
                seconds,
            )
        link.hung = True
        self.on_hang(link.path)  # again and again: the news may be lost

    def close(self, heir: "Pool | None" = None) -> None:
        """Let what was accepted be answered, by the workers there are or by another version's, and
        disconnect.
        """
        self._closed, self._heir = True, heir
        for task in self._connecting.values():
            task.cancel()
        self._leaving = set(self._links)
        self.pump()
        self._let_go()

    def _hand_over(self) -> None:
        """What waits goes to the heir, or is refused when there is none."""
        while self._lanes.count:
            pending = self._lanes.pop()
            if self._heir is None:
                self._fail(
                    pending, Unavailable(f"'{self.deployment}' was undeployed")
                )
            else:
                self._heir.adopt(pending)

    def adopt(self, pending: Pending) -> None:
        """Queue a call that another pool had accepted."""
        if pending.attempts:
            self._lanes.put_back(pending)
        else:
            self._lanes.add(pending)
        self._sweep_by(pending.deadline)
        self.pump()

    def _free(self) -> Link | None:
        if self.slots:
            return self._roomiest()
        ahead = None
        for link in self._links.values():
            if link.idle:
                return link
            if ahead is None and link.open:
                ahead = link
        return ahead

    def _roomiest(self) -> Link | None:
        """The worker with the fewest texts; one without any for a call that was lost beside others
        again and again.
        """
        head = self._lanes.next()
        alone = head is not None and head.attempts >= ATTEMPTS
        links = [
            link
            for link in self._links.values()
            if link.idle and not (alone and link.batches)
        ]
        return min(links, key=lambda link: len(link.batches), default=None)

    def _admit(self, pending: Pending) -> None:
        lanes, limits = self._lanes, self.limits
        if (
            lanes.count < limits.queue
            and lanes.size + pending.size <= limits.queue_bytes
        ):
            return
        if pending.arrived - self._purged > PURGE_SECONDS:
            self._purged = pending.arrived
            lanes.purge()
        full = not admit(lanes, pending.key, limits.queue)
        if full or (
            lanes.count and lanes.size + pending.size > limits.queue_bytes
        ):
            self.series.rejected += 1
            raise self._overloaded()

    def _overloaded(self) -> Overloaded:
        waiting = (
            f"{self._lanes.count} calls already wait for '{self.deployment}'"
        )
        return Overloaded(waiting, retry_after=1)

    def _blame(self, pending: Pending) -> None:
        log.error(
            "request %s of key %s (call %d, %d bytes) ended %d workers of %s",
            pending.request_id or "without id",
            pending.key,
            pending.call.id,
            pending.size,
            pending.attempts,
            self.deployment,
        )
        self._fail(pending, _ended_workers(pending.attempts))

    def _pump_in(self, seconds: float) -> None:
        if self._later is not None:
            self._later.cancel()
        self._later = asyncio.get_running_loop().call_later(seconds, self.pump)

    def _sweep_by(self, when: float) -> None:
        """One timer for all deadlines: it goes off at the nearest that was seen."""
        if self._sweep is not None:
            if self._sweep_at <= when:
                return
            self._sweep.cancel()
        self._sweep_at = when
        delay = max(0.0, when - time.monotonic())
        self._sweep = asyncio.get_running_loop().call_later(
            delay, self._expire_due
        )

    def _expire_due(self) -> None:
        self._sweep = None
        now = time.monotonic()
        every = [*self._lanes, *self._held()]
        for pending in every:
            if pending.deadline <= now:
                self._expire(pending)
        self._lanes.purge()
        rest = [
            pending.deadline for pending in every if not pending.future.done()
        ]
        if rest:
            self._sweep_by(min(rest))

    def _held(self) -> Iterator[Pending]:
        """The calls in the hands of workers."""
        for link in self._links.values():
            yield from link.held.values()

    async def _connect(self, path: str, version: str) -> None:
        link = self._links[path] = Link(self, path, version, self.slots)
        try:
            await asyncio.get_running_loop().create_unix_connection(
                lambda: link, path
            )
        except OSError as error:
            log.warning("no connection to %s: %s", path, error)
        finally:
            self._connecting.pop(path, None)
            if not link.connected:
                self._forget(link)

    def _forget(self, link: Link) -> None:
        """A link has ended; another one to the same socket stays."""
        if self._links.get(link.path) is link:
            del self._links[link.path]

    def _expire(self, pending: Pending) -> None:
        self._fail(
            pending,
            Expired(f"'{self.deployment}' did not answer in the time allowed"),
        )

    @staticmethod
    def _fail(pending: Pending, error: MillError) -> None:
        with suppress(asyncio.InvalidStateError):
            pending.future.set_exception(error)


def _ended_workers(attempts: int) -> ModelFailed:
    times = "twice" if attempts == ATTEMPTS else f"{attempts} times"
    return ModelFailed(f"the model's process ended {times} on this input")


def bytes_of_parameters(call: Call) -> int:
    """About what they add to a frame, by their texts; raises `InvalidInput` for what can't be in
    one.
    """
    if error := _unsendable(Call(call.id, None, [], call.parameters)):
        raise InvalidInput(f"parameters hold what can't be passed on: {error}")
    return sum(
        len(value)
        for value in call.parameters.values()
        if isinstance(value, str)
    )


def _unsendable(call: Call) -> str:
    try:
        frame([call])
    except UNSENDABLE as error:
        return str(error) or type(error).__name__
    return ""
