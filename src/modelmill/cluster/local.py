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
from dataclasses import dataclass
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

    def __init__(
        self, process: "subprocess.Popen[bytes] | Forked", pipe: int
    ) -> None:
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
        self._process = _start_nursery(modules, theirs.fileno())
        theirs.close()
        ours.settimeout(FORK_SECONDS)
        self._link = ours
        self._codes: dict[int, int] = {}
        self._requests = 0
        self._awaited = 0
        self._answers: dict[int, int] = {}
        self._unanswered: set[int] = set()
        self._dropped: set[int] = set()

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
        number = self._requests
        until = time.monotonic() + FORK_SECONDS
        self._awaited = number
        request = {**fields, "number": number, "until": until}
        socket.send_fds(
            self._link, [json.dumps(request).encode()], [descriptor]
        )
        self._unanswered.add(number)
        self._wait_for(number, until)
        if (pid := self._answers.pop(number, None)) is None:
            raise TimeoutError("the nursery answered too late")
        return Forked(self, pid)

    def _wait_for(self, number: int, until: float) -> None:
        """Until a request is answered; raises `TimeoutError`."""
        while number in self._unanswered:
            rest = until - time.monotonic()
            if rest <= 0 or not self.listen(rest):
                self._awaited = 0
                raise TimeoutError("the nursery does not answer")

    def listen(self, seconds: float) -> bool:
        """Receive one message; False when none came in that time."""
        ready, _, _ = select.select([self._link], [], [], seconds)
        if not ready:
            return False
        data = self._link.recv(PACKET)
        if not data:
            raise ConnectionError("the nursery has ended")
        self._take_in(json.loads(data))
        return True

    def _take_in(self, message: dict[str, int]) -> None:
        """An answer to a request, or the exit status of a child."""
        if "pid" in message:
            self._forked(message["number"], message["pid"])
        elif message["ended"] in self._dropped:
            self._dropped.discard(message["ended"])
        else:
            self._codes[message["ended"]] = message["code"]

    def _forked(self, number: int, pid: int) -> None:
        """Record the answer to a request; the fork of an earlier request is killed."""
        self._unanswered.discard(number)
        if not pid:
            return
        if number == self._awaited:
            self._answers[number] = pid
            self._awaited = 0
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


def _start_nursery(
    modules: tuple[str, ...], descriptor: int
) -> "subprocess.Popen[bytes]":
    """The process, which serves the socket of this descriptor."""
    command = [sys.executable, "-P", "-m", "modelmill.cluster.nursery"]
    return subprocess.Popen(
        [*command, str(descriptor), str(os.getpid()), *modules],
        stdin=subprocess.DEVNULL,
        pass_fds=(descriptor,),
        start_new_session=True,
        env={**os.environ, **ENVIRONMENT},
    )


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
    wanted = Wanted(
        entry, msgspec.json.encode(spec), title, log, dict(env or {})
    )
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        process = None if fds else _forked(wanted, writing)
        return LocalHandle(
            process or _started(wanted, (writing, *fds)), reading
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)


@dataclass(frozen=True)
class Wanted:
    """A child to start: `module:function`, what it gets, its title, log and environment."""

    entry: str
    spec: bytes
    title: str
    log: Path
    env: dict[str, str]


def _forked(wanted: Wanted, pipe: int) -> Forked | None:
    """A child of the entry's nursery; None when there is none, or it fails."""
    nursery = _nurseries.get(wanted.entry)
    if nursery is None:
        return None
    if not nursery.alive:
        log.error("the nursery has ended; starting another")
        nursery = _nurseries[wanted.entry] = Nursery(nursery.modules)
    fields: dict[str, Any] = {
        "entry": wanted.entry,
        "title": wanted.title,
        "log": str(wanted.log),
        "env": wanted.env,
        "limits": [list(limits) for limits in _limits],
        "spec": wanted.spec.decode(),
    }
    try:
        return nursery.fork(fields, pipe)
    except OSError as error:
        log.error("the nursery failed: %s", error)
        return None


def _started(wanted: Wanted, fds: tuple[int, ...]) -> "subprocess.Popen[bytes]":
    """A process started afresh."""
    child = [sys.executable, "-P", "-m", "modelmill.cluster.child"]
    about = [wanted.entry, wanted.title, str(fds[0]), str(os.getpid())]
    for limits in _limits:
        about += [str(wanted.log), *map(str, limits)]
    with wanted.log.open("ab") as output:
        process = subprocess.Popen(
            [*child, *about],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=fds,
            # Ctrl-C reaches the supervisor alone; it ends the children in order
            start_new_session=True,
            env={**os.environ, **wanted.env},
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(wanted.spec)
    return process
