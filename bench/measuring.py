"""What is measured and how: targets, servers as processes, interleaved repeats and their
medians.
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx2
import numpy as np
import psutil

from bench import bodies, load_grpc
from bench.bodies import Array

ROOT = Path(__file__).parents[1]

QUIET = 0.15
"""The share of the cores that others may use while something is measured, before `Machine`
waits.
"""


@dataclass
class Machine:
    """How busy others keep the machine: looked at before every run, when nothing of ours has
    work.
    """

    patience: float = 0.0
    """Seconds to wait, before each run, for others to be quiet."""
    seen: list[float] = field(default_factory=list)

    def settle(self) -> None:
        """Wait for a quiet moment, and note what others used when the run began."""
        end = time.monotonic() + self.patience
        while (
            busy := psutil.cpu_percent(0.2) / 100
        ) > QUIET and time.monotonic() < end:
            pass
        self.seen.append(busy)

    def told(self) -> str:
        """What was seen, as a sentence."""
        if not self.seen:
            return ""
        mean, most = statistics.mean(self.seen), max(self.seen)
        return (
            f"Before the runs other processes used {mean:.0%} of the cores on average, "
            f"{most:.0%} at most."
        )


MACHINE = Machine()


@dataclass(frozen=True)
class Figures:
    """One measurement, or the medians of several: calls a second, milliseconds, and the server's
    time on a core.
    """

    rps: float
    p50: float = 0.0
    p99: float = 0.0
    stall: float = 0.0
    silence: float = 0.0
    failed: int = 0
    cpu: float = 0.0
    """Microseconds of a core that the server spent on one call; unlike the others steady on a busy
    machine.
    """


def median(runs: Sequence[Figures]) -> Figures:
    """The median of each figure; failures are summed."""
    values = {
        name: statistics.median(getattr(run, name) for run in runs)
        for name in ("rps", "p50", "p99", "cpu")
    }
    worst = {
        name: max(getattr(run, name) for run in runs)
        for name in ("stall", "silence")
    }
    return Figures(**values, **worst, failed=sum(run.failed for run in runs))


class Contestant(Protocol):
    """What can be measured in turn with others."""

    name: str

    def measure(
        self, connections: int, seconds: float, warmup: float
    ) -> Figures:
        """One run."""

    def pause(self) -> None:
        """Take no time from another that is measured now."""

    def resume(self) -> None:
        """Be ready again."""


@dataclass
class Server:
    """A server as a process group of its own, which can be paused so that its idling costs the
    others nothing.
    """

    name: str
    process: "subprocess.Popen[bytes] | None" = None
    log: Path | None = None

    def launch(
        self,
        command: Sequence[str],
        folder: Path,
        env: dict[str, str],
        ready: str,
        patience: float,
    ) -> None:
        """Start it and wait for a good answer at the URL `ready`; raises `RuntimeError` with the
        end of its log.
        """
        self.log = (
            folder
            / f"{'-'.join(self.name.lower().replace(',', '').split())}.log"
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, **env},
                start_new_session=True,
            )
        end = time.monotonic() + patience
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(httpx2.HTTPError):
                if httpx2.get(ready, timeout=2).is_success:
                    return
            time.sleep(0.05)
        self.stop()
        tail = " ".join(self.log.read_text("utf-8", "replace").split())[-300:]
        raise RuntimeError(f"it did not become ready: ...{tail}")

    def processes(self) -> list[psutil.Process]:
        """The server's processes."""
        if self.process is None or self.process.poll() is not None:
            return []
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def pause(self) -> None:
        """SIGSTOP to all of it."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to all of it."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def stop(self) -> None:
        """SIGTERM, and after some seconds SIGKILL to the whole group."""
        if self.process is None:
            return
        self.resume()
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(6)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


@dataclass
class Target:
    """One request and the server that answers it; `url` is http://... or grpc://HOST:PORT."""

    name: str
    url: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    read: Callable[[dict[str, str], bytes], Array] | None = None
    """The first output of an answer, from headers (lower case) and body."""
    server: Server | None = None

    def ask(self) -> Array:
        """The answer to one request; raises `RuntimeError` when it is not a good one."""
        assert self.read is not None
        if self.url.startswith("grpc:"):
            return self.read(
                {}, load_grpc.call_once(self.url[7:], self.body, self.headers)
            )
        answer = httpx2.post(
            self.url, content=self.body, headers=self.headers, timeout=120
        )
        if answer.status_code != 200:
            raise RuntimeError(
                f"{self.name} answered {answer.status_code}: {answer.text[:200]}"
            )
        return self.read(dict(answer.headers), answer.content)

    def check(self, wanted: Array) -> None:
        """Raises `RuntimeError` unless the answer is the right one."""
        got = np.asarray(self.ask(), np.float32).ravel()
        if got.shape != wanted.ravel().shape or not np.allclose(
            got, wanted.ravel(), rtol=0.05, atol=0.05
        ):
            raise RuntimeError(
                f"{self.name} answers {got[:4]}, ONNX Runtime {wanted.ravel()[:4]}"
            )

    def start(
        self, connections: int, seconds: float, warmup: float
    ) -> "Driven":
        """Start the load in a process of its own."""
        return Driven(self, connections, seconds, warmup)

    def measure(
        self, connections: int, seconds: float, warmup: float
    ) -> Figures:
        """One run."""
        return self.start(connections, seconds, warmup).result()

    def pause(self) -> None:
        """Pause its server."""
        if self.server is not None:
            self.server.pause()

    def resume(self) -> None:
        """Let its server go on."""
        if self.server is not None:
            self.server.resume()


