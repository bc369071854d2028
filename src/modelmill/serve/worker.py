"""A worker owns one model: it takes batches from its socket, decodes, runs, encodes, and answers.

It loads and replays the golden set before it listens, so that a listening worker is a ready one. On SIGTERM it
answers what it holds and stays until the gateway has let go of it.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from modelmill import predictor
from modelmill.cluster._child import Report
from modelmill.engines.base import NUMPY, Arrays
from modelmill.errors import InvalidInput, MillError, ModelFailed
from modelmill.serve.wire import HEAD, Answer, Call, Tensor, frame, read_calls
from modelmill.types import WorkerSpec

log = logging.getLogger("modelmill.worker")
DRAIN_SECONDS = 60
MAX_ROWS = 256
DATATYPES = {np.dtype(kind): name for name, kind in NUMPY.items()}


class Worker:
    """Batches in, answers out; one lock around the engine, decoding in threads."""

    def __init__(self, model: predictor.Predictor, threads: int) -> None:
        self.model = model
        self._pool = ThreadPoolExecutor(threads, "decode") if threads > 1 else None
        self._running = threading.Lock()

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """One answer per call, in their order; an unfit call never spoils its batch-mates."""
        started = time.perf_counter()
        decode = self._pool.map if self._pool and len(calls) > 1 else map
        decoded = list(decode(self._decode, calls))
        results: list[Arrays | MillError] = list(decoded)
        for rows in _alike([d if isinstance(d, dict) else None for d in decoded]):
            for row, result in zip(rows, self._run([decoded[i] for i in rows]), strict=True):  # type: ignore[misc]
                results[row] = result
        seconds = time.perf_counter() - started
        return [self._encode(call, result, seconds) for call, result in zip(calls, results, strict=True)]

    def _decode(self, call: Call) -> Arrays | MillError:
        """Arrays with a batch axis, or the reason why there are none."""
        try:
            if call.data is None:
                if not call.tensors:
                    return InvalidInput("the call brings neither an input nor tensors")
                return {tensor.name: _array(tensor) for tensor in call.tensors}
            raw = str(call.data, "utf-8") if self.model.task.INPUT == "text" else call.data
            return {name: array[None] for name, array in self.model.decode(raw).items()}
        except MillError as error:
            return error
        except UnicodeDecodeError:
            return InvalidInput("the text is not valid UTF-8")
        except Exception:
            log.exception("decoding failed")
            return ModelFailed("the input could not be decoded")

    def _run(self, items: list[Arrays]) -> Sequence[Arrays | MillError]:
        """One engine run for all; when that fails, each alone, so that only the guilty one is refused."""
        sizes = [len(next(iter(item.values()))) for item in items]
        try:
            batch = {name: np.concatenate([item[name] for item in items]) for name in items[0]}
            with self._running:
                outputs = self._sliced(batch)
        except MillError as error:
            return [error] if len(items) == 1 else [self._run([item])[0] for item in items]
        edges = np.cumsum([0, *sizes])
        return [{name: array[edges[i] : edges[i + 1]] for name, array in outputs.items()} for i in range(len(items))]

    def _sliced(self, batch: Arrays) -> Arrays:
        """The engine's answer to any number of rows, so many at a time that its memory stays bounded."""
        count = len(next(iter(batch.values())))
        if count <= MAX_ROWS:
            return self.model.session.run(batch)
        parts = [
            self.model.session.run({name: array[at : at + MAX_ROWS] for name, array in batch.items()})
            for at in range(0, count, MAX_ROWS)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _encode(self, call: Call, result: Arrays | MillError, seconds: float) -> Answer:
        try:
            if isinstance(result, MillError):
                return Answer(call.id, code=result.code, message=result.message)
            if call.data is None:
                return Answer(call.id, tensors=_tensors(result), compute_seconds=seconds)
            output = self.model.encode({n: a[0] for n, a in result.items()}, call.parameters)
            return Answer(call.id, data=msgspec.json.encode(output), compute_seconds=seconds)
        except MillError as error:
            return Answer(call.id, code=error.code, message=error.message)
        except Exception:
            log.exception("encoding failed")
            return Answer(call.id, code=ModelFailed.code, message="the model's output could not be encoded")


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.frombuffer(tensor.data, NUMPY[tensor.datatype]).reshape(tensor.shape)


def _tensors(arrays: Arrays) -> list[Tensor]:
    return [Tensor(n, DATATYPES[a.dtype], list(a.shape), a.tobytes()) for n, a in arrays.items()]


def _alike(items: Sequence[Arrays | None]) -> list[list[int]]:
    """Rows that can share a batch: same names, types and shapes behind the batch axis."""
    groups: dict[Any, list[int]] = {}
    for row, arrays in enumerate(items):
        if arrays is not None:
            key = tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(arrays.items()))
            groups.setdefault(key, []).append(row)
    return list(groups.values())


class Server:
    """Listens on the worker's socket, one thread per gateway."""

    def __init__(self, worker: Worker, path: str) -> None:
        self.worker, self._path = worker, path
        self._links: set[socket.socket] = set()
        self.stopping = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        with suppress(FileNotFoundError):
            os.unlink(path)
        self._listener.bind(path)
        self._listener.listen(16)
        self._listener.settimeout(0.25)

    def run(self) -> None:
        """Accept until told to stop, then wait until every gateway has let go."""
        while not self.stopping.is_set():
            with suppress(TimeoutError):
                link, _ = self._listener.accept()
                link.setblocking(True)
                self._links.add(link)
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()
        self._listener.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        patience = time.monotonic() + DRAIN_SECONDS
        while self._links and time.monotonic() < patience:
            time.sleep(0.02)

    def _serve(self, link: socket.socket) -> None:
        try:
            with link, suppress(ConnectionError):
                while (head := _receive(link, HEAD)) is not None:
                    body = _receive(link, int.from_bytes(head, "little"))
                    if body is None:
                        return
                    link.sendall(frame(self.worker.answer(read_calls(body))))
        finally:
            self._links.discard(link)


def _receive(link: socket.socket, size: int) -> bytearray | None:
    """Exactly `size` bytes; None when the other side has closed."""
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        count = link.recv_into(view[got:])
        if not count:
            return None
        got += count
    return buffer


def main(spec: bytes, report: Report) -> int:
    """Entry of a worker process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    told = msgspec.json.decode(spec, type=WorkerSpec)
    started = time.perf_counter()
    try:
        model = predictor.load(Path(told.bundle), told.threads)
    except MillError as error:
        log.error("%s can't be served: %s", told.deployment, error)
        report({"error": error.message, "code": error.code})
        return 1
    server = Server(Worker(model, told.threads), told.socket)
    signal.signal(signal.SIGTERM, lambda *_: server.stopping.set())
    seconds = time.perf_counter() - started
    log.info("%s: %s:%d ready in %.2f s", told.deployment, told.model, told.version, seconds)
    report({"ready": True})
    server.run()
    return 0
