"""Child processes on this machine."""

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from modelmill.cluster.logs import LogLimits

log = logging.getLogger("modelmill.node")

ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of the nursery: allocator and numpy read it at start, so children can't change it."""
FORK_SECONDS = 5.0
PACKET = 1 << 16


class LocalHandle:
    """A child process and the pipe on which it reports."""

    def __init__(self, process: "subprocess.Popen[bytes] | Forked", pipe: int) -> None:
        self._process = process
        self._pipe = pipe
        self._rest = b""

    @property
    def pid(self) -> int:
        """The process number, which is also that of its group."""
        return self._process.pid

    def messages(self) -> list[dict[str, Any]]:
        """The JSON messages that arrived since the last call; never waits."""
        for nursery in _nurseries.values():
            nursery.drop_late()
        with suppress(BlockingIOError):
            while chunk := os.read(self._pipe, 65536):
                self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    def memory(self) -> int:
        """Bytes of memory (proc(5), Pss: shared pages are divided among their users)."""
        try:
            text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
            return next(
                int(line.split()[1]) << 10
                for line in text.splitlines()
                if line.startswith("Pss:")
            )
        except (OSError, StopIteration, ValueError):
            return 0

    def terminate(self) -> None:
        """SIGTERM to the process."""
        if self.exit_code() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._pipe)


class Forked:
    """A child of the nursery; as much of `Popen` as a handle needs."""

    def __init__(self, nursery: "Nursery", pid: int) -> None:
        self._nursery, self.pid = nursery, pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """None while it runs."""
        if self._code is None:
            self._code = self._nursery.ended(self.pid)
        return self._code

    def send_signal(self, number: int) -> None:
        """A signal to the process; it is not yet reaped, so the number is still its own."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Until it has ended."""
        while self.poll() is None:
            self._nursery.listen(0.05)
        return self._code or 0


class Nursery:
    """The process that forks, see `nursery.py`."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.modules = modules
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [
            sys.executable,
            "-P",
            "-m",
            "modelmill.cluster.nursery",
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        self._process = subprocess.Popen(
            [*command, *modules],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            env={**os.environ, **ENVIRONMENT},
        )
        theirs.close()
        ours.settimeout(FORK_SECONDS)
        self._link, self._codes = ours, dict[int, int]()
        self._requests = self._awaited = 0
        self._answers: dict[int, int] = {}
        self._unanswered, self._dropped = set[int](), set[int]()

    @property
    def alive(self) -> bool:
        """Whether the process runs; its children end with it."""
        return self._process.poll() is None

    def fork(self, fields: dict[str, Any], descriptor: int) -> Forked:
        """A child that runs an entry; raises `OSError` when there is no answer in time.

        A request has a number, which its answer repeats: a late answer is about another request.
        It also says until when it holds, so that nothing is forked that nobody waits for.
        """
        self._requests += 1
        number, until = self._requests, time.monotonic() + FORK_SECONDS
        self._awaited = number
        request = {**fields, "number": number, "until": until}
        socket.send_fds(self._link, [json.dumps(request).encode()], [descriptor])
        self._unanswered.add(number)
        while number in self._unanswered:
            rest = until - time.monotonic()
            if rest <= 0 or not self.listen(rest):
                self._awaited = 0
                raise TimeoutError("the nursery does not answer")
        if (pid := self._answers.pop(number, None)) is None:
            raise TimeoutError("the nursery answered too late")
        return Forked(self, pid)

    def listen(self, seconds: float) -> bool:
        """Receive one message; False when none came in that time."""
        ready, _, _ = select.select([self._link], [], [], seconds)
        if not ready:
            return False
        data = self._link.recv(PACKET)
        if not data:
            raise ConnectionError("the nursery has ended")
        message = json.loads(data)
        if "pid" in message:
            self._forked(message["number"], message["pid"])
        elif message["ended"] in self._dropped:
            self._dropped.discard(message["ended"])
        else:
            self._codes[message["ended"]] = message["code"]
        return True

    def _forked(self, number: int, pid: int) -> None:
        """Record the answer to a request; the fork of an earlier request is killed."""
        self._unanswered.discard(number)
        if not pid:
            return
        if number == self._awaited:
            self._answers[number], self._awaited = pid, 0
            return
        log.warning("the nursery forked %d too late: it is ended", pid)
        self._dropped.add(pid)
        with suppress(OSError):
            self._link.send(json.dumps({"end": pid}).encode())

    def drop_late(self) -> None:
        """Receive late answers, also when no request is pending."""
        with suppress(OSError):
            while self._unanswered and self.listen(0):
                pass

    def ended(self, pid: int) -> int | None:
        """The exit status of a child; None while it runs."""
        try:
            while self.listen(0):
                pass
        except OSError:
            return self._codes.pop(pid, -signal.SIGKILL)  # they end with it
        return self._codes.pop(pid, None)


_nurseries: dict[str, Nursery] = {}
_limits: list[LogLimits] = []
"""Those of logs, once they were told."""


def warm(entry: str, *modules: str) -> None:
    """Start a nursery for `module:function`: a process that imports it and the modules, and
    forks.
    """
    _nurseries[entry] = Nursery((entry.partition(":")[0], *modules))


def keep_logs(limits: LogLimits) -> None:
    """Keep the logs of what is started from now on within limits."""
    _limits[:] = [limits]


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
    try:
        process = (
            _forked(entry, spec, title, log, env or {}, writing) if not fds else None
        )
        return LocalHandle(
            process or _started(entry, spec, title, log, env or {}, (writing, *fds)),
            reading,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)


def _forked(
    entry: str,
    spec: msgspec.Struct,
    title: str,
    log_file: Path,
    env: Mapping[str, str],
    pipe: int,
) -> Forked | None:
    """A child of the entry's nursery; None when there is none, or it fails."""
    nursery = _nurseries.get(entry)
    if nursery is None:
        return None
    if not nursery.alive:
        log.error("the nursery has ended; starting another")
        nursery = _nurseries[entry] = Nursery(nursery.modules)
    fields: dict[str, Any] = {
        "entry": entry,
        "title": title,
        "log": str(log_file),
        "env": dict(env),
    }
    fields["limits"] = [list(limits) for limits in _limits]
    try:
        return nursery.fork(
            {**fields, "spec": msgspec.json.encode(spec).decode()}, pipe
        )
    except OSError as error:
        log.error("the nursery failed: %s", error)
        return None


def _started(
    entry: str,
    spec: msgspec.Struct,
    title: str,
    log_file: Path,
    env: Mapping[str, str],
    fds: tuple[int, ...],
) -> "subprocess.Popen[bytes]":
    """A process started afresh."""
    child = [sys.executable, "-P", "-m", "modelmill.cluster.child"]
    kept = [text for limits in _limits for text in (str(log_file), *map(str, limits))]
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            [*child, entry, title, str(fds[0]), str(os.getpid()), *kept],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=fds,
            # Ctrl-C reaches the supervisor alone; it ends the children in order
            start_new_session=True,
            env={**os.environ, **env},
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(msgspec.json.encode(spec))
    return process
