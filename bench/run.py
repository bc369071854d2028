"""`make bench`: all benchmarks, one after the other, into docs/benchmarks.md.

`python -m bench.run serving -- --seconds 2` measures one section anew and leaves the others as they
are; `python -m bench.run accuracy -- unet ddpm` measures some rows of that section.
"""

import os
import platform as machine
import sys
from collections.abc import Callable
from pathlib import Path

from bench import (
    accuracy,
    decode,
    generation,
    index,
    recipes,
    serving,
    sharing,
    start,
    training,
    translations,
)

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """<!-- Written by `make bench`: the figures of a section are of one run on one machine. -->

# Benchmarks

Measured on {cores} cores ({processor}), Linux, Python {python}, by `make bench`, which runs the commands below and
writes this page. The machine was shared: ratios of one run mean more than absolute times."""
SECTIONS = {
    "accuracy": (
        "Accuracy with default settings",
        "Test accuracy through the served path (decode, engine, encode). `split` is "
        "train/val/test; where a data set "
        "declares none it is a fixed, stratified 80/10/10 by the hash of the content. `job` is "
        "the whole training "
        "job, from reading the data to the sealed bundle.",
    ),
    "translations": (
        "Ten sentences",
        "`python -m bench.translations`: from English to Chinese, trained from nothing on the "
        "sentences of Tatoeba; "
        "the ten here are our own.",
    ),
    "training": (
        "Training speed",
        f"`python -m bench.training`: the same network, batch {training.BATCH}, {training.EPOCHS} "
        "epochs, "
        "alternating runs.",
    ),
    "recipes": (
        "Training speed of every recipe",
        "`python -m bench.recipes`: the same network, loss, changes, optimisers and batches in "
        "our loop and in a plain "
        "DataLoader loop, alternating runs; and the parts of our time (the rest: validation, "
        "checkpoints, reading).",
    ),
    "decode": (
        "Decoding pictures",
        "`python -m bench.decode`: a JPEG of 1280x720 to 224x224 on one core, in turns; the same "
        "function in training "
        "and in serving.",
    ),
    "generation": (
        "Texts that grow",
        "`python -m bench.generation`: 64 tokens behind prompts of 32, in turns.",
    ),
    "index": (
        "Search in an index",
        f"`python -m bench.index`: {index.DIMENSIONS} numbers a vector, one core.",
    ),
    "start": ("Start and memory", "`python -m bench.start`"),
    "sharing": (
        "Sharing the machine",
        "`python -m bench.sharing`: a training with one core kept busy by another process, with "
        "threads that sleep soon when they wait (new) and with the OpenMP default (old); "
        "predictions beside a training.",
    ),
    "serving": (
        "Serving",
        "`python -m bench.serving`: medians of interleaved repeats, the load generators on the "
        "same cores. Peers serve "
        "the same ONNX file in environments of their own.",
    ),
}
MEASURE: dict[str, Callable[[list[str]], str]] = {
    "accuracy": lambda names: "\n".join(map(accuracy.measure, names or [""])),
    "translations": lambda _: translations.measure(),
    "training": lambda _: training.measure(),
    "recipes": lambda _: recipes.measure(),
    "decode": lambda _: decode.measure(),
    "generation": generation.measure,
    "index": lambda _: index.measure([index.EXACT, 100_000]),
    "start": lambda _: start.measure(),
    "sharing": sharing.measure,
    "serving": serving.measure,
}


def main() -> None:
    """Measure all, or the sections that are named, and write the page; what follows `--` is for the
    section.
    """
    names, _, options = " ".join(sys.argv[1:]).partition("--")
    wanted = names.split() or list(SECTIONS)
    if unknown := [name for name in wanted if name not in SECTIONS]:
        raise SystemExit(
            f"unknown: {', '.join(unknown)}; there are: {', '.join(SECTIONS)}"
        )
    before = _sections(PAGE.read_text("utf-8")) if PAGE.exists() else {}
    blocks = [
        HEAD.format(
            cores=os.cpu_count(),
            processor=processor(),
            python=machine.python_version(),
        )
    ]
    for name, (title, text) in SECTIONS.items():
        if name in wanted:
            found = MEASURE[name](options.split())
            if name == "accuracy" and options:
                found = merged(before.get(title, ""), found)
            blocks += [f"## {title}", text, found]
        elif title in before:
            blocks += [f"## {title}", before[title]]
    PAGE.write_text("\n\n".join(blocks) + "\n", "utf-8")
    print(f"written: {PAGE}")


def _sections(page: str) -> dict[str, str]:
    """What stands under each title."""
    parts = page.split("\n## ")[1:]
    return {
        title: text.strip()
        for title, _, text in (part.partition("\n") for part in parts)
    }


def merged(before: str, after: str) -> str:
    """The rows of a table with those that were measured anew in their places, and new ones
    below.
    """
    rows = {
        _key(line): line
        for text in (before, after)
        for line in text.splitlines()
        if line.startswith("|")
    }
    return "\n".join(rows.values())


def _key(row: str) -> tuple[str, ...]:
    """What was measured: the data set and the recipe."""
    return tuple(cell.strip() for cell in row.split("|")[1:3])


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.partition(":")[2].strip()
            for line in lines
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return machine.processor() or "unknown processor"


if __name__ == "__main__":
    main()
