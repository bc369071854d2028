"""Other servers of the same network, each in an environment of its own: `python -m bench.peers`
compares them quickly.

Triton (the server binary in the nvidia-pytriton wheel, ONNX Runtime in its Python backend) and
LitServe are installed by pip into a cache folder; the echo app and FastAPI run in the environment
of this benchmark. A peer that can't be set up on a machine is told of, and the comparison goes on
without it.
"""

import argparse
import ctypes.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench import networks
from bench.bodies import Array
from bench.limit import scores
from bench.measuring import (
    MACHINE,
    ROOT,
    Server,
    Target,
    end_orderly,
    free_port,
    interleaved,
    v2_targets,
)
from bench.running import table

APPS = Path(__file__).parent / "apps"
CACHE = Path.home() / ".cache" / "modelmill-bench"
UVICORN = [
    "--loop",
    "uvloop",
    "--http",
    "httptools",
    "--no-access-log",
    "--log-level",
    "warning",
]

TRITON = ["nvidia-pytriton==0.7.0"]
TRITON_NEEDS = [
    "numpy==1.26.4",
    "onnxruntime==1.31.1",
]  # the backend reads arrays of numpy 2 as empty, silently
LITSERVE = [
    "litserve==0.2.19",
    "onnxruntime==1.31.1",
    "numpy==2.4.6",
    "uvloop",
    "httptools",
]


class Peer(Server):
    """A server of the CNN and its fastest request."""

    title = ""
    targets: dict[str, Target]

    def __init__(self, cache: Path) -> None:
        super().__init__(self.title)
        self.cache = cache
        self.targets = {}

    def setup(self) -> None:
        """Install what it needs; raises `RuntimeError`."""

    def start(self, network: Path, item: Array) -> Target:
        """Serve the network; its fastest request, of one item. Raises `RuntimeError`."""
        raise NotImplementedError

    def folder(self) -> Path:
        """Where it may write."""
        path = self.cache / "run" / str(os.getpid())
        path.mkdir(parents=True, exist_ok=True)
        return path


class Echo(Peer):
    """No work at all: the bound of what any server on this uvicorn can reach."""

    title = "bare echo"

    def start(self, network: Path, item: Array) -> Target:
        """An app that reads the body and answers 40 bytes."""
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "bench.apps.echo:app",
            "--port",
            str(port),
            *UVICORN,
        ]
        self.launch(
            command,
            self.folder(),
            {"PYTHONPATH": str(ROOT)},
            f"http://127.0.0.1:{port}/",
            30,
        )
        url = f"http://127.0.0.1:{port}/"
        return Target(
            self.name,
            url,
            item.tobytes(),
            read=lambda _, body: np.frombuffer(body, np.float32),
            server=self,
        )


class FastApi(Peer):
    """What most would write."""

    title = "FastAPI + ONNX Runtime, JSON"

    def start(self, network: Path, item: Array) -> Target:
        """Lists of numbers in and out."""
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "bench.apps.fastapi_json:app",
            "--port",
            str(port),
            *UVICORN,
        ]
        env = {"PYTHONPATH": str(ROOT), "BENCH_NETWORK": str(network)}
        self.launch(
            command,
            self.folder(),
            env,
            f"http://127.0.0.1:{port}/openapi.json",
            60,
        )
        body = json.dumps(
            {"inputs": item.tolist()}, separators=(",", ":")
        ).encode()
        return Target(
            self.name,
            f"http://127.0.0.1:{port}/predict",
            body,
            {"Content-Type": "application/json"},
            lambda _, body: np.asarray(json.loads(body)["outputs"], np.float32),
            self,
        )


class LitServe(Peer):
    """Lightning's LitServe: two API processes, one worker, batches of what has gathered, raw
    bytes.
    """

    title = "LitServe, raw"

    def setup(self) -> None:
        """A virtual environment of its own."""
        self.python = environment(
            self.cache / "litserve", sys.executable, [LITSERVE]
        )

    def start(self, network: Path, item: Array) -> Target:
        """Bytes of an item in, bytes of its scores out."""
        port = free_port()
        command = [
            str(self.python),
            str(APPS / "litserve_raw.py"),
            str(network),
            str(port),
        ]
        self.launch(
            command, self.folder(), {}, f"http://127.0.0.1:{port}/health", 90
        )
        return Target(
            self.name,
            f"http://127.0.0.1:{port}/predict",
            item.tobytes(),
            {"Content-Type": "application/octet-stream"},
            lambda _, body: np.frombuffer(body, np.float32),
            self,
        )


