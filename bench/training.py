"""Our training loop beside a plain PyTorch DataLoader loop, in one run: `python -m bench.training`.

Both train the same network with the same optimiser, rate and schedule on MNIST (or made pictures of
its size when it is not here), alternately, each run in a process of its own with the environment
that its users would have.
"""

import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.running import shared, table

EPOCHS = 4
BATCH = 128
RATE = 2e-3
SEEDS = (0, 1, 2)
KINDS = ("ours", "plain")


def measure() -> str:
    """Alternate both loops over three seeds; returns a Markdown table with the ratio of their
    medians.
    """
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for seed in SEEDS:
        for kind in KINDS:
            found[kind].append(_in_a_process(kind, seed))
            print(kind, seed, found[kind][-1], flush=True)
    speed = {
        kind: statistics.median(run["samples_per_second"] for run in runs)
        for kind, runs in found.items()
    }
    right = {
        kind: [f"{100 * run['accuracy']:.2f}" for run in runs]
        for kind, runs in found.items()
    }
    ratio = speed["ours"] / speed["plain"]
    rows = [
        ["modelmill `cnn`", f"{speed['ours']:,.0f}", " / ".join(right["ours"])],
        [
            "plain DataLoader loop",
            f"{speed['plain']:,.0f}",
            " / ".join(right["plain"]),
        ],
        [
            f"**ratio {ratio:.2f}** (bar 2.0: {'met' if ratio >= 2 else 'MISSED'})",
            "",
            "",
        ],
    ]
    return table(
        ["loop", "samples/s, median", "test accuracy %, seeds 0 / 1 / 2"], rows
    )


def _in_a_process(kind: str, seed: int) -> dict[str, float]:
    from modelmill.control.jobs import ENVIRONMENT

    env = {**os.environ, **(ENVIRONMENT if kind == "ours" else {})}
    command = [sys.executable, "-m", "bench.training", kind, str(seed)]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def pictures() -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """`train` and `test` as uint8 [N, 28, 28, 1] and int64 [N]."""
    folder = shared("mnist")
    if folder is None:
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 10, 12_000)
        images = (
            rng.integers(0, 60, (12_000, 28, 28, 1))
            + 15 * labels[:, None, None, None]
        ).astype(np.uint8)
        return {
            "train": (images[:10_000], labels[:10_000]),
            "test": (images[10_000:], labels[10_000:]),
        }
    sets = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        images = gzip.decompress(
            (folder / f"{name}-images-idx3-ubyte.gz").read_bytes()
        )
        labels = gzip.decompress(
            (folder / f"{name}-labels-idx1-ubyte.gz").read_bytes()
        )
        sets[split] = (
            np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1),
            np.frombuffer(labels, np.uint8, offset=8).astype(np.int64),
        )
    return sets


def ours(seed: int) -> dict[str, float]:
    """The loop of a training job, as a job calls it."""
    import msgspec
    import torch

    from modelmill.data.cache import Arrays
    from modelmill.jobs.loop import Loop
    from modelmill.jobs.objective import objective
    from modelmill.jobs.process import Events, Stop
    from modelmill.tasks.base import Signature, task_named
    from modelmill.tasks.decoding.image_decoder import Preprocessing
    from modelmill.tasks.image_classification.recipes import cnn
    from modelmill.types import TensorSpec

    data = {
        split: Arrays({"image": images}, {"label": labels})
        for split, (images, labels) in pictures().items()
    }
    spec = TensorSpec(name="image", datatype="UINT8", shape=[-1, 28, 28, 1])
    how = Preprocessing(
        height=28, width=28, color="grey", mean=(0.1307,), std=(0.3081,)
    )
    torch.manual_seed(seed)
    network = cnn.network(
        cnn.Settings(), Signature(inputs=[spec], classes=10, preprocessing=how)
    )
    aim = objective(task_named("image-classification"), cnn)
    settings = msgspec.structs.replace(
        cnn.TRAIN,
        epochs=EPOCHS,
        batch_size=BATCH,
        learning_rate=RATE,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        events = Events(Path(folder) / "events.jsonl")
        done = Loop(
            network,
            data["train"],
            data["test"],
            settings,
            aim,
            None,
            Path(folder),
            events,
            Stop(),
        ).run()
        events.close()
    return {
        "samples_per_second": statistics.median(
            row["samples_per_second"] for row in done.history
        ),
        "accuracy": done.history[-1]["val_accuracy"],
    }


def plain(seed: int) -> dict[str, float]:
    """What a PyTorch tutorial would write."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from modelmill.jobs.optimisers import schedule
    from modelmill.tasks.image_classification.recipes import cnn

    torch.manual_seed(seed)
    sets = {}
    for split, (images, labels) in pictures().items():
        x = (
            torch.tensor(images).permute(0, 3, 1, 2).float() / 255 - 0.1307
        ) / 0.3081
        sets[split] = TensorDataset(x.contiguous(), torch.tensor(labels))
    network = nn.Sequential(
        *[
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ],
        *[
            nn.Flatten(),
            nn.Linear(1600, 64),
            nn.ReLU(),
            nn.Dropout(cnn.Settings().dropout),
            nn.Linear(64, 10),
        ],
    )
    batches = DataLoader(sets["train"], batch_size=BATCH, shuffle=True)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, schedule(cnn.TRAIN, EPOCHS * len(batches))
    )
    loss, speeds = nn.CrossEntropyLoss(), []
    for _ in range(EPOCHS):
        network.train()
        started = time.perf_counter()
        for x, y in batches:
            optimiser.zero_grad()
            loss(network(x), y).backward()
            optimiser.step()
            rate.step()
        speeds.append(len(sets["train"]) / (time.perf_counter() - started))
    network.eval()
    with torch.inference_mode():
        right = sum(
            int((network(x).argmax(1) == y).sum())
            for x, y in DataLoader(sets["test"], batch_size=1000)
        )
    return {
        "samples_per_second": statistics.median(speeds),
        "accuracy": right / len(sets["test"]),
    }


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(measure())
    else:
        print(
            json.dumps(
                {"ours": ours, "plain": plain}[sys.argv[1]](int(sys.argv[2]))
            )
        )
