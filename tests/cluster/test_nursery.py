"""A process that forks for others: an answer that comes too late is nobody's."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from modelmill.cluster import local
from modelmill.cluster.logs import LogLimits, read
from tests.contract.children import Note
from tests.contract.test_clusters import ROOT, until
from tests.helpers.workers import is_gone

ENTRY = "tests.contract.children:patient"
CHILD, LATE = f"test: child of {os.getpid()}", f"test: late of {os.getpid()}"


@pytest.fixture
def nursery(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT}/src")
    monkeypatch.setattr(local, "_nurseries", {})
    local.warm(ENTRY)
    mother = local._nurseries[ENTRY]
    yield mother
    mother._process.kill()
    mother._process.wait()
    mother._link.close()


def test_a_child_of_the_nursery_keeps_its_log_within_limits(
    nursery, tmp_path, monkeypatch
):
    monkeypatch.setattr(local, "_limits", [LogLimits(4096, 50)])
    log = tmp_path / "logs" / "log.txt"
    entry = "tests.contract.children:chatty"
    monkeypatch.setitem(local._nurseries, entry, nursery)
    handle = local.start(entry, Note("x"), title=CHILD, log=log)
    until(lambda: handle.exit_code() is not None)
    (said,) = handle.messages()
    data, _ = read(log, 0, 1 << 30)
    assert [int(line) for line in data.split()] == list(range(said["count"]))
    assert len(list(log.parent.iterdir())) == 4
    handle.kill()


@pytest.fixture
def begin(tmp_path, nursery):
    started = []

    def start():
        started.append(
            local.start(ENTRY, Note("x"), title=CHILD, log=tmp_path / "log.txt")
        )
        return started[-1]

    yield start
    for handle in started:
        handle.kill()


def titled(word):
    """The processes of this title."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(word.encode()):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def parent_of(handle):
    status = Path(f"/proc/{handle.pid}/status").read_text()
    return int(status.split("PPid:")[1].split()[0])


def is_ready(handle):
    return until(handle.messages) == [{"ready": True}]


def asked_by_hand(nursery, number, folder):
    """A request whose answer nobody waits for, as one that was given up."""
    asked = {
        "entry": ENTRY,
        "title": LATE,
        "log": str(folder / "log.txt"),
        "env": {},
        "spec": '{"word": "x"}',
        "number": number,
        "until": time.monotonic() + 60,
    }
    reading, writing = os.pipe()
    socket.send_fds(nursery._link, [json.dumps(asked).encode()], [writing])
    nursery._unanswered.add(number)
    os.close(writing)
    return reading


def test_a_nursery_that_was_stopped_gives_every_handle_its_own_process(
    nursery, begin, monkeypatch
):
    assert is_ready(begin())
    os.kill(nursery._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(local, "FORK_SECONDS", 0.3)
    alone = begin()
    assert is_ready(alone)
    assert parent_of(alone) == os.getpid()
    os.kill(nursery._process.pid, signal.SIGCONT)
    monkeypatch.setattr(local, "FORK_SECONDS", 5.0)
    after = begin()
    assert is_ready(after)
    assert parent_of(after) == nursery._process.pid
    assert len(titled(CHILD)) == 3
    after.terminate()
    until(lambda: after.exit_code() is not None)
    assert after.exit_code() == 0
    assert alone.exit_code() is None


def test_a_late_answer_is_dropped_and_its_fork_ended(nursery, begin, tmp_path):
    assert is_ready(begin())
    reading = asked_by_hand(nursery, 99, tmp_path)
    handle = begin()
    assert is_ready(handle)
    until(lambda: titled(LATE) == [])
    assert not is_gone(handle.pid)
    os.close(reading)


def test_a_late_answer_is_dropped_also_when_nothing_more_is_started(
    nursery, begin, tmp_path
):
    handle = begin()
    reading = asked_by_hand(nursery, 99, tmp_path)
    (late,) = until(lambda: titled(LATE))
    until(lambda: handle.messages() or is_gone(late))
    until(lambda: is_gone(late))
    until(lambda: handle.exit_code() is None and not nursery._dropped)
    os.close(reading)
