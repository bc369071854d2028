"""`make bench`: all benchmarks, one after the other, into docs/benchmarks.md."""

import os
import platform as machine
from pathlib import Path

from bench import accuracy, serving, start, training

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> None:
    """Measure and write the page."""
    blocks = [
        "<!-- Written by `make bench`: every figure is of one run on one machine. -->",
        "# Benchmarks",
        f"Measured on {os.cpu_count()} cores ({processor()}), {machine.system()}, Python {machine.python_version()}, "
        "by `make bench`, which runs the commands below and writes this page. The machine was shared: ratios of one "
        "run mean more than absolute times.",
        "## Accuracy with default settings",
        "Test accuracy through the served path (decode, engine, encode). `split` is train/val/test; where a data set "
        "declares none it is a fixed, stratified 80/10/10 by the hash of the content. `job` is the whole training "
        "job, from reading the data to the sealed bundle.",
        accuracy.measure(),
        "## Training speed",
        f"`python -m bench.training`: the same network, batch {training.BATCH}, {training.EPOCHS} epochs, "
        "alternating runs.",
        training.measure(),
        "## Start and memory",
        "`python -m bench.start`",
        start.measure(),
        "## Serving",
        "`python -m bench.serving`: medians of interleaved repeats, the load generators on the same cores. Peers serve "
        "the same ONNX file in environments of their own.",
        serving.measure([]),
    ]
    PAGE.write_text("\n\n".join(blocks) + "\n", "utf-8")
    print(f"written: {PAGE}")


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return machine.processor() or "unknown processor"


if __name__ == "__main__":
    main()
