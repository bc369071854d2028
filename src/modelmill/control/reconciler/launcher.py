"""How a worker process is started."""

from dataclasses import dataclass
from pathlib import Path

from modelmill.cluster.base import Cluster, Handle
from modelmill.control.db import Deployment
from modelmill.control.reconciler.running import Running, Version
from modelmill.control.registry import Registry
from modelmill.types import ServingOptions, WorkerSpec


@dataclass
class Launcher:
    """Starts workers of `entry`, with their sockets in one folder and their log in another."""

    cluster: Cluster
    registry: Registry
    entry: str
    logs: Path
    sockets: Path
    started: int = 0
    """How many were started, by which their sockets are named."""

    def start(
        self,
        row: Deployment,
        version: Version,
        options: ServingOptions,
        threads: int,
        now: float,
    ) -> Running:
        """A worker of a version with `threads`, unless the options say how many; raises
        `MillError` or `OSError`.
        """
        self.started += 1
        spec = self._spec(row, version, options, options.threads or threads)
        return Running(row, version, spec, self._process(spec), now)

    def _spec(
        self,
        row: Deployment,
        version: Version,
        options: ServingOptions,
        threads: int,
    ) -> WorkerSpec:
        model, number = version
        registered = self.registry.get(row.project_id, f"{model}:{number}")
        return WorkerSpec(
            deployment=row.name,
            model=model,
            version=number,
            bundle=str(self.registry.folder(registered)),
            socket=str(self.sockets / f"w{self.started}.sock"),
            threads=threads,
            decoders=threads,
            engine=options.engine,
            precision=options.precision,
            digest=registered.digest,
            batch=options.batch,
        )

    def _process(self, spec: WorkerSpec) -> Handle:
        return self.cluster.start(
            self.entry,
            spec,
            title=f"modelmill: worker {spec.deployment}",
            log=self.logs / "workers.log",
            env={"OMP_NUM_THREADS": str(spec.threads)},
        )
