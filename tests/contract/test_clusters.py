"""Every cluster: start, tell, stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelmill import plugins
from modelmill.cluster.logs import LogLimits, read
from tests.contract.children import Note
from tests.helpers.workers import is_gone

ROOT = str(Path(__file__).parents[2])
NAMES = plugins.names("cluster")
CLUSTERS = [
    name for name in NAMES if hasattr(plugins.load("cluster", name), "start")
]
SPEC = Note("digits", 3)


@pytest.fixture(params=CLUSTERS)
def begin(request, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT}/src")
    started = []

    def start(entry, **options):
        module = plugins.load("cluster", request.param)
        handle = module.start(
            f"tests.contract.children:{entry}",
            SPEC,
            title=f"test: {entry}",
            log=tmp_path / "logs/log.txt",
            **options,
        )
        started.append(handle)
        return handle

    yield start
    for handle in started:
        handle.kill()


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return value


def messages(handle, count):
    got = []
    until(lambda: got.extend(handle.messages()) or len(got) >= count)
    return got


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_cluster(name):
    assert callable(getattr(plugins.load("cluster", name), "start", None))


def test_an_entry_gets_its_spec_reports_logs_and_ends(begin, tmp_path):
    handle = begin("echo", env={"MODELMILL_TEST_WORD": "hello"})
    spec, about = messages(handle, 2)
    assert spec == {"word": "digits", "number": 3}
    assert about == {"pid": handle.pid, "env": "hello"}
    assert (
        until(lambda: handle.exit_code() is not None and handle.exit_code())
        == 3
    )
    assert "said aloud" in (tmp_path / "logs/log.txt").read_text()


def test_messages_never_wait(begin):
    handle = begin("patient")
    before = time.monotonic()
    handle.messages()
    assert time.monotonic() - before < 0.5


def test_it_runs_under_its_title_until_sigterm(begin):
    handle = begin("patient")
    assert messages(handle, 1) == [{"ready": True}]
    assert handle.exit_code() is None
    assert b"test: patient" in Path(f"/proc/{handle.pid}/cmdline").read_bytes()
    handle.terminate()
    until(lambda: handle.exit_code() is not None)
    assert handle.exit_code() == 0
    handle.terminate()  # nothing is there any more, which is fine


def test_a_kill_leaves_nothing_that_it_started(begin):
    handle = begin("parent")
    child = messages(handle, 1)[0]["child"]
    handle.terminate()
    time.sleep(0.05)
    assert handle.exit_code() is None
    assert not is_gone(child)
    handle.kill()
    assert handle.exit_code() == -signal.SIGKILL
    until(lambda: is_gone(child))
    handle.kill()


def test_a_failure_is_in_the_status_and_the_log(begin, tmp_path):
    handle = begin("crash")
    until(lambda: handle.exit_code() is not None)
    assert handle.exit_code() == 1
    assert "it went wrong" in (tmp_path / "logs/log.txt").read_text()


def test_a_log_is_kept_within_limits_and_followed_without_a_gap(
    begin, tmp_path, monkeypatch
):
    for name in CLUSTERS:
        module = plugins.load("cluster", name)
        monkeypatch.setattr(module, "_limits", [])
        module.keep_logs(LogLimits(4096, 50))
    handle = begin("chatty")
    log, seen = tmp_path / "logs/log.txt", b""

    def follow():
        nonlocal seen
        data, at = read(log, len(seen), 1 << 20)
        assert at == len(seen)
        seen += data
        return handle.exit_code() is not None

    until(follow)
    follow()
    count = messages(handle, 1)[0]["count"]
    assert [int(line) for line in seen.split()] == list(range(count))
    assert len(list(log.parent.iterdir())) == 4


def test_an_entry_that_does_not_exist_ends_with_a_status(begin):
    handle = begin("nothing")
    until(lambda: handle.exit_code() is not None)
    assert handle.exit_code() != 0


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_was_started_ends_when_its_parent_is_killed(
    name, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT}/src")
    command = [
        sys.executable,
        str(Path(__file__).with_name("children.py")),
        name,
        str(tmp_path),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert not is_gone(pid)
        os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: is_gone(pid))


def test_starting_many_leaves_no_descriptor_open(begin):
    def count():
        return len(os.listdir("/proc/self/fd"))

    begin("echo").kill()
    before = count()
    for _ in range(3):
        begin("echo").kill()
    assert count() <= before + 3  # one pipe for each handle that still exists
