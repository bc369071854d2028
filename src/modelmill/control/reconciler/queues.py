"""The queues of deployments as the gateways report them."""

from collections.abc import Collection

from modelmill.control.reconciler.scaling import Signals

STALE_SECONDS = 2.0
"""Signals of a gateway that are older than this are ignored."""

QueueName = tuple[str, str]
"""Project and deployment."""


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


class Queues:
    """The queues of all deployments."""

    def __init__(self) -> None:
        self._queues: dict[QueueName, QueueSignals] = {}

    def __len__(self) -> int:
        """The number of queues that were reported."""
        return len(self._queues)

    def record(
        self, gateway: str, name: QueueName, signals: Signals, now: float
    ) -> None:
        """Keep a gateway's latest signals of a queue."""
        self._queues.setdefault(name, QueueSignals()).record(
            gateway, signals, now
        )

    def waiting(self, name: QueueName, now: float) -> bool:
        """Whether a call waits at any gateway that reported lately."""
        queue = self._queues.get(name)
        return queue is not None and queue.waiting(now)

    def signals(self, name: QueueName, now: float) -> Signals:
        """The signals of all gateways together."""
        queue = self._queues.get(name)
        return (queue.signals(now) if queue else None) or Signals()

    def keep(self, names: Collection[QueueName]) -> None:
        """Drop the queues of deployments that are gone."""
        self._queues = {
            name: queue for name, queue in self._queues.items() if name in names
        }
