"""What a training and predictions do to one another and to a machine that others use:
`python -m bench.sharing [training] [serving] [--seconds S] [--rounds N]`.

`training`: a small CNN in the loop of a job, alone and with one core kept busy by another process,
with the environment that jobs have and with the one they had before their threads slept when they
wait; alternately, each run in a process of its own. `serving`: the slowest hundredth of the answers
of a CNN at 8 connections, alone and while a training runs beside it.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from bench.load import drive, request_of, summary
from bench.running import Platform, platform, shared, table

ROUNDS, SECONDS, WARMUP = 3, 8.0, 1.0
CONNECTIONS = 8
SETTINGS = ("old", "new")
BUSY = ("alone", "busy")
TRAINING_BAR, SERVING_BAR = 2.5, 3.0
MODEL = "mnist"


def measure(arguments: list[str]) -> str:
    """What the arguments ask for, as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    told = parser.parse_args(arguments)
    if unknown := [part for part in told.parts if part not in PARTS]:
        parser.error(
            f"unknown: {', '.join(unknown)}; there are: {', '.join(PARTS)}"
        )
    rows = []
    for name, part in PARTS.items():
        if name in told.parts or not told.parts:
            rows += part(told.seconds, told.rounds)
    return table(["what", "alone", "shared", "slower", "bar"], rows)


# ---- a training beside a busy core


def _training(seconds: float, rounds: int) -> list[list[str]]:
    speeds: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for setting in SETTINGS:
            for how in BUSY:
                speed = _trained(setting, how, seconds)
                speeds.setdefault((setting, how), []).append(speed)
                print(
                    number, setting, how, f"{speed:,.0f} samples/s", flush=True
                )
    return [_training_row(setting, speeds) for setting in SETTINGS]


def _training_row(
    setting: str, speeds: dict[tuple[str, str], list[float]]
) -> list[str]:
    alone, busy = (statistics.median(speeds[setting, how]) for how in BUSY)
    return [
        f"training with one core kept busy by another process, {setting} setting",
        f"{alone:,.0f} samples/s",
        f"{busy:,.0f} samples/s",
        f"{alone / busy:.2f}",
        _verdict(alone / busy, TRAINING_BAR) if setting == "new" else "",
    ]