class Driven:
    """A load that runs."""

    def __init__(
        self, target: Target, connections: int, seconds: float, warmup: float
    ) -> None:
        self.target = target
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(target.body)
        self._file, grpc = Path(file.name), target.url.startswith("grpc:")
        module, option, place = (
            ("load_grpc", "metadata", target.url[7:])
            if grpc
            else ("load", "header", target.url)
        )
        given = [
            word
            for item in target.headers.items()
            for word in (f"--{option}", ":".join(item))
        ]
        command = [
            sys.executable,
            "-m",
            f"bench.{module}",
            place,
            "--body",
            file.name,
            *given,
        ]
        command += [
            "--connections",
            str(connections),
            "--seconds",
            str(seconds),
            "--warmup",
            str(warmup),
        ]
        self._before = cpu_seconds(target.server)
        self._share = seconds / (seconds + warmup)
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )

    def result(self) -> Figures:
        """What was measured; raises `RuntimeError` when the generator failed."""
        out, error = self.process.communicate()
        self._file.unlink()
        if self.process.returncode:
            raise RuntimeError(
                f"the load of {self.target.name} failed: {error.strip()[-300:]}"
            )
        read, calls = json.loads(out), 0.0
        seconds = cpu_seconds(self.target.server) - self._before
        if read["rps"]:
            calls = read["calls"] / self._share
        cpu = seconds / calls * 1e6 if calls else 0.0
        return Figures(
            read["rps"],
            read["p50"],
            read["p99"],
            read["stall"],
            read["silence"],
            read["failed"],
            cpu,
        )


def cpu_seconds(server: Server | None) -> float:
    """Seconds of a core that a server's processes have used."""
    total = 0.0
    for process in server.processes() if server else []:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def interleaved(
    contestants: Sequence[Contestant],
    connections: int,
    seconds: float,
    repeats: int,
    warmup: float = 0.5,
) -> dict[str, Figures]:
    """Medians by name; every repeat measures all, in turns forwards and backwards, the others
    paused meanwhile.
    """
    runs: dict[str, list[Figures]] = {one.name: [] for one in contestants}
    for repeat in range(repeats):
        for one in contestants if repeat % 2 == 0 else reversed(contestants):
            for other in contestants:
                if other is not one:
                    other.pause()
            MACHINE.settle()
            one.resume()
            runs[one.name].append(one.measure(connections, seconds, warmup))
    for one in contestants:
        one.resume()
    return {name: median(values) for name, values in runs.items()}


def memory(processes: Sequence[psutil.Process]) -> tuple[float, float]:
    """Megabytes (10^6) resident: PSS (a shared page counts by its share) and RSS (it counts in
    each), summed.
    """
    pss = rss = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            info = process.memory_full_info()
            pss, rss = pss + info.pss, rss + info.rss
    return pss / 1e6, rss / 1e6


def end_orderly() -> None:
    """Let SIGTERM unwind this process, so that the servers it started are ended."""

    def end(*_: object) -> None:
        # A second one must not interrupt the tidying
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit("ended by a signal")

    signal.signal(signal.SIGTERM, end)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def v2_targets(
    server: Server | None,
    name: str,
    url: str,
    grpc: str,
    model: str,
    key: str,
    given: tuple[dict[str, Array], list[str]],
) -> dict[str, Target]:
    """`binary`, `json` and (where there is an address) `grpc` requests of a V2 model; `given`:
    inputs, output names.
    """
    inputs, outputs = given
    auth = {"Authorization": f"Bearer {key}"} if key else {}
    targets = {}
    for kind, encode in (
        ("binary", bodies.v2_binary),
        ("json", bodies.v2_json),
    ):
        body, headers = encode(inputs, outputs)
        read = lambda headers, body: bodies.read_v2(headers, body)[outputs[0]]  # noqa: E731
        targets[kind] = Target(
            name,
            f"{url}/v2/models/{model}/infer",
            body,
            {**headers, **auth},
            read,
            server,
        )
    if grpc:
        read_grpc = lambda _, body: bodies.read_grpc(body)[outputs[0]]  # noqa: E731
        metadata = {name.lower(): value for name, value in auth.items()}
        targets["grpc"] = Target(
            name,
            f"grpc://{grpc}",
            bodies.grpc_infer(model, inputs, outputs),
            metadata,
            read_grpc,
            server,
        )
    return targets
