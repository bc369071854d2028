"""A closed-loop HTTP load generator: every connection sends its next request when the last is
answered.

`python -m bench.load URL --body FILE --header NAME:VALUE --connections 32 --seconds 5` prints one
JSON line. It parses no more of an answer than its status and length, so that on shared cores the
server gets most of the time.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import uvloop

PATIENCE = 15  # seconds that an answer may take when the time is over


@dataclass
class Load:
    """What is sent and what came back."""

    request: bytes
    until: float = 0.0
    measure_from: float = 0.0
    times: list[float] = field(default_factory=list)
    failed: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    last: float = 0.0
    stall: float = 0.0
    """The longest time between two good answers, in seconds."""

    def note(
        self, started: float, now: float, status: str | bytes, good: str | bytes
    ) -> None:
        """One answer."""
        if status != good:
            self.failed += 1
            name = (
                status if isinstance(status, str) else status.decode("latin-1")
            )
            self.statuses[name] = self.statuses.get(name, 0) + 1
            return
        if now - self.last > self.stall and self.last:
            self.stall = now - self.last
        self.last = now
        if started >= self.measure_from:
            self.times.append(now - started)

    async def run(
        self,
        protocol: Callable[["asyncio.Future[None]"], asyncio.Protocol],
        host: str,
        port: int,
        connections: int,
        seconds: float,
        warmup: float,
    ) -> "Load":
        """Open the connections and wait until each has ended; one that never does has failed."""
        loop = asyncio.get_running_loop()
        self.measure_from = time.perf_counter() + warmup
        self.until = self.measure_from + seconds
        ends = [loop.create_future() for _ in range(connections)]
        for done in ends:
            await loop.create_connection(
                lambda done=done: protocol(done), host, port
            )  # type: ignore[misc]
        await asyncio.wait(ends, timeout=warmup + seconds + PATIENCE)
        for _ in range(sum(not done.done() for done in ends)):
            self.note(0, 0, "unanswered", "")
        return self


class Connection(asyncio.Protocol):
    """One connection; the next request follows each answer."""

    def __init__(self, load: Load, done: "asyncio.Future[None]") -> None:
        self.load, self.done = load, done
        self.rest, self.wanted = b"", 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.started = time.perf_counter()
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        if not self.wanted:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.rest = data
                return
            head = data[:end].lower()
            at = head.find(b"content-length:")
            stop = head.find(b"\r", at)
            self.wanted = (
                end + 4 + int(head[at + 15 : stop if stop > 0 else None])
            )
            self.status = data[9:12]
        if len(data) < self.wanted:
            self.rest = data
            return
        self.rest, self.wanted = b"", 0
        now = time.perf_counter()
        load = self.load
        load.note(self.started, now, self.status, good=b"200")
        if now < load.until:
            self.started = now
            self.transport.write(load.request)
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self.load.until:
            self.load.note(0, 0, "connection lost", good="200")
        if not self.done.done():
            self.done.set_result(None)


async def drive(
    url: str, request: bytes, connections: int, seconds: float, warmup: float
) -> Load:
    """Keep `connections` requests in flight for a time."""
    parts, load = urlsplit(url), Load(request)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    return await load.run(
        lambda done: Connection(load, done),
        host,
        port,
        connections,
        seconds,
        warmup,
    )


def request_of(url: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A POST as it goes over the wire."""
    parts = urlsplit(url)
    lines = [
        f"POST {parts.path} HTTP/1.1",
        f"Host: {parts.netloc}",
        f"Content-Length: {len(body)}",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def summary(load: Load, seconds: float) -> dict[str, Any]:
    """Requests a second, milliseconds of latency, of the longest stall, and without a good answer
    at the end.
    """
    times = sorted(load.times)
    if not times:
        return {
            "rps": 0.0,
            "p50": 0.0,
            "p99": 0.0,
            "stall": 0.0,
            "silence": seconds * 1e3,
            "failed": load.failed,
            "statuses": load.statuses,
        }
    return {
        "rps": len(times) / seconds if seconds else 0.0,
        "calls": len(times),
        "p50": statistics.median(times) * 1e3,
        "p99": times[int(len(times) * 0.99)] * 1e3,
        "failed": load.failed,
        "statuses": load.statuses,
        "stall": load.stall * 1e3,
        "silence": max(load.until - load.last, 0.0) * 1e3,
    }


def main() -> None:
    """Drive one URL and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--body", required=True, help="file with the body")
    parser.add_argument(
        "--header", action="append", default=[], help="NAME:VALUE"
    )
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--warmup", type=float, default=1)
    told = parser.parse_args()
    headers = dict(one.partition(":")[::2] for one in told.header)
    with open(told.body, "rb") as file:
        request = request_of(told.url, file.read(), headers)
    load = uvloop.run(
        drive(told.url, request, told.connections, told.seconds, told.warmup)
    )
    print(json.dumps(summary(load, told.seconds)))


if __name__ == "__main__":
    main()
