"""This checkout beside another commit, interleaved in one run: `python -m bench.versions COMMIT
[serving] [training] [start]`.

The other commit is checked out in a temporary folder and runs with the same packages. Serving is
the CNN over V2 binary, JSON and gRPC at 32 connections, with the same batch size in both; training
is the loop of `bench.training`; start is `modelmill --help`. Each figure is a ratio of medians, above 1 where this checkout is
faster.
"""

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from bench import peers
from bench.measuring import MACHINE, ROOT, Target, end_orderly, interleaved
from bench.rates import renamed
from bench.running import table
from bench.subject import Modelmill

CONNECTIONS = 32
BAR = 0.97
TRIES = 20
FORMATS = {"binary": "V2 binary", "grpc": "V2 gRPC", "json": "V2 JSON"}


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A commit in a folder of its own, which is gone afterwards."""
    git = ["git", "-C", str(ROOT)]
    with tempfile.TemporaryDirectory(prefix="modelmill-commit-") as folder:
        place = Path(folder) / "checkout"
        subprocess.run(
            [
                *git,
                "worktree",
                "add",
                "--quiet",
                "--detach",
                str(place),
                commit,
            ],
            check=True,
        )
        try:
            yield place
        finally:
            subprocess.run(
                [*git, "worktree", "remove", "--force", str(place)], check=True
            )


def environment(place: Path) -> dict[str, str]:
    """The environment in which Python imports the code of a checkout."""
    return {**os.environ, "PYTHONPATH": str(place / "src")}


def serving(other: Path, options: argparse.Namespace) -> list[list[str]]:
    """The CNN of both in turns, in each format."""
    with ExitStack() as running:
        mills = {}
        for name, place in (("this", ROOT), ("that", other)):
            mills[name] = Modelmill(options.cache, environment(place))
            running.callback(mills[name].stop)
        targets, batch = deployed_alike(mills)
        rows = [["batch size of both", str(batch), ""]]
        for key, title in FORMATS.items():
            pair = [renamed(targets[name][key], name) for name in targets]
            got = interleaved(
                pair, CONNECTIONS, options.seconds, options.repeats
            )
            this, that = got["this"], got["that"]
            failed = this.failed + that.failed
            rows.append(
                _row(
                    f"{title}, {CONNECTIONS} connections",
                    this.rps / that.rps,
                    f"{this.rps:,.0f}/s of {that.rps:,.0f}/s; {this.cpu:,.0f} µs of "
                    f"{that.cpu:,.0f} µs of a core each; {failed} failed",
                )
            )
        return rows


def deployed_alike(
    mills: dict[str, Modelmill],
) -> tuple[dict[str, dict[str, Target]], int]:
    """The CNN in all of them, and the batch size that all chose.

    A worker chooses its batch size by timing, and a neighbour of 32 rows may answer a tenth faster
    than one of 8: that is chance, not code, so a deployment is made again until the sizes agree.
    """
    sizes: dict[str, int] = {}
    for attempt in range(TRIES):
        name = f"cnn-{attempt}"
        targets = {
            key: mill.deploy("cnn", name=name, replicas=1, threads=1)
            for key, mill in mills.items()
        }
        sizes = {key: _batch_size(mill) for key, mill in mills.items()}
        if len(set(sizes.values())) == 1:
            return targets, next(iter(sizes.values()))
        for mill in mills.values():
            mill.client.undeploy(name)
    raise SystemExit(
        f"no equal batch sizes in {TRIES} tries; the last are {sizes}"
    )


def _batch_size(mill: Modelmill) -> int:
    # Read from the database: an older commit does not tell it
    with closing(sqlite3.connect(mill.home / "modelmill.db")) as database:
        rows = database.execute(
            "SELECT batch FROM replica ORDER BY id"
        ).fetchall()
    return int(rows[-1][0])


def training(other: Path, options: argparse.Namespace) -> list[list[str]]:
    """The training loop of both in turns, in processes of their own."""
    speeds: dict[Path, list[float]] = {ROOT: [], other: []}
    for repeat in range(options.repeats):
        places = list(speeds)
        for place in places if repeat % 2 == 0 else reversed(places):
            speeds[place].append(_trained(place, repeat))
    this, that = (statistics.median(values) for values in speeds.values())
    return [
        _row(
            "training the CNN on MNIST",
            this / that,
            f"{this:,.0f} of {that:,.0f} samples/s",
        )
    ]


def _trained(place: Path, seed: int) -> float:
    # The job's own environment, as `bench.training` sets it for its runs
    code = (
        "import sys, bench.training as b; "
        f"print(b._in_a_process('ours', {seed})['samples_per_second'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def start(other: Path, options: argparse.Namespace) -> list[list[str]]:
    """`modelmill --help` of both in turns; seconds, so the ratio is that over this."""
    times: dict[Path, list[float]] = {ROOT: [], other: []}
    for _ in range(4 * options.repeats):
        for place, seen in times.items():
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "modelmill.cli", "--help"],
                env=environment(place),
                stdout=subprocess.DEVNULL,
                check=True,
            )
            seen.append(time.perf_counter() - began)
    this, that = (statistics.median(values) for values in times.values())
    return [
        _row("modelmill --help", that / this, f"{this:.2f} s of {that:.2f} s")
    ]


def _row(what: str, ratio: float, figures: str) -> list[str]:
    verdict = "met" if ratio >= BAR else "MISSED"
    return [what, f"**{ratio:.2f} x** (bar {BAR}: {verdict})", figures]


PARTS: dict[str, Callable[[Path, argparse.Namespace], list[list[str]]]] = {
    "serving": serving,
    "training": training,
    "start": start,
}


def measure(arguments: list[str]) -> str:
    """Measure the parts that are named, or all; returns a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="what this checkout is compared with")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of a run (2)"
    )
    parser.add_argument(
        "--repeats", type=int, default=15, help="runs of each (15)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=20.0,
        help="seconds to wait for quiet (20)",
    )
    parser.add_argument("--cache", type=Path, default=peers.CACHE)
    options = parser.parse_args(arguments)
    MACHINE.patience = options.patience
    with checkout(options.commit) as other:
        rows = [
            row
            for name in options.parts or PARTS
            for row in PARTS[name](other, options)
        ]
    return (
        f"{table(['what', 'ratio', 'this of that'], rows)}\n\n{MACHINE.told()}"
    )


if __name__ == "__main__":
    end_orderly()
    print(measure(sys.argv[1:]))
