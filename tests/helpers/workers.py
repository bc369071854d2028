"""A worker that the test plays on a real socket, and waiting for what happens."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from modelmill.predictor import load as load_bundle
from modelmill.serve.wire import HEAD, Answer, Batch, Call, frame, read_calls
from modelmill.serve.worker import Worker

Answering = Callable[[list[Call]], Awaitable[list[Answer] | Batch | None]]


def going() -> Any:
    """A job that nobody asks to stop."""
    return SimpleNamespace(requested=False)


class FakeWorker:
    """Listens where a worker would. What it answers is up to the test; None ends the connection."""

    def __init__(self, path: Path, answering: Answering) -> None:
        self.path, self._answering = str(path), answering
        self.got: list[list[Call]] = []
        self.open = 0
        self.writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> "FakeWorker":
        """Begin to listen."""
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def stop(self) -> None:
        """Listen no more."""
        assert self._server is not None
        self._server.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.open += 1
        self.writers.append(writer)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    size = int.from_bytes(
                        await reader.readexactly(HEAD), "little"
                    )
                    calls = read_calls(await reader.readexactly(size))
                    self.got.append(calls)
                    answers = await self._answering(calls)
                    if answers is None:
                        return
                    writer.write(
                        frame(
                            answers
                            if isinstance(answers, Batch)
                            else Batch(answers, rows=len(calls))
                        )
                    )
        finally:
            self.open -= 1
            writer.close()


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait for something to become true."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "it did not happen"
        await asyncio.sleep(0.002)


def answering_with(folder: Path) -> Answering:
    """What a real worker of this bundle answers."""
    worker = Worker(load_bundle(folder), 1)

    async def answering(calls: list[Call]) -> Batch:
        return worker.answer(calls)

    return answering


def is_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            == "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        return True
