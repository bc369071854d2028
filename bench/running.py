"""A platform of the benchmark's own, and the shared data it measures on."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLI = [sys.executable, "-m", "modelmill.cli"]


def shared(name: str) -> Path | None:
    """A data set of `MODELMILL_SHARED` (../shared), or None when it is not on this machine."""
    path = (
        Path(os.environ.get("MODELMILL_SHARED", ROOT.parent / "shared"))
        / "data"
        / name
    )
    return path if path.exists() else None


class Platform:
    """`modelmill up` on a free port and a home of its own."""

    def __init__(self, home: Path, env: dict[str, str] | None = None) -> None:
        self.home = home
        self.env = env
        self.start()

    def start(self) -> None:
        """Start it and wait for its address."""
        command = [*CLI, "up", "--home", str(self.home), "--port", "0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env=self.env
        )
        while not (self.home / "address").exists():
            if self.process.poll() is not None:
                raise SystemExit("the platform did not start")
            time.sleep(0.01)

    def run(self, *arguments: str) -> Any:
        """A command of the CLI; its JSON."""
        done = subprocess.run(
            [*CLI, *arguments, "--json"],
            capture_output=True,
            text=True,
            env={**os.environ, "MODELMILL_HOME": str(self.home)},
        )
        if done.returncode:
            raise SystemExit(f"modelmill {' '.join(arguments)}: {done.stderr}")
        return json.loads(done.stdout)

    def stop(self) -> None:
        """Drain and end it."""
        self.process.terminate()
        self.process.wait()


@contextmanager
def platform() -> Iterator[Platform]:
    """A platform that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        running = Platform(Path(folder) / "home")
        try:
            yield running
        finally:
            running.stop()


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(
        f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows]
    )
