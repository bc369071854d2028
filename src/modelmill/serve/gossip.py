"""What gateways tell one another and the supervisor, as datagrams between sockets in one folder.

Each gateway says what it has counted, so that any of them can answer for all, and how its queues stand, so that the
supervisor can start and stop workers. News may be lost: what matters is told again with the next.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from modelmill.serve.gateway import Gateway
from modelmill.serve.meter import Name, Series

log = logging.getLogger("modelmill.gateway")

TELL_SECONDS = 0.25
ALL_SECONDS = 5.0
PORTION = 64
SUFFIX = ".gossip"


class Load(msgspec.Struct, array_like=True, frozen=True):
    """How the queue of one version stands: calls waiting, seconds the oldest has waited, and since the last call."""

    project: str
    deployment: str
    slot: str
    waiting: int
    oldest: float
    busy: int
    connected: int
    idle_seconds: float


class News(msgspec.Struct, array_like=True, frozen=True):
    """One datagram. `hung` are sockets of workers that are to be ended."""

    gateway: str
    series: dict[Name, Series]
    load: list[Load]
    hung: list[str]
    usage: dict[tuple[str, str], int] = {}


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
        self._told: dict[Name, tuple[int, int]] = {}
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
                self._tell()
                await asyncio.sleep(TELL_SECONDS / 10)  # also when calls for sleeping models come one after another
        finally:
            asyncio.get_running_loop().remove_reader(self._ear.socket.fileno())
            self._ear.close()

    def _listen(self) -> None:
        for news in self._ear.news():
            self._gateway.meter.heard(news.gateway, news.series, news.usage)

    def _tell(self) -> None:
        meter, now = self._gateway.meter, time.monotonic()
        if now - self._all_at > ALL_SECONDS:
            self._told, self._all_at = {}, now
        fresh = {}
        for name, series in meter.own.items():
            mark = (series.success + series.failure + series.rejected, series.batches)
            if self._told.get(name) != mark and any(mark):
                self._told[name] = mark
                fresh[name] = series
        hung, self._gateway.hung = list(self._gateway.hung), set()
        load = [
            Load(*place, pool.waiting, pool.oldest(now), pool.busy, pool.connected, now - pool.last_call)
            for place, pool in self._gateway.pools()
            if pool.connected or pool.waiting
        ]
        for part in range(max(1, *(-(-len(every) // PORTION) for every in (fresh, load, meter.usage)))):
            at = slice(part * PORTION, (part + 1) * PORTION)
            news = News(
                self._ear.name,
                dict(list(fresh.items())[at]),
                load[at],
                hung if not part else [],
                dict(list(meter.usage.items())[at]),
            )
            self._ear.tell(news)
