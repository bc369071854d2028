"""What the reconciler remembers of its worker processes, and of what gateways say of their
queues.
"""

from modelmill.cluster.base import Handle
from modelmill.control.db import Deployment
from modelmill.control.scaling import Signals
from modelmill.types import WorkerSpec

STALE_SECONDS = 2.0

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
        self.asked = False
        self.error = ""


class Heard:
    """What gateways last said of the queue of a version."""

    def __init__(self) -> None:
        self._words: dict[str, tuple[float, Signals]] = {}

    def hear(self, gateway: str, signals: Signals, now: float) -> None:
        """Keep the last word."""
        self._words[gateway] = (now, signals)

    def waiting(self, now: float) -> bool:
        """Whether a call waits at any gateway that has spoken lately."""
        return any(
            signals.waiting
            for told, signals in self._words.values()
            if now - told < STALE_SECONDS
        )

    def signals(self, now: float) -> Signals | None:
        """All gateways together; None when none has spoken lately."""
        words = [
            signals
            for told, signals in self._words.values()
            if now - told < STALE_SECONDS
        ]
        if not words:
            return None
        return Signals(
            sum(word.waiting for word in words),
            max(word.oldest for word in words),
            sum(word.busy for word in words),
            min(word.idle_seconds for word in words),
        )
