"""What the machine can do without a server: an engine in a loop of its own process.

`python -m bench.limit FILE.onnx --network resnet50 --threads 2 --batch 8 --seconds 4` prints one
JSON line. The loop has the engine to itself, with the inputs ready in memory. With `--bundle FOLDER
--input FILE` it decodes an input of a task, on as many threads, and runs the bundle's model: what a
task-level request can't do without.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import networks
from bench.bodies import Array
from bench.measuring import ROOT, Figures

BATCHES = (1, 2, 4, 8, 16, 32)


def runner(
    path: Path, engine: str, precision: str, threads: int
) -> Callable[[Array], Array]:
    """A function from a batch to the first output; the engine has its own defaults but for the
    threads.
    """
    if engine == "openvino":
        sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]  # it would report its import
        import openvino as ov

        options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": {"bf16": "bf16"}.get(precision, "f32"),
        }
        compiled = ov.Core().compile_model(
            str(path), "CPU", {**options, "PERFORMANCE_HINT": "LATENCY"}
        )
        request = compiled.create_infer_request()
        return lambda batch: request.infer([batch])[0]
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def scores(path: Path, items: Array) -> Array:
    """What ONNX Runtime answers."""
    return runner(path, "onnx", "", 1)(items)


def task_runner(
    folder: Path, item: bytes, threads: int
) -> Callable[[int], Any]:
    """A function that decodes an input so many times, on all threads, and runs them as one
    batch.
    """
    from modelmill.predictor import load

    model, pool = load(folder, threads), ThreadPoolExecutor(threads)
    return lambda count: model.run(list(pool.map(model.decode, [item] * count)))


def rate(
    run: Callable[[], Any], batch: int, seconds: float
) -> dict[str, float]:
    """Items a second, and microseconds of a core for each, over whole batches."""
    run()
    done = 0
    started = time.perf_counter()
    used = time.process_time()
    while (passed := time.perf_counter() - started) < seconds:
        run()
        done += batch
    return {
        "rps": done / passed,
        "cpu": (time.process_time() - used) / done * 1e6,
    }


@dataclass
class Limit:
    """The loop as a contestant; the best batch size is looked for before the first run."""

    name: str
    options: list[str]
    batch: int = 0
    found: dict[int, float] = field(default_factory=dict)

    def measure(
        self, connections: int, seconds: float, warmup: float
    ) -> Figures:
        """One run in a process of its own."""
        if not self.batch:
            self.found = {
                size: self._run(size, min(seconds, 2)).rps for size in BATCHES
            }
            self.batch = max(self.found, key=self.found.__getitem__)
        return self._run(self.batch, seconds)

    def _run(self, batch: int, seconds: float) -> Figures:
        command = [
            sys.executable,
            "-m",
            "bench.limit",
            *self.options,
            "--batch",
            str(batch),
            "--seconds",
            str(seconds),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, check=False
        )
        if done.returncode:
            raise RuntimeError(
                f"{self.name} failed: {done.stderr.strip()[-300:]}"
            )
        return Figures(**json.loads(done.stdout))

    def pause(self) -> None:
        """It runs only while it is measured."""

    def resume(self) -> None:
        """It runs only while it is measured."""


def main() -> None:
    """Run the loop and print its rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "file", type=Path, nargs="?", help="an ONNX file of bench.networks"
    )
    parser.add_argument(
        "--network",
        default="cnn",
        choices=list(networks.INPUTS),
        help="which of them it is",
    )
    parser.add_argument(
        "--engine", default="onnx", choices=["onnx", "openvino"]
    )
    parser.add_argument(
        "--precision", default="", help="of openvino: bf16 or fp32"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument(
        "--bundle", type=Path, help="a bundle with a task, instead of FILE"
    )
    parser.add_argument("--input", type=Path, help="an input of the task")
    told = parser.parse_args()
    if told.bundle:
        whole = task_runner(told.bundle, told.input.read_bytes(), told.threads)
        got = rate(lambda: whole(told.batch), told.batch, told.seconds)
    else:
        run = runner(told.file, told.engine, told.precision, told.threads)
        items = networks.example(told.network, told.batch)
        got = rate(lambda: run(items), told.batch, told.seconds)
    print(json.dumps(got))


if __name__ == "__main__":
    main()
