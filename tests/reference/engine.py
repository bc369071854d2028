"""A small engine that a third party might install: models that sleep, fail, crash, hang, eat memory
and count.

`plugin.install` copies this file beside an entry point; nothing of the tests is imported here. A
bundle's `model.json` says which of the kinds below it is.
"""

import ctypes
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelmill.engines.base import Arrays, Engine, Sample, sample_rows
from modelmill.errors import BundleCorrupt, InvalidInput, ModelFailed
from modelmill.types import TensorSpec

FILE = "model.json"
LEDGER, SECONDS = "REFERENCE_LEDGER", "REFERENCE_SECONDS"
TRIGGER = -1.0
"""The value that makes a model of the kinds `raises`, `crashes`, `hangs` and `eats` do so; others
are seconds.
"""
LONGEST_SECONDS = 300.0
"""Longer sleeps are skipped: the platform tries a loaded model with extreme values."""
OTHER_TRIGGER = -2.0
"""The same in another way: `hangs` holds the interpreter's lock, so that no other thread of its
process goes on.
"""


def seconds_of(value: float) -> float:
    """How long a value lets its row sleep."""
    return max(0.0, value) if value <= LONGEST_SECONDS else 0.0


class Slow:
    """Sleeps for each row the seconds that it names, one row after the other."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """`seconds` FP32 [n, 1] -> `slept` FP32 [n, 1]."""
        seconds = arrays["seconds"]
        for row in seconds.ravel():
            time.sleep(seconds_of(float(row)))
        return {"slept": seconds.copy()}


class Echo(Slow):
    """Gives back any bytes, which ONNX can't: its strings are UTF-8."""

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """`input` BYTES [n, m] -> `output`."""
        return {"output": arrays["input"].copy()}


class Fails(Slow):
    """Never answers."""

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """Raises `ModelFailed`."""
        raise ModelFailed("this model always fails")


class Mined(Slow):
    """Sleeps the seconds of its largest row and echoes them; a row with the trigger sets it off."""

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """`value` FP32 [n, 1] -> `value`."""
        value = arrays["value"]
        for trigger in (TRIGGER, OTHER_TRIGGER):
            if np.any(value == trigger):
                self.explode(trigger)
        time.sleep(seconds_of(float(value.max(initial=0))))
        return {"value": value.copy()}

    def explode(self, trigger: float) -> None:
        """What the trigger does."""
        raise NotImplementedError


class Crashes(Mined):
    """Ends its process as a fault in native code would."""

    def explode(self, trigger: float) -> None:
        """Abort."""
        os.abort()


class Raises(Mined):
    """Fails on one row, as an engine should or as one that forgot to."""

    def explode(self, trigger: float) -> None:
        """Raises `ValueError`, or `ModelFailed` on the other trigger."""
        if trigger == TRIGGER:
            raise ValueError("an error that the engine did not foresee")
        raise ModelFailed("this row can't be run")


class Hangs(Mined):
    """Never comes back."""

    def explode(self, trigger: float) -> None:
        """Sleep for ever."""
        if trigger == OTHER_TRIGGER:
            ctypes.PyDLL(None).sleep(1 << 30)
        threading.Event().wait()


class Eats(Mined):
    """Takes memory until its process is killed, within a limit that protects the machine."""

    def explode(self, trigger: float) -> None:
        """Take all there is, then die as the kernel would kill it."""
        held = []
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + int(
            self._settings.get("bytes", 256 << 20)
        )
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        try:
            while True:
                held.append(np.ones(2 << 20))
        except MemoryError:
            os.kill(os.getpid(), signal.SIGKILL)


class Counts(Slow):
    """Writes down the id of every row that it runs, and answers `3 * id + 1`, after
    REFERENCE_SECONDS (0).

    The platform itself tries a model before calls come, in the main thread, and with zeros: that
    counts for nothing and costs nothing.
    """

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """`id` INT64 [n, 1] -> `id`, `answer` INT64 [n, 1]; the ids go to the file named by
        REFERENCE_LEDGER.
        """
        ids = arrays["id"]
        if (
            threading.current_thread() is threading.main_thread()
            or not ids.any()
        ):
            return {"id": ids.copy(), "answer": ids * 3 + 1}
        ledger = os.open(
            os.environ.get(LEDGER, os.devnull),
            os.O_WRONLY | os.O_APPEND | os.O_CREAT,
            0o600,
        )
        try:
            os.write(
                ledger,
                "".join(f"{number}\n" for number in ids.ravel()).encode(),
            )
        finally:
            os.close(ledger)
        time.sleep(float(os.environ.get(SECONDS, "0")))
        return {"id": ids.copy(), "answer": ids * 3 + 1}


KINDS = {
    "slow": Slow,
    "echo": Echo,
    "fails": Fails,
    "raises": Raises,
    "crashes": Crashes,
    "hangs": Hangs,
    "eats": Eats,
    "counts": Counts,
}


COLUMNS = {
    "FP32": ("slow", "seconds", "slept"),
    "INT64": ("counts", "id", "answer"),
    "BYTES": ("echo", "input", "output"),
}


class ReferenceEngine(Engine):
    """What `model.json` says."""

    READS = (FILE,)
    DATATYPES = tuple(COLUMNS)

    def open(self, folder, threads, device="cpu", precision="", signature=None):
        """The model of a bundle; raises `BundleCorrupt` for one that is not of this engine."""
        if device != "cpu" or precision not in ("", *self.PRECISIONS):
            raise InvalidInput(
                f"the reference engine runs on 'cpu' in fp32, not on '{device}' in '{precision}'"
            )
        try:
            told = json.loads((folder / FILE).read_text())
            return KINDS[told["kind"]](told)
        except (OSError, ValueError, KeyError) as error:
            raise BundleCorrupt(f"{FILE} can't be read: {error!r}") from error

    def sample(self, folder, datatype):
        """A model of the kind that takes this data type."""
        kind, given, answered = COLUMNS[datatype]
        (folder / FILE).write_text(json.dumps({"kind": kind}))
        rows = sample_rows(datatype)[:, :1]
        if datatype == "FP32":
            rows = rows / 1000
        answer = rows * 3 + 1 if kind == "counts" else rows
        return Sample(
            [TensorSpec(name=given, datatype=datatype, shape=[-1, 1])],
            [TensorSpec(name=answered, datatype=datatype, shape=[-1, 1])],
            {given: rows},
            {answered: answer},
        )


ENGINE = ReferenceEngine()
