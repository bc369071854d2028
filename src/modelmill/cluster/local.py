"""Child processes of this machine: each in a session of its own, ended with its parent."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec


class LocalHandle:
    """A child process and the pipe on which it reports."""

    def __init__(self, process: "subprocess.Popen[bytes]", pipe: int) -> None:
        self._process, self._pipe, self._rest = process, pipe, b""

    @property
    def pid(self) -> int:
        """The process number, which is also that of its group."""
        return self._process.pid

    def messages(self) -> list[dict[str, Any]]:
        """The JSON lines that arrived; never waits."""
        with suppress(BlockingIOError):
            while chunk := os.read(self._pipe, 65536):
                self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    def memory(self) -> int:
        """Bytes that it holds (proc(5), Pss: shared pages are counted in parts)."""
        try:
            text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
            return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration, ValueError):
            return 0

    def terminate(self) -> None:
        """SIGTERM to the process."""
        if self.exit_code() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole group: nothing it started is left."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._pipe)


def start(
    entry: str,
    spec: msgspec.Struct,
    *,
    title: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    fds: tuple[int, ...] = (),
) -> LocalHandle:
    """Start `module:function` in a child; raises `OSError` when the system has no room for it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    command = [
        sys.executable,
        "-P",
        "-m",
        "modelmill.cluster._child",
        entry,
        title,
        str(writing),
        str(os.getpid()),
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(writing, *fds),
            start_new_session=True,  # Ctrl-C reaches the supervisor alone; it ends the children in order
            env={**os.environ, **(env or {})},
        )
    os.close(writing)
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(msgspec.json.encode(spec))
    return LocalHandle(process, reading)
