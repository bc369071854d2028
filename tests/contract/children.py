"""Entries of processes that a cluster starts in tests."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec


class Note(msgspec.Struct):
    """What these entries are told."""

    word: str
    number: int = 0


def echo(spec: bytes, report: Any) -> int:
    """Report the spec twice, say something, end with status 3."""
    report(json.loads(spec))
    report(
        {"pid": os.getpid(), "env": os.environ.get("MODELMILL_TEST_WORD", "")}
    )
    print("said aloud", flush=True)
    return 3


def patient(spec: bytes, report: Any) -> int:
    """Wait for SIGTERM, then end well."""
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    report({"ready": True})
    while not asked:
        time.sleep(0.01)
    return 0


def parent(spec: bytes, report: Any) -> int:
    """Start a process of its own, deaf to SIGTERM, and wait."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"]
    )
    report({"child": child.pid})
    time.sleep(60)
    return 0


def chatty(spec: bytes, report: Any) -> int:
    """Print numbers until the log has gone on in a new file three times; report how many."""
    folder = Path(os.readlink("/proc/self/fd/1")).parent
    number = 0
    for parts in range(1, 4):
        while len(os.listdir(folder)) <= parts:
            for _ in range(100):
                print(f"{number:09d}", flush=True)
                number += 1
            time.sleep(0.005)
    report({"count": number})
    return 0


def crash(spec: bytes, report: Any) -> int:
    """Fail."""
    raise RuntimeError("it went wrong")


def supervise(name: str, folder: str) -> None:
    """Start `patient` on a cluster and wait; run as a program, to be killed."""
    from modelmill import plugins

    handle = plugins.load("cluster", name).start(
        "tests.contract.children:patient",
        Note("x"),
        title="test: patient",
        log=Path(folder) / "log.txt",
    )
    while not handle.messages():
        time.sleep(0.01)
    print(handle.pid, flush=True)
    time.sleep(60)


if __name__ == "__main__":
    supervise(*sys.argv[1:3])
