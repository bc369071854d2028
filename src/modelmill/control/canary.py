"""When a canary has shown that it is worse than the version it should replace: a pure decision."""

from dataclasses import dataclass

from modelmill.types import Variant

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
        return Tally(self.success - earlier.success, self.failure - earlier.failure, self.seconds - earlier.seconds)

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
    if main.success >= limits.min_requests and canary.mean > main.mean * limits.max_slowdown + SLACK_SECONDS:
        return (
            f"it took {canary.mean * 1e3:.1f} ms a request, the main version {main.mean * 1e3:.1f} ms "
            f"(limit {limits.max_slowdown:g} times)"
        )
    return ""


@dataclass(frozen=True)
class Judge:
    """Compares a canary with one main version, from the counts at which it was appointed."""

    main: tuple[str, int]
    canary_before: Tally
    main_before: Tally

    def verdict(self, canary: Tally, main: Tally, limits: Variant) -> str:
        """Why the canary must go, or an empty string."""
        return verdict(canary.since(self.canary_before), main.since(self.main_before), limits)
