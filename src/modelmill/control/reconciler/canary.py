"""Whether a canary is worse than the main version, and rolled back for it."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

import msgspec

from modelmill.control.db import Deployment
from modelmill.control.reconciler.pending_writes import PendingWrites
from modelmill.control.reconciler.running import Version
from modelmill.types import Variant

log = logging.getLogger("modelmill.node")

VersionKey = tuple[str, str, str]
"""Project, deployment, and a version as text."""

JUDGE_SECONDS = 0.5
"""Seconds between two comparisons."""
SLACK_SECONDS = 0.005
"""Differences in latency below this are tolerated: a canary of a fast model is slower for being
called seldom.
"""


@dataclass(frozen=True)
class Tally:
    """Counts of requests; `seconds` is the summed latency of the successful ones."""

    success: int = 0
    failure: int = 0
    seconds: float = 0.0

    def since(self, earlier: "Tally") -> "Tally":
        """The difference to an earlier tally."""
        return Tally(
            self.success - earlier.success,
            self.failure - earlier.failure,
            self.seconds - earlier.seconds,
        )

    @property
    def mean(self) -> float:
        """Mean latency of a successful request in seconds."""
        return self.seconds / self.success if self.success else 0.0


def verdict(canary: Tally, main: Tally, limits: Variant) -> str:
    """Why the canary must be rolled back, or ""."""
    total = canary.success + canary.failure
    if total < limits.min_requests:
        return ""
    share = canary.failure / total
    normal = main.failure / max(1, main.success + main.failure)
    if share > limits.max_error_rate + normal:
        return f"{canary.failure} of {total} requests failed (limit {limits.max_error_rate:.0%})"
    if (
        main.success >= limits.min_requests
        and canary.mean > main.mean * limits.max_slowdown + SLACK_SECONDS
    ):
        return (
            f"it took {canary.mean * 1e3:.1f} ms a request, the main version "
            f"{main.mean * 1e3:.1f} ms "
            f"(limit {limits.max_slowdown:g} times)"
        )
    return ""


@dataclass(frozen=True)
class Judge:
    """Compares a canary with one main version over the requests since the judge was created."""

    main: Version
    canary_before: Tally
    main_before: Tally

    def verdict(self, canary: Tally, main: Tally, limits: Variant) -> str:
        """Why the canary must be rolled back, or ""."""
        return verdict(
            canary.since(self.canary_before),
            main.since(self.main_before),
            limits,
        )


class Judges:
    """The judges of all canaries by deployment and version, created when a canary is first seen."""

    def __init__(self) -> None:
        self._judges: dict[tuple[int, Version], Judge] = {}

    def __len__(self) -> int:
        """The number of judges."""
        return len(self._judges)

    def keep(self, canaries: Collection[tuple[int, Version]]) -> None:
        """Drop the judges of canaries that are gone."""
        self._judges = {
            key: judge for key, judge in self._judges.items() if key in canaries
        }

    def verdict(
        self,
        number: int,
        limits: Variant,
        main: Version,
        tally: Callable[[Version], Tally],
    ) -> str:
        """Why a deployment's canary must be rolled back, or ""; `tally` counts a version's requests
        so far.
        """
        canary = (limits.model, limits.version)
        judge = self._judges.get((number, canary))
        if judge is None or judge.main != main:  # counts from now on
            judge = Judge(main, tally(canary), tally(main))
            self._judges[number, canary] = judge
        return judge.verdict(tally(canary), tally(main), limits)


class Canaries:
    """Rolls back canaries that are worse than the main version; `tally` is what a version has
    answered so far.
    """

    def __init__(
        self, writes: PendingWrites, tally: Callable[[VersionKey], Tally]
    ) -> None:
        self._writes = writes
        self._tally = tally
        self._judges = Judges()
        self._judged = 0.0

    def __len__(self) -> int:
        """The number of canaries that are watched."""
        return len(self._judges)

    def keep(self, canaries: Collection[tuple[int, Version]]) -> None:
        """Drop what is known of canaries that are gone."""
        self._judges.keep(canaries)

    def judge(self, now: float) -> list[tuple[int, Version]]:
        """Every `JUDGE_SECONDS`: roll back the canaries that are worse; returns which."""
        if now - self._judged < JUDGE_SECONDS:
            return []
        self._judged = now
        worse = []
        for row in self._writes.rows:
            for fields in row.variants:
                variant = msgspec.convert(fields, Variant)
                why = "" if variant.shadow else self._verdict(row, variant)
                if why:
                    version = (variant.model, variant.version)
                    self.roll_back(row, version, why)
                    worse.append((row.id, version))
        return worse

    def roll_back(self, row: Deployment, version: Version, why: str) -> None:
        """Take a canary away, with a note that says why."""
        note = f"{version[0]}:{version[1]} was rolled back: {why}"
        log.error("%s: %s", row.name, note)
        self._writes.drop(row, version, note)

    def _verdict(self, row: Deployment, variant: Variant) -> str:
        def tally(version: Version) -> Tally:
            model, number = version
            return self._tally((*self._writes.name(row), f"{model}:{number}"))

        main = (row.serving_model or row.model, row.serving or row.version)
        return self._judges.verdict(row.id, variant, main, tally)
