"""A real platform: `modelmill up` in a process of its own, on a free port, with a home of its
own.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from modelmill import Client
from tests.reference import home as reference

START_SECONDS = 60
WORDS = {
    "good": "lovely bright warm funny great charming superb moving fresh tender",
    "bad": "dull boring weak awful bland tired clumsy poor lifeless tedious",
}


FILLERS = ["the", "a", "film", "story", "plot", "this", "was", "it"]


class Platform:
    """One running platform and the client that speaks to it."""

    def __init__(self, home: Path, *options: str, **env: str) -> None:
        self.home, self._options = home, options
        self._env = {**os.environ, **env}
        self._env.pop("MODELMILL_URL", None)
        self._env.pop("MODELMILL_KEY", None)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "modelmill.cli",
                "up",
                "--home",
                str(self.home),
                "--port",
                "0",
                *self._options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._env,
        )
        until(
            lambda: (
                (self.home / "address").exists()
                or self.process.poll() is not None
            ),
            START_SECONDS,
        )
        assert self.process.poll() is None, self.process.communicate()[0]
        self.client = Client(home=self.home)

    @property
    def url(self) -> str:
        return self.client.url

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.client.key}"}

    def children(self, title: str) -> list[psutil.Process]:
        """Live child processes whose title begins so."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if (
                    " ".join(child.cmdline()).startswith(title)
                    and child.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def run(
        self, *arguments: str, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """A command of the CLI against this platform."""
        env = {**self._env, "MODELMILL_HOME": str(self.home)}
        command = [sys.executable, "-m", "modelmill.cli", *arguments]
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            env=env,
            timeout=120,
        )

    def stop(self, number: int = signal.SIGINT) -> str:
        """End it by a signal; returns what it printed."""
        self.client.close()
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[0]

    def end(self) -> None:
        """Stop it if it still runs, and let go of it."""
        if self.process.poll() is None:
            self.stop(signal.SIGTERM)
        elif self.process.stdout is not None:
            self.client.close()
            self.process.stdout.close()


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


def write_digits(folder: Path, count: int = 500) -> Path:
    """Real scans of digits (scikit-learn's) as an image folder."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (scan, label) in enumerate(
        zip(digits.images[:count], digits.target[:count], strict=True)
    ):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((scan * 255 / 16).astype(np.uint8)).save(
            folder / str(label) / f"{number}.png"
        )
    return folder


def write_reviews(folder: Path, count: int = 300) -> Path:
    """Made-up reviews as a CSV."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["review,label"]
    for number in range(count):
        label = ("good", "bad")[number % 2]
        words = rng.sample(WORDS[label].split(), 3) + rng.sample(
            ["the", "a", "film", "story", "plot", "this", "was", "it"], 4
        )
        rng.shuffle(words)
        lines.append(f"{' '.join(words)} {number},{label}")
    (folder / "reviews.csv").write_text("\n".join(lines) + "\n")
    return folder / "reviews.csv"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped home with two data sets, two versions of a digit model and a text model, both
    deployed.
    """
    folder = tmp_path_factory.mktemp("prepared")
    platform = Platform(folder / "home")
    client = platform.client
    client.add_data(
        "digits", write_digits(folder / "digits"), task="image-classification"
    )
    client.add_data(
        "reviews", write_reviews(folder / "reviews"), task="text-classification"
    )
    settings = {"epochs": 12, "batch_size": 32, "learning_rate": 0.005}
    for seed in (0, 1):
        client.train(
            "digits",
            task="image-classification",
            data="digits",
            settings={**settings, "seed": seed},
            wait=True,
        )
    client.train(
        "reviews",
        task="text-classification",
        data="reviews",
        recipe="tfidf",
        wait=True,
    )
    client.deploy("digits:1", wait=True)
    client.deploy("reviews", wait=True)
    platform.stop()
    return folder / "home"


@pytest.fixture(scope="session")
def platform(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """A running platform that tests share: they leave it as they found it."""
    home = tmp_path_factory.mktemp("shared") / "home"
    shutil.copytree(prepared, home)
    running = Platform(home)
    for name in ("digits", "reviews"):
        wait_ready(running, name)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def reference_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped home with the reference models that misbehave, and a folder `site` in which their
    engine lies.
    """
    folder = tmp_path_factory.mktemp("reference")
    platform = Platform(
        folder / "home", **reference.with_engine(folder / "site")
    )
    reference.bring(platform.client, folder / "made", reference.MISBEHAVING)
    for mark in (1, 2):
        platform.client.import_model(
            "marked", reference.marked(folder / f"{mark}", mark)
        )
    for kind in ("crashes", "fails"):  # version 2 of this model is a bad one
        platform.client.import_model("worsens", folder / "made" / kind)
    platform.stop()
    return folder


@pytest.fixture
def launch_reference(
    reference_home: Path, tmp_path: Path
) -> Iterator[Callable[..., Platform]]:
    """Start a platform of the test's own with the reference models, none deployed; rows counted in
    `ledger`.
    """
    started: list[Platform] = []

    def start(*options: str, **env: str) -> Platform:
        home = tmp_path / f"reference{len(started)}"
        shutil.copytree(
            reference_home / "home", home, ignore=shutil.ignore_patterns("run")
        )
        given = reference.with_engine(reference_home / "site") | {
            "REFERENCE_LEDGER": str(tmp_path / "ledger")
        }
        started.append(Platform(home, *options, **given, **env))
        return started[-1]

    yield start
    for platform in started:
        platform.end()


@pytest.fixture
def launch(prepared: Path, tmp_path: Path) -> Iterator[Callable[..., Platform]]:
    """Start a platform of the test's own: on a copy of the prepared home, or on an empty one."""
    started: list[Platform] = []

    def start(*, empty: bool = False, **env: str) -> Platform:
        home = tmp_path / f"home{len(started)}"
        if not empty:
            shutil.copytree(prepared, home)
        started.append(Platform(home, **env))
        return started[-1]

    yield start
    for platform in started:
        platform.end()


def wait_ready(platform: Platform, name: str) -> None:
    """Wait until a deployment answers."""
    client = platform.client
    until(lambda: client._is_routed(client.deployment(name)))


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    """A scanned seven, as PNG."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    path = tmp_path / "seven.png"
    Image.fromarray((digits.images[7] * 255 / 16).astype(np.uint8)).save(path)
    return path


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/platform/" in str(item.path):
            mine = (
                "reference"
                if "reference_home" in getattr(item, "fixturenames", ())
                else "platform"
            )
            item.add_marker(pytest.mark.xdist_group(mine))
