"""Faults, caused: killed workers, gateways, jobs and platforms, full disks. Nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from modelmill.errors import MillError
from tests.platform.conftest import Platform, until, wait_ready, write_digits

SETTINGS = {"epochs": 14, "batch_size": 8, "learning_rate": 0.003}


class Load:
    """Predictions without a pause, from a thread; collects what was not answered with 200."""

    def __init__(self, platform: Platform, picture: bytes) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(platform.url, platform.headers, picture)
        )

    def __enter__(self) -> "Load":
        self._thread.start()
        until(lambda: self.answers > 5)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self, url: str, headers: dict[str, str], picture: bytes) -> None:
        with httpx2.Client(headers=headers, timeout=30) as client:
            while not self._stop.is_set():
                answer = client.post(f"{url}/models/digits", content=picture)
                if answer.status_code != 200:
                    self.failures.append(f"{answer.status_code} {answer.text}")
                self.answers += 1


def weights(platform: Platform, reference: str) -> str:
    return platform.client.model(reference)["files"]["model.safetensors"]


def train(platform: Platform, name: str) -> int:
    job = platform.client.train(
        name, task="image-classification", data="digits", settings=SETTINGS
    )
    return job["job"]


def epochs(platform: Platform, job: int) -> int:
    text = "".join(platform.client._follow(job, "events", follow=False))
    return sum(
        json.loads(line)["event"] == "epoch" for line in text.splitlines()
    )


def test_a_killed_worker_loses_no_call(launch, seven: Path) -> None:
    platform = launch()
    wait_ready(platform, "digits")
    with Load(platform, seven.read_bytes()) as load:
        for _ in range(2):
            worker = platform.children("modelmill: worker digits")[0]
            worker.kill()
            until(
                lambda pid=worker.pid: [
                    w
                    for w in platform.children("modelmill: worker digits")
                    if w.pid != pid
                ]
            )
            time.sleep(1)
    assert load.failures == []


def test_a_new_version_replaces_the_running_one_without_a_failed_request(
    launch, seven: Path
) -> None:
    platform = launch()
    wait_ready(platform, "digits")
    with Load(platform, seven.read_bytes()) as load:
        for reference in ("digits:2", "digits:1", "digits:2"):
            platform.client.deploy(reference, wait=True)
            platform.client.deploy(
                reference, wait=True
            )  # twice is the same as once
        platform.client.deploy("digits:2", replicas=2, wait=True)
        platform.client.deploy("digits:2", replicas=1, wait=True)
    assert load.failures == []
    until(lambda: len(platform.children("modelmill: worker digits")) == 1)
    assert platform.client.deployment("digits")["serving"] == 2


def test_what_was_undeployed_can_be_deployed_again_at_once(
    launch, seven: Path
) -> None:
    platform = launch()
    wait_ready(platform, "digits")
    for _ in range(3):
        platform.client.undeploy("digits")
        platform.client.deploy("digits:1", wait=True)
        assert (
            platform.client.predict("digits", seven)[0]["output"][0]["label"]
            == "7"
        )


def test_a_killed_gateway_is_replaced(launch, seven: Path) -> None:
    platform = launch()
    wait_ready(platform, "digits")
    platform.children("modelmill: gateway")[0].kill()

    def answers() -> bool:
        try:
            return bool(platform.client.predict("digits", seven))
        except MillError:
            return False

    until(answers)


def test_a_killed_job_resumes_to_the_very_same_weights(launch) -> None:
    platform = launch()
    undisturbed, killed = train(platform, "whole"), train(platform, "broken")
    assert (
        platform.client.job(killed)["state"] == "queued"
    )  # two jobs do not fight for the cores
    assert platform.client.wait(undisturbed)["state"] == "succeeded"
    until(lambda: epochs(platform, killed) >= 3, 90)
    os.kill(platform.client.job(killed)["pid"], signal.SIGKILL)
    until(lambda: platform.client.job(killed)["state"] == "interrupted")
    assert "signal 9" in platform.client.job(killed)["error"]
    platform.client.resume(killed)
    assert platform.client.wait(killed)["state"] == "succeeded"
    assert weights(platform, "whole") == weights(platform, "broken")


def test_a_killed_platform_goes_on_where_it_was(launch, seven: Path) -> None:
    platform = launch()
    job = train(platform, "survivor")
    until(lambda: epochs(platform, job) >= 2, 90)
    family = [
        platform.process.pid,
        *(
            p.pid
            for p in psutil.Process(platform.process.pid).children(
                recursive=True
            )
        ),
    ]
    platform.client.close()
    platform.process.kill()
    platform.process.communicate()
    until(lambda: not any(alive(pid) for pid in family))
    (platform.home / "address").unlink()
    platform.start()
    assert platform.client.wait(job)["state"] == "succeeded"
    assert "resuming at step" in "".join(platform.client.logs(job))
    wait_ready(platform, "digits")
    assert (
        platform.client.predict("digits", seven)[0]["output"][0]["label"] == "7"
    )


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_leaves_nothing_running_and_the_next_start_resumes(
    launch,
) -> None:
    platform = launch()
    job = train(platform, "paused")
    until(lambda: epochs(platform, job) >= 2, 90)
    family = [
        p.pid
        for p in psutil.Process(platform.process.pid).children(recursive=True)
    ]
    printed = platform.stop(signal.SIGINT)
    assert platform.process.returncode == 0
    assert printed.rstrip().endswith("stopped")
    assert not any(alive(pid) for pid in family)
    platform.start()
    assert platform.client.wait(job)["state"] == "succeeded"


def test_cancel_works_at_once_and_leaves_no_orphan(launch) -> None:
    platform = launch()
    running, waiting = train(platform, "one"), train(platform, "two")
    until(lambda: epochs(platform, running) >= 1, 90)
    pid = platform.client.job(running)["pid"]
    assert platform.run("cancel", str(waiting)).returncode == 0
    started = time.monotonic()
    assert "cancelled" in platform.run("cancel", str(running)).stdout
    assert time.monotonic() - started < 5
    assert not alive(pid)
    assert {
        platform.client.job(number)["state"] for number in (running, waiting)
    } == {"cancelled"}
    assert platform.run("cancel", str(running)).returncode == 1


def test_a_failed_job_says_why_in_one_line(launch) -> None:
    platform = launch()
    job = platform.client.train(
        "rare",
        task="text-classification",
        data="reviews",
        recipe="tfidf",
        settings={"gram_count": 1000},
    )
    done = platform.client.wait(job["job"])
    assert done["state"] == "failed"
    assert (
        done["error"]
        == "no n-gram occurs in 1000 texts: the training texts are too few"
    )
    assert done["error"] in "".join(platform.client.logs(job["job"]))


def test_a_changed_model_file_is_never_served(launch) -> None:
    platform = launch()
    digest = platform.client.model("digits:2")["digest"]
    path = (
        platform.home
        / "artifacts"
        / "sha256"
        / digest[:2]
        / digest
        / "model.onnx"
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    wait_ready(platform, "digits")
    done = platform.run("deploy", "digits:2", "--wait")
    assert done.returncode == 1
    assert "model.onnx was changed" in done.stderr
    assert (
        platform.client.deployment("digits")["serving"] == 1
    )  # the old version goes on


def test_a_database_of_a_newer_version_is_refused(
    launch, tmp_path: Path
) -> None:
    import sqlite3

    platform = launch()
    platform.stop()
    with sqlite3.connect(platform.home / "modelmill.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(AssertionError, match="of a newer modelmill"):
        platform.start()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)


def test_a_full_disk_is_named_and_predictions_go_on(
    prepared: Path, small_disk: Path, seven: Path
) -> None:
    home = small_disk / "home"
    shutil.copytree(
        prepared, home, ignore=shutil.ignore_patterns("cache", "jobs")
    )
    platform = Platform(home, MODELMILL_LIMITS__FREE_BYTES="1000000")
    try:
        wait_ready(platform, "digits")
        assert httpx2.get(f"{platform.url}/readyz").status_code == 200
        with pytest.raises(OSError, match="No space"):
            fill(small_disk / "filler")
        until(lambda: httpx2.get(f"{platform.url}/readyz").status_code == 503)
        assert (
            platform.client.predict("digits", seven)[0]["output"][0]["label"]
            == "7"
        )
        done = platform.run(
            "data",
            "add",
            "more",
            str(write_digits(small_disk.parent / "d")),
            "--task",
            "image-classification",
        )
        assert done.returncode == 1
        assert "disk is full" in done.stderr
        (small_disk / "filler").unlink()
        until(lambda: httpx2.get(f"{platform.url}/readyz").status_code == 200)
        platform.client.add_data(
            "more", small_disk.parent / "d", task="image-classification"
        )
    finally:
        platform.stop(signal.SIGTERM)
