"""Failed starts: how long the next one waits, and when a canary is given up."""

from collections.abc import Collection

from modelmill.control.db import Deployment
from modelmill.control.reconciler.canary import Canaries
from modelmill.control.reconciler.pending_writes import (
    PendingWrites,
    versions_of,
)
from modelmill.control.reconciler.running import Version

BACKOFF = (0.0, 0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds before the next start, by the number of failed ones."""
CANARY_FAILURES = 3
"""Failed starts after which a canary is rolled back."""

Key = tuple[int, Version]
"""A deployment's number and a version."""


class Failures:
    """The failed starts of each version of a deployment since it was last ready."""

    def __init__(self, writes: PendingWrites, canaries: Canaries) -> None:
        self._writes = writes
        self._canaries = canaries
        self._failures: dict[Key, tuple[int, float]] = {}

    def __len__(self) -> int:
        """The number of versions that failed."""
        return len(self._failures)

    def backing_off(self, key: Key, now: float) -> bool:
        """Whether the next start has to wait."""
        return key in self._failures and self._failures[key][1] > now

    def record(
        self, key: Key, message: str, now: float, *, count: bool = True
    ) -> None:
        """Wait longer after each failed start; a worker that was ready is replaced at once
        (`count` is false).
        """
        failures = self._failures.get(key, (0, 0.0))[0] + count
        wait = BACKOFF[min(failures, len(BACKOFF) - 1)]
        self._failures[key] = (failures, now + wait)
        self._writes.changed = True
        row = self._row(key[0])
        if count and row is not None:
            self._tell(row, key[1], message, failures)

    def _tell(
        self, row: Deployment, version: Version, message: str, failures: int
    ) -> None:
        """Write down why the main version does not start; give up a canary that fails again."""
        if (row.model, row.version) == version:
            self._writes.note(row, error=message)
        elif failures >= CANARY_FAILURES and version in versions_of(row):
            self._canaries.roll_back(row, version, message)
            self.forget((row.id, version))

    def forget(self, key: Key) -> None:
        """It is ready, or nobody wants it any more."""
        self._failures.pop(key, None)

    def keep(self, keys: Collection[Key]) -> None:
        """Drop what is known of versions that are gone."""
        self._failures = {
            key: failed for key, failed in self._failures.items() if key in keys
        }

    def _row(self, number: int) -> Deployment | None:
        return next(
            (row for row in self._writes.rows if row.id == number), None
        )
