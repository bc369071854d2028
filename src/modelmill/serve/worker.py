"""A worker owns one model: it takes batches from its socket, decodes, runs, encodes, and answers.

It loads and replays the golden set before it listens, so that a listening worker is a ready one. On
SIGTERM it answers what it holds and stays until the gateway has let go of it.
"""

import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path

import msgspec
import numpy as np

from modelmill import predictor
from modelmill.cluster.child import Report
from modelmill.engines.base import Arrays
from modelmill.errors import InvalidInput, MillError, ModelFailed, reraise_exit
from modelmill.independence import why_alone
from modelmill.serve.batch_size import best_rows, seconds_of_one
from modelmill.serve.plain import answers_of, columns_of, stacked
from modelmill.serve.streaming import StreamWorker
from modelmill.serve.tensors import array_of, elements_of, tensor_of, texts_of
from modelmill.serve.wire import (
    ANSWER,
    HEAD,
    Answer,
    Batch,
    Call,
    Tensor,
    frame,
    read_calls,
)
from modelmill.tasks.base import NOTE
from modelmill.types import ALONE, BY_HAND, Struct, Usage, WorkerSpec

log = logging.getLogger("modelmill.worker")
DRAIN_SECONDS = 60
MAX_ROWS = 256
QUICK_SECONDS = 0.002
GARBAGE = 20_000
BATCHES = 2
"""Batches of one gateway that are worked on at a time: one is decoded while the other runs."""


class Item:
    """A decoded call: its arrays, and its checked parameters where its rows were raw task input;
    later what it has used.
    """

    __slots__ = ("arrays", "parameters", "rows", "usage")

    def __init__(self, arrays: Arrays, parameters: Struct | None) -> None:
        self.arrays = arrays
        self.parameters = parameters
        self.rows = len(next(iter(arrays.values())))
        self.usage: dict[str, int | float] = {}