def _trained(setting: str, how: str, seconds: float) -> float:
    """Samples a second of a training of that many seconds, in a process of its own."""
    from modelmill.control.jobs import ENVIRONMENT

    given = dict(ENVIRONMENT)
    if setting == "old":
        del given["GOMP_SPINCOUNT"]
    threads = os.cpu_count() or 1
    env = {**os.environ, **given, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "bench.sharing", "train", str(seconds)]
    with _busy_core() if how == "busy" else _nothing():
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, check=True
        )
    return float(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def _busy_core() -> Iterator[None]:
    """A process that takes all it gets of one core, and leaves the others alone."""
    core = min(os.sched_getaffinity(0))
    code = (
        f"import os\nos.sched_setaffinity(0, [{core}])\nparent = os.getppid()\n"
        "while os.getppid() == parent: pass"
    )
    hog = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        hog.kill()
        hog.wait()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def train(seconds: float) -> float:
    """The loop of a training job, as a job calls it, for a time; returns samples a second."""
    import msgspec
    import torch

    from bench.training import pictures
    from modelmill.data.cache import Arrays
    from modelmill.jobs.loop import Loop
    from modelmill.jobs.objective import objective
    from modelmill.jobs.process import NICE, Events, Stop
    from modelmill.tasks.base import Signature, task_named
    from modelmill.tasks.decoding.image_decoder import Preprocessing
    from modelmill.tasks.image_classification.recipes import cnn
    from modelmill.types import TensorSpec

    os.nice(NICE)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    data = {
        split: Arrays({"image": images}, {"label": labels})
        for split, (images, labels) in pictures().items()
    }
    few = Arrays(
        *(
            {k: v[:500] for k, v in part.items()}
            for part in _parts(data["test"])
        )
    )
    spec = TensorSpec(name="image", datatype="UINT8", shape=[-1, 28, 28, 1])
    how = Preprocessing(
        height=28, width=28, color="grey", mean=(0.1307,), std=(0.3081,)
    )
    torch.manual_seed(0)
    network = cnn.network(
        cnn.Settings(), Signature(inputs=[spec], classes=10, preprocessing=how)
    )
    settings = msgspec.structs.replace(
        cnn.TRAIN,
        epochs=1000,
        epoch_steps=20,
        time=f"{seconds:g}s",
        batch_size=128,
    )
    with tempfile.TemporaryDirectory() as folder:
        events = Events(Path(folder) / "events.jsonl")
        aim = objective(task_named("image-classification"), cnn)
        done = Loop(
            network,
            data["train"],
            few,
            settings,
            aim,
            None,
            Path(folder),
            events,
            Stop(),
        ).run()
        events.close()
    # The first epoch is slower: memory and threads are set up.
    speeds = [row["samples_per_second"] for row in done.history]
    return statistics.median(speeds[1:] or speeds)


def _parts(data: Any) -> tuple[Any, Any]:
    return data.arrays, data.targets


# ---- predictions beside a training


def _serving(seconds: float, rounds: int) -> list[list[str]]:
    path = shared("mnist")
    if path is None:
        raise SystemExit(
            "this benchmark deploys the CNN of MNIST; MODELMILL_SHARED names no folder that has it"
        )
    with platform() as running:
        running.run(
            "data", "add", MODEL, str(path), "--task", "image-classification"
        )
        running.run("train", MODEL, *_options("epochs=1"), "--wait")
        running.run("deploy", MODEL, "--wait")
        found: dict[str, list[float]] = {how: [] for how in BUSY}
        for number in range(rounds):
            found["alone"].append(_slowest(running, seconds))
            job = _begin(running)
            try:
                found["busy"].append(_slowest(running, seconds))
            finally:
                running.run("cancel", str(job))
            print(
                number,
                {how: f"{times[-1]:.1f} ms" for how, times in found.items()},
            )
    alone, busy = (statistics.median(found[how]) for how in BUSY)
    return [
        [
            f"p99 of a CNN at {CONNECTIONS} connections while a training runs",
            f"{alone:.1f} ms",
            f"{busy:.1f} ms",
            f"{busy / alone:.2f}",
            _verdict(busy / alone, SERVING_BAR),
        ]
    ]


def _options(*settings: str) -> list[str]:
    chosen = [word for one in settings for word in ("--set", one)]
    what = [
        "--task",
        "image-classification",
        "--data",
        MODEL,
        "--recipe",
        "cnn",
    ]
    return [*what, *chosen]


def _begin(running: Platform) -> int:
    """A training that is at its steps, and goes on longer than anybody measures."""
    job = int(running.run("train", "other", *_options("epochs=1000"))["job"])
    events = running.home / "jobs" / str(job) / "events.jsonl"
    while not (events.exists() and '"event": "step"' in events.read_text()):
        time.sleep(0.1)
    return job


def _slowest(running: Platform, seconds: float) -> float:
    """Milliseconds that 99 of 100 answers stay below."""
    url = (running.home / "address").read_text().strip()
    key = (running.home / "admin.key").read_text().strip()
    tensor = {
        "name": "image",
        "shape": [1, 28, 28, 1],
        "datatype": "UINT8",
        "data": [7] * 784,
    }
    body = json.dumps({"inputs": [tensor]}).encode()
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
    }
    place = f"{url}/v2/models/{MODEL}/infer"
    httpx2.post(place, content=body, headers=headers).raise_for_status()
    request = request_of(place, body, headers)
    load = asyncio.run(drive(place, request, CONNECTIONS, seconds, WARMUP))
    told = summary(load, seconds)
    if told["failed"]:
        raise SystemExit(
            f"{told['failed']} predictions failed: {told['statuses']}"
        )
    return float(told["p99"])


def _verdict(ratio: float, bar: float) -> str:
    return f"{bar:g}: {'met' if ratio <= bar else 'MISSED'}"


PARTS: dict[str, Callable[[float, int], list[list[str]]]] = {
    "training": _training,
    "serving": _serving,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        print(json.dumps(train(float(sys.argv[2]))))
    else:
        print(measure(sys.argv[1:]))
