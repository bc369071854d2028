"""How many workers a deployment should have, and which ones sleep: pure decisions, tested as
tables.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from modelmill.types import ServingOptions

STEP_SECONDS = 1.0
CALM_SECONDS = 30.0
BUSY_WAIT = 0.5
"""A queue whose oldest call has waited less than this share of the target is calm."""


@dataclass(frozen=True)
class Signals:
    """How a deployment stands, all gateways together; times in seconds."""

    waiting: int = 0
    oldest: float = 0.0
    busy: int = 0
    idle_seconds: float = 0.0


@dataclass(frozen=True)
class Scale:
    """How many workers are wanted, since when, and since when fewer would do."""

    wanted: int
    changed: float = 0.0
    calm_since: float | None = None


def scale(
    now: float, state: Scale, seen: Signals, options: ServingOptions, whole: bool = True
) -> Scale:
    """The next state: one worker more while calls wait too long, one fewer after a calm time, none
    when idle.

    While not all that are wanted are there (`whole`), more would not help sooner. Being loaded
    counts as a call.
    """
    least = options.min_replicas
    most = max(options.max_replicas, options.min_replicas, 1)
    wanted = min(max(state.wanted, least), most)
    if seen.waiting and not wanted:
        return Scale(1, now)
    if wanted != state.wanted:
        return Scale(wanted, now)
    if seen.waiting and seen.oldest > options.target_delay_ms / 1e3:
        grown = whole and wanted < most and now - state.changed >= STEP_SECONDS
        return Scale(wanted + 1, now) if grown else replace(state, calm_since=None)
    idle = min(seen.idle_seconds, now - state.changed)
    if (
        not least
        and wanted
        and not seen.waiting
        and not seen.busy
        and idle >= options.idle_seconds
    ):
        return Scale(0, now)
    spare = (
        seen.busy < wanted and seen.oldest <= options.target_delay_ms / 1e3 * BUSY_WAIT
    )
    if wanted <= max(least, 1) or not spare:
        return replace(state, calm_since=None)
    since = now if state.calm_since is None else state.calm_since
    if now - since >= min(CALM_SECONDS, options.idle_seconds):
        return Scale(wanted - 1, now)
    return replace(state, calm_since=since)


@dataclass(frozen=True)
class Held:
    """The memory (bytes) that a deployment's workers hold, and for how many seconds nobody has
    called it.
    """

    deployment: int
    memory: int
    idle_seconds: float
    waiting: bool = False


SPARED_SECONDS = 1.0


def evict(held: Iterable[Held], budget: int) -> list[int]:
    """The deployments to unload so that the rest fits the budget: the least recently used first,
    none in use.
    """
    every = list(held)
    total = sum(one.memory for one in every)
    chosen = []
    for one in sorted(every, key=lambda one: -one.idle_seconds):
        if total <= budget:
            break
        if one.waiting or one.idle_seconds < SPARED_SECONDS:
            continue
        chosen.append(one.deployment)
        total -= one.memory
    return chosen


def share(cores: int, fixed: int, automatic: int) -> int:
    """Threads for each worker that leaves the choice to us, so that the sum stays within the cores
    while it can.
    """
    return max(1, (cores - fixed) // max(1, automatic))
