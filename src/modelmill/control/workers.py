"""The reconciler's record of its worker processes, and of the queues at the gateways."""

from modelmill.cluster.base import Handle
from modelmill.control.db import Deployment
from modelmill.control.scaling import Signals
from modelmill.types import WorkerSpec

STALE_SECONDS = 2.0
"""Signals of a gateway that are older than this are ignored."""

Version = tuple[str, int]


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


class QueueSignals:
    """The latest signals of each gateway about a deployment's queue."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[float, Signals]] = {}

    def record(self, gateway: str, signals: Signals, now: float) -> None:
        """Keep a gateway's latest signals."""
        self._latest[gateway] = (now, signals)

    def waiting(self, now: float) -> bool:
        """Whether a call waits at any gateway that reported lately."""
        return any(
            signals.waiting
            for received, signals in self._latest.values()
            if now - received < STALE_SECONDS
        )

    def signals(self, now: float) -> Signals | None:
        """The signals of all gateways together; None when none reported lately."""
        recent = [
            signals
            for received, signals in self._latest.values()
            if now - received < STALE_SECONDS
        ]
        if not recent:
            return None
        return Signals(
            sum(each.waiting for each in recent),
            max(each.oldest for each in recent),
            sum(each.busy for each in recent),
            min(each.idle_seconds for each in recent),
        )
