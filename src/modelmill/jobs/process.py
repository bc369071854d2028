"""What all job processes share: their log, their events, their result, and how they stop.

A job ends in one of three ways: `result.json` with what it made, `result.json` with an error in one
line, or without a result, which means that it was interrupted and can go on from its checkpoint.
"""

import json
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from modelmill.errors import MillError, from_os
from modelmill.types import RESULT, JobSpec, Json

log = logging.getLogger("modelmill.job")

NICE = 5
INTERRUPTED = 75
FLUSH_SECONDS = 0.3


class Interrupted(Exception):
    """The job was stopped; its checkpoint is written."""


class Events:
    """Metrics per step and epoch, as JSON lines that others follow while they are written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell():
            # An earlier run may have been killed in the middle of a line
            self._file.write("\n")
        self._flushed = 0.0

    def write(self, event: str, **values: Any) -> None:
        """One line; steps are written at once but shown in small batches."""
        line = json.dumps(
            {"event": event, "time": round(time.time(), 3), **values},
            ensure_ascii=False,
        )
        self._file.write(line + "\n")
        if event != "step" or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def stage(self, message: str) -> None:
        """What the job begins to do, for people."""
        log.info("%s", message)
        self.write("stage", message=message)

    def counter(self, message: str, total: int) -> Callable[[int], None]:
        """A function that tells how many of `total` items are done, not more often than people can
        read.
        """
        last = [0.0]

        def tell(done: int) -> None:
            if time.monotonic() - last[0] > FLUSH_SECONDS or done == total:
                last[0] = time.monotonic()
                self.write("progress", message=message, done=done, total=total)

        return tell

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


class Stop:
    """Whether the job is to stop (SIGTERM)."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def run(
    spec_bytes: bytes, work: Callable[[JobSpec, Events, Stop], Json]
) -> int:
    """Run a job's work and leave its result; returns the exit status."""
    _set_up()
    spec = msgspec.json.decode(spec_bytes, type=JobSpec)
    folder = Path(spec.folder)
    try:
        _work(spec, work)
    except Interrupted:
        log.info("stopped; the checkpoint is kept")
        return INTERRUPTED
    except Exception as error:
        return _failed(folder, _reason(error))
    return 0


def _work(spec: JobSpec, work: Callable[[JobSpec, Events, Stop], Json]) -> None:
    folder = Path(spec.folder)
    events = Events(folder / "events.jsonl")
    started = time.monotonic()
    result = work(spec, events, Stop())
    result["seconds"] = round(time.monotonic() - started, 2)
    write_result(folder, result)
    events.write("end")
    events.close()


def _reason(error: Exception) -> str:
    """Why a job failed, in a line; the log shows where, if it should not have happened."""
    if isinstance(error, MillError):
        return error.message
    if isinstance(error, ModuleNotFoundError):
        return f"the package '{error.name}' is not installed: pip install 'modelmill[train]'"
    if isinstance(error, MemoryError):
        return "the memory was not enough; try a smaller batch_size or smaller inputs"
    if isinstance(error, OSError):
        return from_os(error, "the job").message
    log.error("the job failed", exc_info=error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _set_up() -> None:
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stdout,
        force=True,
    )
    logging.getLogger("modelmill").setLevel(logging.INFO)
    # Libraries' notes to their callers would only puzzle the reader of a log
    warnings.simplefilter("ignore")
    os.nice(NICE)  # predictions go before training


def _failed(folder: Path, message: str) -> int:
    log.error("%s", message)
    for draft in folder.glob("*.draft"):
        shutil.rmtree(draft, ignore_errors=True)
    try:
        write_result(folder, {"error": message})
    except OSError:
        # Not even the reason can be written: the supervisor finds the job interrupted and its log
        # empty.
        return INTERRUPTED
    return 1


def write_result(folder: Path, result: Json) -> None:
    """The result, whole or not at all."""
    draft = folder / f"{RESULT}.tmp"
    draft.write_bytes(
        msgspec.json.format(msgspec.json.encode(result), indent=1)
    )
    os.rename(draft, folder / RESULT)


def save_pictures(folder: Path, pictures: dict[str, bytes]) -> None:
    """Write pictures by name; raises `StorageFull`."""
    try:
        os.makedirs(folder, exist_ok=True)
        for name, data in pictures.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise from_os(error, "writing the pictures") from error