class Triton(Peer):
    """Triton Inference Server: HTTP and gRPC, one instance of the model, dynamic batching without
    delay.
    """

    title = "Triton, V2 binary"
    instances = 1

    def setup(self) -> None:
        """A virtual environment of a system's Python that has a shared libpython, which the
        backend's stub loads.
        """
        minor = next(
            (n for n in range(13, 8, -1) if _has_shared_python(n)), None
        )
        if minor is None:
            raise RuntimeError(
                "needs /usr/bin/python3.N and its libpython3.N.so (N 9 to 13), as Debian has them"
            )
        python = environment(
            self.cache / "triton",
            f"/usr/bin/python3.{minor}",
            [["--no-deps", *TRITON], TRITON_NEEDS],
        )
        self.bin = python.parent
        self.home = (
            python.parents[1]
            / "lib"
            / f"python3.{minor}"
            / "site-packages"
            / "pytriton"
            / "tritonserver"
        )
        stub = (
            self.home
            / "python_backend_stubs"
            / f"3.{minor}"
            / "triton_python_backend_stub"
        )
        if not (
            placed := self.home / "backends" / "python" / stub.name
        ).exists():
            shutil.copy2(stub, placed)

    def start(self, network: Path, item: Array) -> Target:
        """The V2 binary request; `targets` has JSON and gRPC, too."""
        repository, (http, grpc, metrics) = (
            self.folder() / f"repository{self.instances}",
            (free_port() for _ in range(3)),
        )
        inputs, outputs = _repository(repository, network, item, self.instances)
        command = [
            str(self.home / "bin" / "tritonserver"),
            "--model-repository",
            str(repository),
        ]
        command += [
            "--backend-directory",
            str(self.home / "backends"),
            "--exit-timeout-secs",
            "3",
        ]
        command += [
            "--backend-config",
            f"python,shm-region-prefix-name={self._shared_memory()}",
        ]
        for service, port in (
            ("http", http),
            ("grpc", grpc),
            ("metrics", metrics),
        ):
            command += [
                f"--{service}-port",
                str(port),
                f"--{service}-address",
                "127.0.0.1",
            ]
        url = f"http://127.0.0.1:{http}"
        self.launch(
            command,
            self.folder(),
            {"PATH": f"{self.bin}:{os.environ['PATH']}"},
            f"{url}/v2/models/cnn/ready",
            60,
        )
        self.targets = v2_targets(
            self,
            self.name,
            url,
            f"127.0.0.1:{grpc}",
            "cnn",
            "",
            (inputs, outputs),
        )
        return self.targets["binary"]

    def stop(self) -> None:
        """End it, and remove the shared memory that it leaves behind when it does not end by
        itself.
        """
        super().stop()
        for region in Path("/dev/shm").glob(f"{self._shared_memory()}*"):
            region.unlink(missing_ok=True)

    def _shared_memory(self) -> str:
        return f"modelmill_bench_{os.getpid()}_{self.instances}_"


class Triton2(Triton):
    """The same with two instances: two processes compute, which is what is fastest on two cores."""

    title = "Triton with 2 instances, V2 binary"
    instances = 2


def _repository(
    folder: Path, network: Path, item: Array, instances: int
) -> tuple[dict[str, Array], list[str]]:
    """Triton's model repository with the one network; inputs and output names of a request."""
    import onnxruntime as ort

    session = ort.InferenceSession(network, providers=["CPUExecutionProvider"])
    given, answer = session.get_inputs()[0], session.get_outputs()[0]
    config = f"""backend: "python"
max_batch_size: 64
input [{{ name: "{given.name}" data_type: TYPE_FP32 dims: {given.shape[1:]} }}]
output [{{ name: "{answer.name}" data_type: TYPE_FP32 dims: {answer.shape[1:]} }}]
instance_group [{{ count: {instances} kind: KIND_CPU }}]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
"""
    version = folder / "cnn" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (folder / "cnn" / "config.pbtxt").write_text(config)
    shutil.copy(network, version / "model.onnx")
    shutil.copy(APPS / "triton_model.py", version / "model.py")
    return {given.name: item}, [answer.name]


def _has_shared_python(minor: int) -> bool:
    return (
        Path(f"/usr/bin/python3.{minor}").exists()
        and ctypes.util.find_library(f"python3.{minor}") is not None
    )