class Worker:
    """Batches in, answers out; one lock around the engine, decoding in threads.

    Calls share an engine run only if the model's rows are `independent` of one another.
    """

    def __init__(
        self,
        model: predictor.Predictor,
        decoders: int,
        independent: bool = True,
    ) -> None:
        self.model = model
        self.independent = independent
        task = model.task if model.manifest.task else None
        self.kind = task.takes if task else ""
        self.kinds = task.kinds if task else ()
        self._pool = (
            ThreadPoolExecutor(decoders, "decode") if decoders > 1 else None
        )
        self._running = threading.Lock()

    def answer(self, calls: Sequence[Call]) -> Batch:
        """One answer per call, in their order; an unfit call never spoils its batch-mates."""
        if len(calls) > 1 and not self.independent:
            return _joined([self.answer([call]) for call in calls])
        started = time.perf_counter()
        if (batch := self._answer_plain(calls, started)) is not None:
            return batch
        items = self._decode_all(calls)
        decoded = time.perf_counter()
        results, run = self._run_all(items)
        ran = time.perf_counter()
        answers = [
            self._encode(*three)
            for three in zip(calls, items, results, strict=True)
        ]
        encoded = time.perf_counter()
        count = _share(encoded - started, items)
        return Batch(answers, count, decoded - started, run, encoded - ran)

    def _answer_plain(
        self, calls: Sequence[Call], started: float
    ) -> Batch | None:
        """The short way for calls that are alike; None when they are not, or anything is wrong with
        them.
        """
        try:
            arrays = stacked(calls)
            if arrays is None:
                return None
            decoded = time.perf_counter()
            with self._running:
                begun = time.perf_counter()
                outputs = self._sliced(arrays)
            ran = time.perf_counter()
            columns = columns_of(calls, outputs)
        except BaseException as error:
            reraise_exit(error)
            return None  # the long way finds out which call it is
        if columns is None:
            return None
        count = len(next(iter(arrays.values())))
        encoded = time.perf_counter()
        usage = {"compute_seconds": (encoded - started) / len(calls)}
        answers = answers_of(calls, columns, usage)
        return Batch(
            answers, count, decoded - started, ran - begun, encoded - ran
        )

    def _decode_all(self, calls: Sequence[Call]) -> list[Item | MillError]:
        """Every call decoded; several raw ones beside one another."""
        raw = sum(call.data is not None for call in calls)
        decode = self._pool.map if self._pool and raw > 1 else map
        return list(decode(self._decode, calls))

    def _decode(self, call: Call) -> Item | MillError:
        """Arrays with a batch axis, or the reason why there are none."""
        try:
            return self._item(call)
        except MillError as error:
            return error
        except BaseException as error:
            reraise_exit(error)
            log.exception("decoding failed")
            return ModelFailed("the input could not be decoded")

    def _item(self, call: Call) -> Item:
        """A call's raw input or rows decoded, or its tensors as they are; raises `MillError`."""
        if call.data is not None:
            how = self.model.parameters(call.parameters)
            decoded = self._decode_raw(call.data, call.kind, how)
            return Item(
                {name: array[None] for name, array in decoded.items()}, how
            )
        if len(call.tensors) == 1 and self._is_raw(call):
            how = self.model.parameters(call.parameters)
            return self._decode_rows(call.tensors[0], how)
        if not call.tensors:
            raise InvalidInput("the call brings neither an input nor tensors")
        return Item(
            {tensor.name: array_of(tensor) for tensor in call.tensors}, None
        )

    def _is_raw(self, call: Call) -> bool:
        tensor = call.tensors[0]
        return tensor.datatype == "BYTES" and tensor.name in self.kinds

    def _decode_rows(self, tensor: Tensor, parameters: Struct) -> Item:
        rows, kind = elements_of(tensor), tensor.name
        decode = self._pool.map if self._pool and len(rows) > 1 else map
        decoded = list(
            decode(self._decode_raw, rows, repeat(kind), repeat(parameters))
        )
        if not decoded:
            raise InvalidInput("the batch is empty")
        return Item(_stacked_rows(decoded, kind), parameters)

    def _decode_raw(self, data: bytes, kind: str, parameters: Struct) -> Arrays:
        return self.model.decode(self.model.task.read(data, kind), parameters)

    def _run_all(
        self, items: Sequence[Item | MillError]
    ) -> tuple[list[Arrays | MillError], float]:
        """The outputs of each item, or why there are none, and the seconds that the engine took."""
        results: list[Arrays | MillError] = [
            item if isinstance(item, MillError) else {} for item in items
        ]
        seconds = 0.0
        for group in _alike(items):
            with self._running:
                began = time.perf_counter()
                outputs = self._run(list(group.values()))
                seconds += time.perf_counter() - began
            for row, result in zip(group, outputs, strict=True):
                results[row] = result
        return results, seconds

    def _run(self, items: list[Item]) -> Sequence[Arrays | MillError]:
        """One engine run for all; when that fails, each alone, so that only the guilty one is
        refused.
        """
        if len(items) == 1:
            return [self._run_alone(items[0])]
        try:
            outputs = self._sliced(
                _concatenated([item.arrays for item in items])
            )
        except BaseException as error:
            reraise_exit(error)
            return [self._run_alone(item) for item in items]
        count = sum(item.rows for item in items)
        if any(array.shape[:1] != (count,) for array in outputs.values()):
            # Its outputs can't be told apart
            return [self._run_alone(item) for item in items]
        return _divided(items, outputs)

    def _run_alone(self, item: Item) -> Arrays | MillError:
        try:
            return self._sliced(item.arrays)
        except MillError as error:
            return error
        except BaseException as error:
            reraise_exit(error)
            log.exception("running failed")
            return ModelFailed("the model could not be run")

    def _sliced(self, batch: Arrays) -> Arrays:
        """The engine's answer to any number of rows, so many at a time that its memory stays
        bounded.
        """
        count = len(next(iter(batch.values())))
        if count <= MAX_ROWS:
            return self.model.infer(batch)
        return _concatenated(list(map(self.model.infer, _slices(batch, count))))

    def _encode(
        self, call: Call, item: Item | MillError, result: Arrays | MillError
    ) -> Answer:
        if isinstance(item, MillError):
            return _failed(call, item)
        if isinstance(result, MillError):
            return _failed(call, result)
        try:
            return self._answer(call, item, result)
        except MillError as error:
            return _failed(call, error)
        except BaseException as error:
            reraise_exit(error)
            log.exception("encoding failed")
            return _failed(
                call, ModelFailed("the model's output could not be encoded")
            )

    def _answer(self, call: Call, item: Item, result: Arrays) -> Answer:
        """JSON for raw input, tensors for tensors; raises `MillError`."""
        if call.data is not None:
            first = {name: array[0] for name, array in result.items()}
            output = self.model.encode(first, item.parameters)
            data = msgspec.json.encode(output)
            return Answer(call.id, data=data, usage=self._used(item, result))
        tensors = [
            self._tensor(name, item, result)
            for name in call.outputs or _output_names(result)
        ]
        return Answer(call.id, tensors=tensors, usage=self._used(item, result))

    def _used(self, item: Item, result: Arrays) -> Usage:
        """What an answered call has used, without its time; of tensors that callers made
        themselves nothing is known.
        """
        if item.parameters is not None:
            task, context = self.model.task, self.model.context
            item.usage.update(task.usage(item.arrays, result, context))
        return item.usage

    def _tensor(self, name: str, item: Item, result: Arrays) -> Tensor:
        """An output of the model, or the task's answer where the model has none of that name."""
        if name in result:
            return tensor_of(name, result[name])
        if name == ANSWER:
            return texts_of(ANSWER, self._answers(item, result))
        raise InvalidInput(
            f"unknown output '{name}'; there are: {', '.join(_output_names(result))}"
        )

    def _answers(self, item: Item, result: Arrays) -> list[bytes]:
        """What the task says of each row, as JSON."""
        if item.parameters is None:
            raise InvalidInput(
                f"the output '{ANSWER}' needs raw input: send '{self.kind}' as BYTES"
            )
        rows = (
            {name: array[row] for name, array in result.items()}
            for row in range(item.rows)
        )
        return [
            msgspec.json.encode(self.model.encode(row, item.parameters))
            for row in rows
        ]


