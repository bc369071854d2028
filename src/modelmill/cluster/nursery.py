"""The fork server (nursery): it has imported what workers need and forks them in a fraction of the
time of a start.

It has one thread and no state, so a fork is as good as a fresh process; workers share the memory
of imported code. Arguments: the descriptor of its socket,
the parent's pid, modules to import.

A request is one packet, JSON with its number and the descriptor on which the child reports. Answers
are `{"pid", "number"}` (the pid is 0 when the time of the request has passed) and, whenever a child
ends, `{"ended", "code"}`. The packet `{"end"}` ends a child that nobody waits for.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from modelmill.cluster.child import Report, die_with_parent
from modelmill.cluster.logs import LogLimits, keep

PACKET = 1 << 20


def main() -> int:
    """Import, then fork on request until the parent closes the socket."""
    descriptor, parent, *modules = sys.argv[1:]
    setproctitle("modelmill: nursery")
    die_with_parent(int(parent))
    link = socket.socket(fileno=int(descriptor))
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # else the first collection in every child would copy all pages
    inherited = _wake_on_ended_children()
    # It ends with its parent, or when the socket closes.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _fork_on_request(link, inherited)
    return 0


def _wake_on_ended_children() -> tuple[int, int]:
    """A pipe that can be read as soon as a child has ended: its ends."""
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading, writing


def _fork_on_request(link: socket.socket, inherited: tuple[int, int]) -> None:
    """Serve the parent until it closes the socket."""
    reading, _ = inherited
    watched: list[Any] = [link, reading]
    children: set[int] = set()
    while True:
        ready, _, _ = select.select(watched, [], [])
        if reading in ready:
            with suppress(BlockingIOError):
                os.read(reading, 4096)
            _reap(link, children)
        if link in ready and not _serve(link, inherited, children):
            return


def _serve(
    link: socket.socket, inherited: tuple[int, int], children: set[int]
) -> bool:
    """Fork or end one child; False when the parent has gone."""
    data, descriptors, _, _ = socket.recv_fds(link, PACKET, 1)
    if not data:
        return False
    request = json.loads(data)
    if "end" in request:
        if (
            request["end"] in children
        ):  # not yet reaped: the number is still its own
            os.kill(request["end"], signal.SIGKILL)
        return True
    pid = 0
    if time.monotonic() <= request["until"]:
        pid = _fork(link, inherited, request, descriptors[0])
        children.add(pid)
    for end in descriptors:
        os.close(end)
    link.send(json.dumps({"pid": pid, "number": request["number"]}).encode())
    return True


def _fork(
    link: socket.socket,
    inherited: tuple[int, int],
    request: dict[str, Any],
    pipe: int,
) -> int:
    """A child that runs the request and reports on the pipe; its pid."""
    parent_pid = os.getpid()
    pid = os.fork()
    if not pid:
        signal.set_wakeup_fd(-1)
        link.close()
        for end in inherited:
            os.close(end)
        os._exit(_run_child(request, pipe, parent_pid))
    return pid


def _reap(link: socket.socket, children: set[int]) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            children.discard(pid)
            link.send(
                json.dumps(
                    {"ended": pid, "code": os.waitstatus_to_exitcode(status)}
                ).encode()
            )


def _run_child(request: dict[str, Any], pipe: int, parent: int) -> int:
    """Run the entry in a child as in a fresh process; returns its exit status."""

    def report(message: dict[str, Any]) -> None:
        os.write(pipe, json.dumps(message).encode() + b"\n")

    try:
        _set_up_child(request, parent)
        return _run(request, report)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()


def _set_up_child(request: dict[str, Any], parent: int) -> None:
    """Group, signals, log, environment and title of a process of its own."""
    os.setsid()  # Ctrl-C reaches the supervisor alone
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    _write_to(request["log"])
    os.environ.update(request["env"])
    setproctitle(request["title"])
    die_with_parent(parent)
    for limits in request.get("limits", ()):
        keep(Path(request["log"]), LogLimits(*limits))


def _write_to(log: str) -> None:
    """Output goes into the log, and there is no input."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


def _run(request: dict[str, Any], report: Report) -> int:
    module, _, function = request["entry"].partition(":")
    entry = getattr(importlib.import_module(module), function)
    return int(entry(request["spec"].encode(), report) or 0)


if __name__ == "__main__":
    sys.exit(main())
