"""What `bench.serving` measures: a modelmill platform that it starts, or any V2 server at a URL."""

import argparse
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from bench import networks
from bench.bodies import NUMPY, Array
from bench.limit import scores
from bench.measuring import Server, Target, v2_targets
from bench.peers import Peers
from bench.running import Platform
from modelmill.client import Client


@dataclass(frozen=True)
class Row:
    """One line of the table; `bar` is what is demanded and `met` whether that is reached."""

    what: str
    measured: str
    bar: str = ""
    met: bool | None = None

    def cells(self) -> list[str]:
        """What the table shows."""
        verdict = "" if self.met is None else " met" if self.met else " MISSED"
        return [self.what, self.measured, self.bar + verdict]


class Modelmill(Server):
    """A platform of its own with a home that is gone afterwards; calls carry a user's key."""

    def __init__(self, cache: Path, env: dict[str, str] | None = None) -> None:
        super().__init__("modelmill")
        self.cache = cache
        self._folder = tempfile.TemporaryDirectory(prefix="modelmill-bench-")
        self.home = Path(self._folder.name) / "home"
        try:
            self.platform = Platform(self.home, env)
        except SystemExit as error:
            log = self.home / "logs" / "gateway.log"
            tail = (
                " ".join(log.read_text("utf-8", "replace").split())[-200:]
                if log.exists()
                else ""
            )
            raise RuntimeError(f"{error}: ...{tail}") from error
        self.process = self.platform.process
        self.client = Client(home=self.home)
        self.key = self.client.add_key("bench")["key"]
        self._imported: set[str] = set()

    def pause(self) -> None:
        """Nothing: a supervisor that stands still would take its workers for lost."""

    def resume(self) -> None:
        """Nothing, likewise."""

    def bring(self, network: str) -> None:
        """Import a reference network under its own name."""
        if network not in self._imported:
            self.client.import_model(
                network, networks.network(network, self.cache / "networks")
            )
            self._imported.add(network)

    def deploy(
        self, network: str, name: str = "", **options: Any
    ) -> dict[str, Target]:
        """Serve a reference network; its requests of one item, whose answers were found right."""
        self.bring(network)
        self.client.deploy(network, name=name or network, wait=True, **options)
        targets = self.targets(network, name or network)
        wanted = scores(
            networks.network(network, self.cache / "networks"),
            networks.example(network),
        )
        for target in targets.values():
            target.check(wanted)
        return targets

    def targets(self, network: str, name: str) -> dict[str, Target]:
        """Requests to a deployment of a reference network, by format."""
        answer = {"cnn": "probabilities"}.get(
            network, "logits" if network.startswith("bert") else "scores"
        )
        given = (
            {networks.INPUTS[network][0]: networks.example(network)},
            [answer],
        )
        return v2_targets(
            self, self.name, self.client.url, self.grpc, name, self.key, given
        )

    @property
    def grpc(self) -> str:
        """HOST:PORT, or "" when the platform does not speak gRPC."""
        path = self.home / "grpc_address"
        return path.read_text().strip() if path.exists() else ""

    def gateways(self) -> list[psutil.Process]:
        """The gateway's processes."""
        return [
            one
            for one in self.processes()
            if _title(one).startswith("modelmill: gateway")
        ]

    def workers(self, name: str = "") -> list[psutil.Process]:
        """The workers, of one deployment or of all."""
        wanted = f"modelmill: worker {name}".strip()
        return [
            one
            for one in self.processes()
            if _title(one) == wanted
            or (not name and _title(one).startswith(wanted))
        ]

    def stop(self) -> None:
        """End it and remove its home."""
        self.client.close()
        self.platform.process.terminate()
        try:
            self.platform.process.wait(30)
        except subprocess.TimeoutExpired:
            self.platform.process.kill()  # its children end with it
            self.platform.process.wait()
        self._folder.cleanup()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


class Foreign(Server):
    """A V2 server that others started: only what can be seen from outside is measured."""

    def __init__(self, told: Any) -> None:
        super().__init__(told.url)
        self.url = told.url.rstrip("/")
        self.model = told.model
        self.key = told.key
        self.grpc = told.grpc

    def deploy(
        self, network: str, name: str = "", **options: Any
    ) -> dict[str, Target]:
        """Requests for its model, made from the metadata; answers are looked at, not compared."""
        targets = v2_targets(
            self,
            self.name,
            self.url,
            self.grpc,
            self.model,
            self.key,
            self._given(),
        )
        for target in targets.values():
            target.ask()
        return targets

    def _given(self) -> tuple[dict[str, Array], list[str]]:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        answer = httpx2.get(
            f"{self.url}/v2/models/{self.model}", headers=headers
        )
        if answer.status_code != 200:
            raise SystemExit(
                f"{self.url} does not serve '{self.model}': {answer.status_code} "
                f"{answer.text[:200]}"
            )
        document, random = answer.json(), np.random.default_rng(1)
        inputs = {}
        for one in document["inputs"]:
            if one["datatype"] not in NUMPY:
                raise SystemExit(
                    f"input '{one['name']}' has the datatype {one['datatype']}; one of "
                    f"{', '.join(NUMPY)} is wanted"
                )
            shape = [max(int(side), 1) for side in one["shape"]]
            inputs[one["name"]] = random.integers(0, 2, shape).astype(
                NUMPY[one["datatype"]]
            )
        return inputs, [one["name"] for one in document["outputs"]]


@dataclass
class Bench:
    """A run of the benchmark: options, the server that is measured, and the peers beside it."""

    told: argparse.Namespace
    subject: Modelmill | Foreign
    _deployed: dict[str, dict[str, Target]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What is asked for, as the table names it."""
        return (
            "CNN" if isinstance(self.subject, Modelmill) else self.subject.model
        )

    @property
    def mill(self) -> Modelmill:
        """The platform; raises `RuntimeError` for a foreign server."""
        if isinstance(self.subject, Modelmill):
            return self.subject
        raise RuntimeError(
            "only a modelmill platform that this benchmark starts can be measured so"
        )

    @cached_property
    def peers(self) -> Peers:
        """The peers, started when they are first asked for, and paused."""
        peers = Peers(
            [name for name in self.told.peers.split(",") if name],
            self.told.cache,
        )
        peers.pause()
        return peers

    def cnn(self) -> dict[str, Target]:
        """Requests to the CNN, deployed once, on one thread."""
        if "cnn" not in self._deployed:
            self._deployed["cnn"] = self.subject.deploy(
                "cnn", replicas=1, threads=1
            )
        return self._deployed["cnn"]

    def close(self) -> None:
        """End all that was started."""
        if "peers" in self.__dict__:
            self.peers.close()
        if isinstance(self.subject, Modelmill):
            self.subject.stop()


def first_answer(target: Target, patience: float) -> float:
    """Seconds until a request is answered well; raises `RuntimeError` when none is within
    `patience`.
    """
    started = time.perf_counter()
    with httpx2.Client(timeout=patience) as client:
        while (passed := time.perf_counter() - started) < patience:
            try:
                answer = client.post(
                    target.url, content=target.body, headers=target.headers
                )
            except httpx2.HTTPError:
                continue
            if answer.status_code == 200:
                return time.perf_counter() - started
            time.sleep(0.005)
    raise RuntimeError(f"no answer within {passed:.0f} s")