def environment(
    folder: Path, python: str, installs: Sequence[Sequence[str]]
) -> Path:
    """The Python of a virtual environment, made anew when its packages are not those; raises
    `RuntimeError`.
    """
    wanted, marker = json.dumps([python, installs]), folder / "installed.json"
    inside = folder / "bin" / "python"
    if marker.exists() and marker.read_text() == wanted:
        return inside
    print(f"setting up {folder} ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([python, "-m", "venv", str(folder)])
    for packages in installs:
        _run(
            [
                str(inside),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                *packages,
            ]
        )
    marker.write_text(wanted)
    return inside


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise RuntimeError(f"{command[0]} can't be run: {error}") from error
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)[:200]}: {(done.stderr or done.stdout).strip()[-300:]}"
        )


PEERS: dict[str, type[Peer]] = {
    "triton": Triton,
    "triton2": Triton2,
    "litserve": LitServe,
    "fastapi": FastApi,
    "echo": Echo,
}


class Peers:
    """All peers that could be started, serving the CNN; `missing` says why another could not."""

    def __init__(self, names: Sequence[str], cache: Path) -> None:
        self.running: dict[str, Peer] = {}
        self.missing: dict[str, str] = {}
        self.fastest: dict[str, Target] = {}
        network = networks.network("cnn", cache / "networks")
        item = networks.example("cnn")
        wanted = scores(network, item)
        try:
            for name in names:
                self._start(PEERS[name](cache), name, network, item, wanted)
        except BaseException:
            # also when it is ended meanwhile: nothing that was started may be left behind
            self.close()
            raise

    def _start(
        self, peer: Peer, name: str, network: Path, item: Array, wanted: Array
    ) -> None:
        self.running[name] = peer
        try:
            peer.setup()
            self.fastest[name] = peer.start(network, item)
            if name != "echo":
                self.fastest[name].check(wanted)
        except (RuntimeError, OSError) as error:
            peer.stop()
            self.fastest.pop(name, None)
            del self.running[name]
            self.missing[peer.title] = " ".join(str(error).split())[-300:]

    def pause(self) -> None:
        """Pause all."""
        for peer in self.running.values():
            peer.pause()

    def forget(self, name: str) -> None:
        """Leave out a peer that was ended."""
        del self.running[name], self.fastest[name]

    def close(self) -> None:
        """End all."""
        for peer in self.running.values():
            peer.stop()
        folders = {peer.folder() for peer in self.running.values()}
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options that all comparisons have."""
    parser.add_argument(
        "--seconds", type=float, default=4, help="length of one run"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each, in turns"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=0,
        help="seconds to wait for a quiet machine before each run",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=CACHE,
        help=f"environments and networks ({CACHE})",
    )
    parser.add_argument(
        "--peers",
        default=",".join(PEERS),
        help=f"which of {', '.join(PEERS)}; empty: none",
    )


def measure(told: Any) -> str:
    """Every peer at 1, 32 and 128 connections, Triton over gRPC, too; returns a Markdown table."""
    MACHINE.patience = told.patience
    with ExitStack() as stack:
        peers = Peers(
            [name for name in told.peers.split(",") if name], told.cache
        )
        stack.callback(peers.close)
        rows = [
            [f"{name}: {reason}", *["-"] * 6]
            for name, reason in peers.missing.items()
        ]
        for connections in (1, 32, 128):
            targets = list(peers.fastest.values())
            if connections == 32 and "triton" in peers.running:
                grpc = peers.running["triton"].targets["grpc"]
                targets.append(
                    Target(
                        "Triton, gRPC",
                        grpc.url,
                        grpc.body,
                        grpc.headers,
                        grpc.read,
                        grpc.server,
                    )
                )
            for name, got in interleaved(
                targets, connections, told.seconds, told.repeats
            ).items():
                cells = [
                    f"{got.rps:,.0f}",
                    f"{got.p50:.2f}",
                    f"{got.p99:.2f}",
                    f"{got.cpu:.0f}",
                    str(got.failed),
                ]
                rows.append([name, str(connections), *cells])
    heads = [
        "server",
        "connections",
        "calls/s",
        "p50 ms",
        "p99 ms",
        "server's core µs/call",
        "failed",
    ]
    return f"{table(heads, rows)}\n\n{MACHINE.told()}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    arguments(parser)
    end_orderly()
    print(measure(parser.parse_args()))
