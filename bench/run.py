"""`make bench`: all benchmarks, one after the other, into docs/benchmarks.md.

`python -m bench.run serving -- --seconds 2` measures one section anew and leaves the others as they are.
"""

import os
import platform as machine
import sys
from collections.abc import Callable
from pathlib import Path

from bench import accuracy, decode, serving, start, training

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """<!-- Written by `make bench`: the figures of a section are of one run on one machine. -->

# Benchmarks

Measured on {cores} cores ({processor}), Linux, Python {python}, by `make bench`, which runs the commands below and
writes this page. The machine was shared: ratios of one run mean more than absolute times."""
SECTIONS = {
    "accuracy": (
        "Accuracy with default settings",
        "Test accuracy through the served path (decode, engine, encode). `split` is train/val/test; where a data set "
        "declares none it is a fixed, stratified 80/10/10 by the hash of the content. `job` is the whole training "
        "job, from reading the data to the sealed bundle.",
    ),
    "training": (
        "Training speed",
        f"`python -m bench.training`: the same network, batch {training.BATCH}, {training.EPOCHS} epochs, "
        "alternating runs.",
    ),
    "decode": (
        "Decoding pictures",
        "`python -m bench.decode`: a JPEG of 1280x720 to 224x224 on one core, in turns; the same function in training "
        "and in serving.",
    ),
    "start": ("Start and memory", "`python -m bench.start`"),
    "serving": (
        "Serving",
        "`python -m bench.serving`: medians of interleaved repeats, the load generators on the same cores. Peers serve "
        "the same ONNX file in environments of their own.",
    ),
}
MEASURE: dict[str, Callable[[list[str]], str]] = {
    "accuracy": lambda _: accuracy.measure(),
    "training": lambda _: training.measure(),
    "decode": lambda _: decode.measure(),
    "start": lambda _: start.measure(),
    "serving": serving.measure,
}


def main() -> None:
    """Measure all, or the sections that are named, and write the page; what follows `--` goes to bench.serving."""
    names, _, options = " ".join(sys.argv[1:]).partition("--")
    wanted = names.split() or list(SECTIONS)
    if unknown := [name for name in wanted if name not in SECTIONS]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are: {', '.join(SECTIONS)}")
    before = _sections(PAGE.read_text("utf-8")) if PAGE.exists() else {}
    blocks = [HEAD.format(cores=os.cpu_count(), processor=processor(), python=machine.python_version())]
    for name, (title, text) in SECTIONS.items():
        if name in wanted:
            blocks += [f"## {title}", text, MEASURE[name](options.split())]
        elif title in before:
            blocks += [f"## {title}", before[title]]
    PAGE.write_text("\n\n".join(blocks) + "\n", "utf-8")
    print(f"written: {PAGE}")


def _sections(page: str) -> dict[str, str]:
    """What stands under each title."""
    parts = page.split("\n## ")[1:]
    return {title: text.strip() for title, _, text in (part.partition("\n") for part in parts)}


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return machine.processor() or "unknown processor"


if __name__ == "__main__":
    main()
