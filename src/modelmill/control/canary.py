"""Whether a canary is worse than the main version: a pure decision."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from modelmill.types import Variant

Version = tuple[str, int]

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
            canary.since(self.canary_before), main.since(self.main_before), limits
        )


class Judges:
    """The judges of all canaries by deployment and version, created when a canary is first seen."""

    def __init__(self) -> None:
        self._judges: dict[tuple[int, Version], Judge] = {}
        self._judged = 0.0

    def __len__(self) -> int:
        """The number of judges."""
        return len(self._judges)

    def due(self, now: float) -> bool:
        """Whether `JUDGE_SECONDS` have passed since the last comparison."""
        if now - self._judged < JUDGE_SECONDS:
            return False
        self._judged = now
        return True

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