def _joined(batches: Sequence[Batch]) -> Batch:
    """Calls that ran one by one, as the answer to one frame."""
    return Batch(
        [answer for batch in batches for answer in batch.answers],
        sum(batch.rows for batch in batches),
        sum(batch.decode_seconds for batch in batches),
        sum(batch.run_seconds for batch in batches),
        sum(batch.encode_seconds for batch in batches),
    )


def _failed(call: Call, error: MillError) -> Answer:
    return Answer(call.id, code=error.code, message=error.message)


def _output_names(result: Arrays) -> list[str]:
    """The outputs of the model, without what `decode` noted for `encode`."""
    return [name for name in result if not name.startswith(NOTE)]


def _shapes(arrays: Arrays) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, array.shape) for name, array in sorted(arrays.items()))


def _stacked_rows(rows: Sequence[Arrays], kind: str) -> Arrays:
    """Decoded inputs as a batch; raises `InvalidInput` where they are not of one size."""
    if len(set(map(_shapes, rows))) > 1:
        raise InvalidInput(
            f"this model takes each '{kind}' in its own size: send those of one size together"
        )
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _slices(batch: Arrays, count: int) -> Iterator[Arrays]:
    """The rows of a batch, so many at a time."""
    for at in range(0, count, MAX_ROWS):
        yield {name: array[at : at + MAX_ROWS] for name, array in batch.items()}


def _concatenated(batches: Sequence[Arrays]) -> Arrays:
    """The rows of all batches as one."""
    return {
        name: np.concatenate([batch[name] for batch in batches])
        for name in batches[0]
    }


def _divided(items: Sequence[Item], outputs: Arrays) -> list[Arrays]:
    """The rows of each item from the outputs of all."""
    results, at = [], 0
    for item in items:
        end = at + item.rows
        results.append({name: array[at:end] for name, array in outputs.items()})
        at = end
    return results


