"""How long things take to start and how much memory they hold: `python -m bench.start`."""

import statistics
import subprocess
import time

import httpx2
import psutil

from bench.running import CLI, Platform, platform, shared, table

RUNS = 9


def measure() -> str:
    """Help text, platform with models, resident memory; returns a Markdown table."""
    rows = [
        _row(
            "`modelmill --help`, median of 9",
            statistics.median(_help() for _ in range(RUNS)),
            0.3,
            "s",
        )
    ]
    with platform() as running:
        path = shared("mnist")
        if path is None:
            raise SystemExit(
                "this benchmark deploys the CNN of MNIST; MODELMILL_SHARED names no folder that "
                "has it"
            )
        running.run(
            "data", "add", "mnist", str(path), "--task", "image-classification"
        )
        options = [
            "--task",
            "image-classification",
            "--data",
            "mnist",
            "--recipe",
            "cnn",
            "--set",
            "epochs=1",
            "--wait",
        ]
        running.run("train", "mnist", *options)
        running.run("deploy", "mnist", "--wait")
        times = []
        for _ in range(3):
            running.stop()
            started = time.perf_counter()
            running.start()
            _wait(running)
            times.append(time.perf_counter() - started)
        rows.append(
            _row(
                "start with a deployed model to its first readiness, median of 3",
                statistics.median(times),
                3,
                "s",
            )
        )
        rows.append(
            _row(
                "resident, gateway and one worker of the CNN, after 200 predictions",
                _memory(running),
                250,
                "MB",
            )
        )
    return table(["what", "measured", "bar"], rows)


def _help() -> float:
    started = time.perf_counter()
    subprocess.run([*CLI, "--help"], capture_output=True, check=True)
    return time.perf_counter() - started


def _headers(running: Platform) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {(running.home / 'admin.key').read_text().strip()}"
    }


def _wait(running: Platform) -> None:
    url = (running.home / "address").read_text().strip()
    while not httpx2.get(
        f"{url}/v2/models/mnist/ready", headers=_headers(running)
    ).is_success:
        time.sleep(0.01)


def _memory(running: Platform) -> float:
    """Megabytes (10^6) that the gateway and the worker hold, pages they share counted in both."""
    url = (running.home / "address").read_text().strip()
    body = {
        "inputs": [
            {
                "name": "image",
                "shape": [1, 28, 28, 1],
                "datatype": "UINT8",
                "data": [0] * 784,
            }
        ]
    }
    with httpx2.Client(headers=_headers(running)) as client:
        for _ in range(200):
            client.post(
                f"{url}/v2/models/mnist/infer", json=body
            ).raise_for_status()
    total = 0
    for child in psutil.Process(running.process.pid).children():
        if " ".join(child.cmdline()).startswith(
            ("modelmill: gateway", "modelmill: worker")
        ):
            total += child.memory_info().rss
    return total / 1e6


def _row(what: str, value: float, bar: float, unit: str) -> list[str]:
    return [
        what,
        f"**{value:.2f} {unit}**" if value < 10 else f"**{value:.0f} {unit}**",
        f"{bar} {unit} {'met' if value <= bar else 'MISSED'}",
    ]


if __name__ == "__main__":
    print(measure())
