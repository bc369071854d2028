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
        self._wake = asyncio.Event()
        gateway.wake = self._wake.set

    async def run(self) -> None:
        """Tell and listen until cancelled."""
        asyncio.get_running_loop().add_reader(self._ear.socket.fileno(), self._listen)
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), TELL_SECONDS)
                self._wake.clear()
                for number, news in enumerate(self._portions()):
                    if number:
                        await asyncio.sleep(PAUSE_SECONDS)
                    self._ear.tell(news)
                await asyncio.sleep(
                    TELL_SECONDS / 10
                )  # also when calls for sleeping models come one after another
        finally:
            asyncio.get_running_loop().remove_reader(self._ear.socket.fileno())
            self._ear.close()

    def _listen(self) -> None:
        for news in self._ear.news():
            self._gateway.meter.receive(news.gateway, news.series, news.usage)
            if news.changed:
                self._gateway.stale.set()

    def _portions(self) -> list[News]:
        """What is new since the last time, in datagrams; now and then all, for those who missed
        some.
        """
        meter, now = self._gateway.meter, time.monotonic()
        if now - self._all_at > ALL_SECONDS:
            self._sent = {}
            self._used = {}
            self._all_at = now
        fresh = {}
        for name, series in meter.own.items():
            mark = (series.success + series.failure + series.rejected, series.batches)
            if self._sent.get(name) != mark and any(mark):
                self._sent[name] = mark
                fresh[name] = series
        uses = [use for use in meter.uses().items() if self._used.get(use[0]) != use[1]]
        self._used.update(uses)
        load = [
            Load(
                *place,
                pool.waiting,
                pool.oldest(now),
                pool.busy,
                pool.connected,
                now - pool.last_call,
            )
            for place, pool in self._gateway.pools()
            if pool.connected or pool.waiting
        ]
        hung, self._gateway.hung = list(self._gateway.hung), set()
        changed, self._gateway.changed = self._gateway.changed, False
        every = zip_longest(
            batched(fresh.items(), PORTION),
            batched(load, PORTION),
            batched(uses, USES),
            fillvalue=(),
        )
        portions = [
            News(self._ear.name, dict(some), list(loads), [], dict(used))
            for some, loads, used in every
        ]
        first = portions[0] if portions else News(self._ear.name, {}, [], [])
        return [
            msgspec.structs.replace(first, hung=hung, changed=changed),
            *portions[1:],
        ]


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items in lists of so many."""
    every = iter(items)
    while some := list(islice(every, size)):
        yield some
