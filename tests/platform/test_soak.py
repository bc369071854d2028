"""Minutes of mixed load while workers are killed, versions rolled and a gateway restarted.

MODELMILL_SOAK_SECONDS sets how long (600). `python -m pytest -m slow -n 0 -s
tests/platform/test_soak.py`.
"""

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest

from tests.platform.calling import deploy, workers
from tests.platform.conftest import Platform, until
from tests.platform.soaking import Report, Spec
from tests.reference import home as reference

SECONDS = float(os.environ.get("MODELMILL_SOAK_SECONDS", "600"))
KILL_SECONDS = 5.0
ROLL_SECONDS = 20.0
LOOK_SECONDS = 2.0
# The gateway is restarted within the warm-up, so that all of what is measured is one life of each
# process.
RESTART_AT, WARM_AT = 0.15, 0.3
MOURNING_SECONDS = 10.0
GROWTH = 0.05
ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(int(SECONDS) + 300)]


class Look(NamedTuple):
    """Memory (proportional set size, bytes) of the platform's processes, by title, at a moment."""

    at: float
    sizes: dict[str, int]

    @property
    def total(self) -> int:
        """Of all together."""
        return sum(self.sizes.values())


class Trouble:
    """What happens to the platform during the load, second by second."""

    def __init__(self, platform: Platform) -> None:
        self.platform, self.rng = platform, random.Random(0)
        self.kills = self.rolls = 0
        self.restarted = 0.0
        self.looks: list[Look] = []
        self._spared = workers(platform, "counts")[
            0
        ]  # one lives on, so that its memory can be watched

    def run(self, load: "subprocess.Popen[bytes]") -> None:
        """Make trouble until the load has ended."""
        start = time.monotonic()
        due = {
            self.kill: KILL_SECONDS,
            self.roll: ROLL_SECONDS,
            self.restart: RESTART_AT * SECONDS,
            self.look: 0.0,
        }
        every = {
            self.kill: KILL_SECONDS,
            self.roll: ROLL_SECONDS,
            self.restart: float("inf"),
            self.look: LOOK_SECONDS,
        }
        while load.poll() is None:
            passed = time.monotonic() - start
            for act in due:
                if passed >= due[act]:
                    act()
                    due[act] += every[act]
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9 of any worker but one."""
        alive = [
            pid
            for name in ("marked", "colours", "counts")
            for pid in workers(self.platform, name)
        ]
        if victims := [pid for pid in alive if pid != self._spared]:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(self.rng.choice(victims)).kill()
                self.kills += 1

    def roll(self) -> None:
        """Another version takes over."""
        self.rolls += 1
        deploy(self.platform, f"marked:{1 + self.rolls % 2}", wait=False)

    def restart(self) -> None:
        """kill -9 of a gateway; the supervisor starts another."""
        self.restarted = time.time()
        self.platform.children("modelmill: gateway")[0].kill()

    def look(self) -> None:
        """Note the memory of all processes."""
        sizes: dict[str, int] = {}
        with suppress(
            psutil.NoSuchProcess
        ):  # one that ends just now: the next look will do
            for process in [
                psutil.Process(self.platform.process.pid),
                *self.platform.children("modelmill: "),
            ]:
                title = " ".join(process.cmdline()).strip()
                sizes[title] = (
                    sizes.get(title, 0) + process.memory_full_info().pss
                )
            sizes["spared worker"] = (
                psutil.Process(self._spared).memory_full_info().pss
            )
            sizes["modelmill: worker counts"] = (
                sizes.get("modelmill: worker counts", 0)
                - sizes["spared worker"]
            )
            self.looks.append(Look(time.monotonic(), sizes))


def growth(looks: list[Look], names: tuple[str, ...] = ()) -> float:
    """Growth from first to last look, as a share of the size: Theil-Sen's slope, which kills can't
    bend.
    """
    points = [
        (
            look.at,
            sum(look.sizes[name] for name in names) if names else look.total,
        )
        for look in looks
    ]
    step = max(1, len(points) // 150)
    points = points[::step]
    slopes = [
        (later[1] - early[1]) / (later[0] - early[0])
        for number, early in enumerate(points)
        for later in points[number + 1 :]
    ]
    typical = statistics.median(size for _, size in points)
    return statistics.median(slopes) * (points[-1][0] - points[0][0]) / typical


@contextmanager
def loading(
    platform: Platform, grpc: str, folder: Path
) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """The load, in a process of its own, ended by its pid should it outlive the test."""
    keys = [
        platform.client.add_key(name)["key"]
        for name in ("first", "second", "third")
    ]
    spec, report = folder / "spec.json", folder / "report.json"
    spec.write_bytes(
        msgspec.json.encode(Spec(platform.url, grpc, keys, SECONDS))
    )
    command = [
        sys.executable,
        "-m",
        "tests.platform.soaking",
        str(spec),
        str(report),
    ]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield process, report
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def soaked(
    reference_home: Path, tmp_path: Path
) -> Iterator[tuple[Platform, str]]:
    """A platform with three models deployed, and its gRPC address ('' without the client's
    package).
    """
    env = reference.with_engine(reference_home / "site") | {
        "REFERENCE_LEDGER": str(tmp_path / "ledger")
    }
    platform = Platform(tmp_path / "home", **env)
    try:
        for mark in (1, 2):
            platform.client.import_model(
                "marked", reference.marked(tmp_path / f"{mark}", mark)
            )
        reference.bring(
            platform.client, tmp_path / "made", ["colours", "counts"]
        )
        for name, replicas in (("marked:1", 1), ("colours", 1), ("counts", 2)):
            deploy(platform, name, replicas=replicas)
        until(lambda: len(workers(platform, "counts")) == 2)
        grpc = (
            (platform.home / "grpc_address").read_text().strip()
            if find_spec("grpc") is not None
            else ""
        )
        yield platform, grpc
    finally:
        platform.end()


def test_minutes_of_trouble_lose_nothing_and_memory_stays_flat(
    soaked: tuple[Platform, str], tmp_path: Path
) -> None:
    platform, grpc = soaked
    trouble = Trouble(platform)
    with loading(platform, grpc, tmp_path) as (process, path):
        trouble.run(process)
        assert process.returncode == 0
    report = msgspec.json.decode(path.read_bytes(), type=Report)
    ran = [int(line) for line in (tmp_path / "ledger").read_text().split()]
    flat = trouble.looks[int(len(trouble.looks) * WARM_AT) :]
    print(summary(report, trouble, ran, flat, grpc))
    assert report.wrong == []
    assert report.answered == report.asked
    assert sorted(report.counted) == sorted(set(report.counted))
    assert set(report.counted) <= set(ran)
    strange = [
        at
        for at in report.broken
        if not 0 <= at - trouble.restarted <= MOURNING_SECONDS
    ]
    assert strange == []
    if SECONDS >= 120:  # a shorter one is all warm-up
        assert growth(flat) < GROWTH
        assert (
            growth(
                flat,
                (
                    "modelmill: gateway",
                    "modelmill: supervisor",
                    "spared worker",
                ),
            )
            < GROWTH
        )


def summary(
    report: Report,
    trouble: Trouble,
    ran: list[int],
    flat: list[Look],
    grpc: str,
) -> str:
    """What happened, in a few lines."""
    times = sorted(report.seconds)
    figures: dict[str, Any] = {
        "answered": ", ".join(
            f"{name} {count:,}"
            for name, count in sorted(report.answered.items())
        ),
        "wrong or failed": len(report.wrong),
        "broken by the gateway's death and sent again": len(report.broken),
        "workers killed": trouble.kills,
        "versions rolled": trouble.rolls,
        "rows run again after a worker's death": len(ran) - len(set(ran)),
        "latency p50 / p99 / max ms": " / ".join(
            f"{1000 * times[min(len(times) - 1, int(len(times) * share))]:.1f}"
            for share in (0.5, 0.99, 1)
        ),
        "memory MB": f"{flat[0].total / 1e6:.0f} -> {flat[-1].total / 1e6:.0f}, growth "
        f"{100 * growth(flat):+.1f} %",
    }
    for name in (
        "modelmill: gateway",
        "modelmill: supervisor",
        "spared worker",
    ):
        figures[f"growth of {name.removeprefix('modelmill: ')}"] = (
            f"{100 * growth(flat, (name,)):+.1f} %"
        )
    lines = [
        f"soak of {SECONDS:.0f} s"
        + (
            ""
            if grpc
            else ", without gRPC, whose client (grpcio) is not installed"
        )
    ]
    return "\n" + "\n".join(
        [*lines, *(f"  {name}: {value}" for name, value in figures.items())]
    )
