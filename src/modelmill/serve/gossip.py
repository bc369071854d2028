"""What gateways tell one another and the supervisor, as datagrams between sockets in one folder.

Each gateway says what it has counted, so that any of them can answer for all, and how its queues
stand, so that the supervisor can start and stop workers. News may be lost: what matters is sent
again with the next.
"""

import asyncio
import logging
import os
import select
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import msgspec

from modelmill.serve.gateway import Gateway
from modelmill.serve.meter import Name, Series, Use

log = logging.getLogger("modelmill.gateway")

TELL_SECONDS = 0.25
ALL_SECONDS = 5.0
PORTION, USES = 64, 384
"""How many series, and how many counters of keys, go in one datagram."""
PAUSE_SECONDS = 0.01
"""Between portions: a socket may hold as few as ten datagrams until its owner looks."""
SUFFIX = ".gossip"


class Load(msgspec.Struct, array_like=True, frozen=True):
    """How the queue of one version stands: calls waiting, seconds the oldest has waited, and since
    the last call.
    """

    project: str
    deployment: str
    slot: str
    waiting: int
    oldest: float
    busy: int
    connected: int
    idle_seconds: float


class News(msgspec.Struct, array_like=True, frozen=True):
    """One datagram. `hung` are sockets of workers that are to be ended; `changed`: look into the
    database now.
    """

    gateway: str
    series: dict[Name, Series]
    load: list[Load]
    hung: list[str]
    usage: dict[Use, int | float] = {}
    changed: bool = False


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(News)


class Ear:
    """A socket on which news arrive."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.path = folder / f"{name}{SUFFIX}"
        self.path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(str(self.path))

    def news(self) -> Iterator[News]:
        """All that has arrived; never waits."""
        with suppress(BlockingIOError):
            while True:
                data = self.socket.recv(1 << 18)
                try:
                    yield _decoder.decode(data)
                except msgspec.MsgspecError:
                    log.warning("news that can't be read: %d bytes", len(data))

    def wait(self, seconds: float) -> None:
        """Until something arrives, or so long."""
        select.select([self.socket], [], [], seconds)

    def tell(self, news: News) -> None:
        """Send to all others; who does not listen or has no room misses it."""
        data = _encoder.encode(news)
        for path in self.folder.glob(f"*{SUFFIX}"):
            if path != self.path:
                with suppress(OSError):
                    self.socket.sendto(data, str(path))

    def close(self) -> None:
        """Listen no more."""
        self.socket.close()
        self.path.unlink(missing_ok=True)


class Gossip:
    """A gateway's part in it."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self._gateway = gateway
        self._ear = Ear(folder, f"gateway-{os.getpid()}")
        self._sent: dict[Name, tuple[int, int]] = {}
        self._used: dict[Use, int | float] = {}
        self._all_at = 0.0

    async def run(self) -> None:
        """Tell and listen until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._ear.socket.fileno(), self._listen)
        urgent = self._gateway.urgent
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(urgent.wait(), TELL_SECONDS)
                urgent.clear()
                await self._tell()
                # Also when calls for sleeping models come one after another
                await asyncio.sleep(TELL_SECONDS / 10)
        finally:
            loop.remove_reader(self._ear.socket.fileno())
            self._ear.close()

    async def _tell(self) -> None:
        """All that is new, datagram by datagram."""
        for number, news in enumerate(self._portions()):
            if number:
                await asyncio.sleep(PAUSE_SECONDS)
            self._ear.tell(news)

    def _listen(self) -> None:
        for news in self._ear.news():
            self._gateway.meter.receive(news.gateway, news.series, news.usage)
            if news.changed:
                self._gateway.stale.set()

    def _portions(self) -> list[News]:
        """What is new since the last time, in datagrams; now and then all, for those who missed
        some.
        """
        now = time.monotonic()
        if now - self._all_at > ALL_SECONDS:
            self._sent = {}
            self._used = {}
            self._all_at = now
        every = zip_longest(
            batched(self._fresh_series(), PORTION),
            batched(self._load(now), PORTION),
            batched(self._fresh_uses(), USES),
            fillvalue=(),
        )
        portions = [
            News(self._ear.name, dict(series), list(load), [], dict(uses))
            for series, load, uses in every
        ]
        first = portions[0] if portions else News(self._ear.name, {}, [], [])
        hung, changed = self._gateway.take_news()
        first = msgspec.structs.replace(first, hung=hung, changed=changed)
        return [first, *portions[1:]]

    def _fresh_series(self) -> Iterator[tuple[Name, Series]]:
        """What has counted anything since it was last sent."""
        for name, series in self._gateway.meter.own.items():
            mark = (
                series.success + series.failure + series.rejected,
                series.batches,
            )
            if self._sent.get(name) != mark and any(mark):
                self._sent[name] = mark
                yield name, series

    def _fresh_uses(self) -> Iterator[tuple[Use, int | float]]:
        """What keys have used of since it was last sent."""
        for use, amount in self._gateway.meter.uses().items():
            if self._used.get(use) != amount:
                self._used[use] = amount
                yield use, amount

    def _load(self, now: float) -> Iterator[Load]:
        """How the queues stand that have calls or workers."""
        for place, pool in self._gateway.pools():
            if pool.connected or pool.waiting:
                yield Load(
                    *place,
                    pool.waiting,
                    pool.oldest(now),
                    pool.busy,
                    pool.connected,
                    now - pool.last_call,
                )


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items in lists of so many."""
    every = iter(items)
    while some := list(islice(every, size)):
        yield some