def _share(seconds: float, items: Sequence[Item | MillError]) -> int:
    """Note the time of a batch in the usage of its items, by their rows; returns all rows."""
    decoded = [item for item in items if isinstance(item, Item)]
    count = sum(item.rows for item in decoded)
    for item in decoded:
        item.usage["compute_seconds"] = seconds * (item.rows / max(1, count))
    return count


def _alike(items: Sequence[Item | MillError]) -> list[dict[int, Item]]:
    """The items that can share a batch, each with its number."""
    groups: dict[object, dict[int, Item]] = {}
    for number, item in enumerate(items):
        if isinstance(item, Item):
            groups.setdefault(_form(item) or number, {})[number] = item
    return list(groups.values())


def _form(item: Item) -> tuple[object, ...]:
    """Names, types and shapes after the batch axis; none where the arrays have not as many rows
    each: in a batch these would shift the rows of others.
    """
    if len(item.arrays) == 1:
        name, array = next(iter(item.arrays.items()))
        return name, array.dtype, array.shape[1:]
    if any(len(array) != item.rows for array in item.arrays.values()):
        return ()
    return tuple(
        (name, array.dtype, array.shape[1:])
        for name, array in sorted(item.arrays.items())
    )


class Server:
    """Listens on the worker's socket; each gateway has its own threads.

    At most so many texts grow beside one another (0: as many as the engine has slots for).
    """

    def __init__(self, worker: Worker, path: str, most: int = 0) -> None:
        self.worker, self._path = worker, path
        self._streams = (
            StreamWorker(worker.model, most) if worker.model.grows else None
        )
        self._links: set[socket.socket] = set()
        self.stopping = threading.Event()
        self._listener = _listening(path)

    def run(self) -> None:
        """Accept until it is stopped, then wait until every gateway has let go."""
        while not self.stopping.is_set():
            with suppress(TimeoutError):
                self._accept()
        self._listener.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        self._drain()

    def _accept(self) -> None:
        """Serve a gateway that connects, in a thread of its own; raises `TimeoutError`."""
        link, _ = self._listener.accept()
        link.setblocking(True)
        self._links.add(link)
        threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _drain(self) -> None:
        patience = time.monotonic() + DRAIN_SECONDS
        while self._links and time.monotonic() < patience:
            time.sleep(0.02)

    def _serve(self, link: socket.socket) -> None:
        """Answer batch after batch; one that has to be decoded is passed to a helper, so that the
        next can begin.
        """
        frames, writing = Frames(link), threading.Lock()

        def send(batch: Batch) -> None:
            with suppress(OSError), writing:
                link.sendall(frame(batch))

        with link, ThreadPoolExecutor(BATCHES, "batch") as helpers:
            try:
                while (body := frames.next()) is not None:
                    calls = read_calls(body)
                    if self._streams is not None and all(
                        map(StreamWorker.takes, calls)
                    ):
                        self._streams.take(calls, send)
                    elif self._overlaps(calls):
                        helpers.submit(self._answer, link, calls, writing)
                    else:
                        self._answer(link, calls, writing)
            except OSError:
                pass
            except Exception:  # such as a frame that can't be read
                log.exception("a batch could not be read: its link is closed")
            finally:
                if self._streams is not None:
                    self._streams.leave(send)
        self._links.discard(link)

    def _overlaps(self, calls: Sequence[Call]) -> bool:
        """Whether the next batch is worth beginning meanwhile: this one has to be decoded, and
        leaves a core for it.

        Else a second thread only costs its waking; and an engine of several threads is fastest when
        always called by the same one.
        """
        return self.worker.model.threads == 1 and any(
            call.data is not None or _is_bytes(call) for call in calls
        )

    def _answer(
        self,
        link: socket.socket,
        calls: Sequence[Call],
        writing: threading.Lock,
    ) -> None:
        """Answer one batch; where that fails the link is closed: what is lost with it goes to
        another worker.
        """
        try:
            data = frame(self.worker.answer(calls))
            with writing:
                link.sendall(data)
        except Exception as error:
            if not isinstance(error, OSError):
                log.exception(
                    "a batch could not be answered: its link is closed"
                )
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)


