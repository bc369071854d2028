"""When a canary has shown that it is worse than the version it should replace: a pure decision."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from modelmill.types import Variant

Version = tuple[str, int]

JUDGE_SECONDS = 0.5
SLACK_SECONDS = 0.005
"""Differences below this are no reason: a canary of a fast model pays for being called seldom."""


@dataclass(frozen=True)
class Tally:
    """Requests since the canary began; `seconds` are of the successful ones."""

    success: int = 0
    failure: int = 0
    seconds: float = 0.0

    def since(self, earlier: "Tally") -> "Tally":
        """What was added since."""
        return Tally(
            self.success - earlier.success,
            self.failure - earlier.failure,
            self.seconds - earlier.seconds,
        )

    @property
    def mean(self) -> float:
        """Seconds of a successful request."""
        return self.seconds / self.success if self.success else 0.0


def verdict(canary: Tally, main: Tally, limits: Variant) -> str:
    """Why the canary must go, or an empty string."""
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
    """Compares a canary with one main version, from the counts at which it was appointed."""

    main: Version
    canary_before: Tally
    main_before: Tally

    def verdict(self, canary: Tally, main: Tally, limits: Variant) -> str:
        """Why the canary must go, or an empty string."""
        return verdict(
            canary.since(self.canary_before), main.since(self.main_before), limits
        )


class Judges:
    """The judges of all canaries, by deployment and version; each is appointed when its canary is
    first seen.
    """

    def __init__(self) -> None:
        self._judges: dict[tuple[int, Version], Judge] = {}
        self._sat = 0.0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._judges)

    def due(self, now: float) -> bool:
        """Whether it is time to judge again: now and then is often enough."""
        if now - self._sat < JUDGE_SECONDS:
            return False
        self._sat = now
        return True

    def keep(self, canaries: Collection[tuple[int, Version]]) -> None:
        """Dismiss the judges of canaries that are no more."""
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
        """Why a deployment's canary must go, or an empty string; `tally` counts a version's
        requests so far.
        """
        canary = (limits.model, limits.version)
        judge = self._judges.get((number, canary))
        if (
            judge is None or judge.main != main
        ):  # from now on, not for what was counted before
            judge = self._judges[number, canary] = Judge(
                main, tally(canary), tally(main)
            )
        return judge.verdict(tally(canary), tally(main), limits)
