"""The engines beside one another, in one process and in turns: `python -m bench.engines`.

A convolutional network with weights by chance, as its recipe makes it, exported to the file that
each engine reads. Every round runs all engines; the figures are medians of the rounds.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.running import table
from modelmill.engines.base import Session, Signature, engine_named
from modelmill.errors import NotInstalled
from modelmill.exporters.onnx import convert
from modelmill.tasks.base import Signature as Inputs
from modelmill.tasks.base import plan, recipe_named
from modelmill.tasks.decoding.image_decoder import Preprocessing
from modelmill.types import TensorSpec

ENGINES = ("onnx", "torch", "openvino")
RECIPE, SIDE, CLASSES = "resnet", 32, 10
BATCHES = (1, 8, 32)
ROUNDS, SECONDS = 7, 0.4
BAR = 1e-3
Array = np.ndarray[Any, Any]


def measure(recipe: str, threads: int) -> str:
    """Rows a second of each engine and batch, and how they compare with `onnx`: a Markdown
    table.
    """
    pixels = [
        TensorSpec(name="image", datatype="UINT8", shape=[-1, SIDE, SIDE, 3])
    ]
    logits = [TensorSpec(name="scores", datatype="FP32", shape=[-1, CLASSES])]
    signature = pixels, logits
    with tempfile.TemporaryDirectory() as folder:
        export(recipe, signature, Path(folder))
        sessions = opened(Path(folder), threads, signature)
        rows = [
            row
            for batch in BATCHES
            for row in compared(sessions, pixels_of(batch))
        ]
    title = f"{recipe}, {SIDE}x{SIDE}, {threads} threads"
    return table([title, "rows/s", "of onnx", "off by at most"], rows)


def export(recipe: str, signature: Signature, folder: Path) -> None:
    """The network of a recipe as `model.onnx` and as `model.pt2`."""
    import torch

    torch.manual_seed(0)
    inputs, outputs = signature
    module = recipe_named("image-classification", recipe)
    chosen = plan(module, {})
    how = Preprocessing(
        height=SIDE, width=SIDE, color="rgb", mean=[0.5] * 3, std=[0.25] * 3
    )
    given = Inputs(inputs=inputs, classes=CLASSES, preprocessing=how)
    network = module.network(chosen.network, given).eval()
    example = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert(network, inputs, outputs, folder)
        program = torch.export.export(
            network, (example,), dynamic_shapes=shapes
        )
        torch.export.save(program, folder / "model.pt2")


def opened(
    folder: Path, threads: int, signature: Signature
) -> dict[str, Session]:
    """The engines that are installed."""
    found: dict[str, Session] = {}
    for name in ENGINES:
        try:
            engine = engine_named(name)
            found[name] = engine.open(folder, threads, signature=signature)
        except NotInstalled as error:
            print(f"{name} is skipped: {error}")
    return found


def pixels_of(batch: int) -> dict[str, Array]:
    """A batch of noise."""
    shape = (batch, SIDE, SIDE, 3)
    return {
        "image": np.random.default_rng(0)
        .integers(0, 256, shape)
        .astype(np.uint8)
    }


def compared(
    sessions: dict[str, Session], batch: dict[str, Array]
) -> list[list[str]]:
    """A row of the table for each engine."""
    count = len(batch["image"])
    rates: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            rates[name].append(count * rate(partial(session.run, batch)))
    wanted = sessions["onnx"].run(batch)["scores"]
    rows = []
    for name, session in sessions.items():
        off = float(np.abs(session.run(batch)["scores"] - wanted).max())
        figure = statistics.median(rates[name])
        ratio = figure / statistics.median(rates["onnx"])
        verdict = "met" if off <= BAR else "MISSED"
        rows.append(
            [
                f"{name}, batches of {count}",
                f"{figure:,.0f}",
                f"**{ratio:.2f} x**",
                f"{off:.1g} (bar {BAR:g}: {verdict})",
            ]
        )
    return rows


def rate(run: Callable[[], Any]) -> float:
    """Runs a second."""
    run()
    done, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < SECONDS:
        run()
        done += 1
    return done / passed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--recipe", default=RECIPE, help="of image-classification"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="of an engine",
    )
    told = parser.parse_args()
    print(measure(told.recipe, told.threads))


if __name__ == "__main__":
    main()