def _listening(path: str) -> socket.socket:
    """A socket at this path, in place of one that an earlier worker left."""
    listener = socket.socket(socket.AF_UNIX)
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener.bind(path)
    listener.listen(16)
    listener.settimeout(0.25)
    return listener


def _is_bytes(call: Call) -> bool:
    return len(call.tensors) == 1 and call.tensors[0].datatype == "BYTES"


class Frames:
    """Reads frames from a link: nearly all come whole with the first bytes."""

    # Beyond 128 KiB the allocator would map and unmap pages for each read
    READ = 64 << 10

    def __init__(self, link: socket.socket) -> None:
        self._link, self._rest = link, b""

    def next(self) -> memoryview | None:
        """The next frame without its head; None when the other side has closed."""
        data = self._rest or self._link.recv(self.READ)
        while data and len(data) < HEAD:
            more = self._link.recv(self.READ)
            data = data + more if more else b""
        if not data:
            return None
        end = HEAD + int.from_bytes(data[:HEAD], "little")
        self._rest = data[end:]
        return (
            memoryview(data)[HEAD:end]
            if len(data) >= end
            else self._whole(data, end)
        )

    def _whole(self, begun: bytes, end: int) -> memoryview | None:
        buffer = memoryview(bytearray(end))
        buffer[: len(begun)] = begun
        at = len(begun)
        while at < end:
            count = self._link.recv_into(buffer[at:])
            if not count:
                return None
            at += count
        return buffer[HEAD:]


def _open(spec: WorkerSpec) -> predictor.Predictor:
    """The model, on the threads it was granted; a quick one does better on one, and leaves the rest
    to others.
    """
    bundle = Path(spec.bundle)
    model = predictor.load(bundle, 1, spec.engine, spec.precision, spec.digest)
    if spec.threads <= 1 or _is_quick(model):
        return model
    return predictor.Predictor(
        bundle, model.manifest, spec.threads, spec.engine, spec.precision
    )


def _is_quick(model: predictor.Predictor) -> bool:
    if model.grows:
        return False
    return (
        seconds_of_one(Worker(model, 1).answer, model.manifest) <= QUICK_SECONDS
    )


def _rows(worker: Worker, most: int) -> int:
    """How many calls share a batch: as many as the model gains from, at most `most` (0: any)."""
    if not worker.independent:
        return 1
    if worker.model.writer is not None:
        rows = worker.model.writer.slots
    else:
        rows = best_rows(worker.answer, worker.model.manifest)
    return min(rows or most, most) if most else rows


def main(data: bytes, report: Report) -> int:
    """Entry of a worker process."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    spec = msgspec.json.decode(data, type=WorkerSpec)
    started = time.perf_counter()
    try:
        model = _open(spec)
    except MillError as error:
        log.error("%s can't be served: %s", spec.deployment, error)
        report({"error": error.message, "code": error.code})
        return 1
    alone = _why_alone(spec, model)
    worker = Worker(model, spec.decoders, not alone)
    rows = _rows(worker, spec.batch)
    server = _prepared(worker, spec)
    _log_ready(spec, time.perf_counter() - started, rows)
    report(
        {"ready": True, "batch": rows, "alone": alone, "threads": model.threads}
    )
    server.run()
    return 0


def _why_alone(spec: WorkerSpec, model: predictor.Predictor) -> str:
    """Why calls do not share a batch; empty when they do."""
    alone = BY_HAND if spec.batch == 1 else why_alone(model)
    if alone:
        log.warning("%s: %s: %s", spec.deployment, ALONE, alone)
    return alone


def _prepared(worker: Worker, spec: WorkerSpec) -> Server:
    """A server that listens, stops at SIGTERM, and is seldom held up by garbage collection."""
    server = Server(worker, spec.socket, spec.batch)
    gc.freeze()
    gc.set_threshold(GARBAGE, 20, 100)
    signal.signal(signal.SIGTERM, lambda *_: server.stopping.set())
    return server


def _log_ready(spec: WorkerSpec, seconds: float, rows: int) -> None:
    log.info(
        "%s: %s:%d ready in %.2f s, batches of %d",
        spec.deployment,
        spec.model,
        spec.version,
        seconds,
        rows,
    )
