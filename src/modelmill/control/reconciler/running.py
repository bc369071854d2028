"""A worker process as the reconciler knows it."""

from modelmill.cluster.base import Handle
from modelmill.control.db import Deployment
from modelmill.types import ServingOptions, WorkerSpec

Version = tuple[str, int]
"""A version of a deployment's project: model and number."""


class Running:
    """A worker process of this node."""

    def __init__(
        self,
        row: Deployment,
        version: Version,
        spec: WorkerSpec,
        handle: Handle,
        started: float,
    ) -> None:
        self.deployment = row.id
        self.name = row.name
        self.version = version
        self.spec, self.handle = spec, handle
        self.started = started
        self.ready = False
        self.batch = 0
        self.alone = ""
        self.threads = spec.threads
        self.memory = 0
        self.leaving: float | None = None
        self.terminated = False
        self.error = ""

    @property
    def key(self) -> tuple[int, Version]:
        """The deployment and version that it serves."""
        return self.deployment, self.version

    @property
    def ended(self) -> bool:
        """Whether its process has ended."""
        return self.handle.exit_code() is not None

    def runs_as(self, options: ServingOptions) -> bool:
        """Whether it was started as the options say."""
        spec = self.spec
        same = (spec.engine, spec.precision, spec.batch) == (
            options.engine,
            options.precision,
            options.batch,
        )
        return same and options.threads in (0, spec.threads)
