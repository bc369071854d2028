"""How many workers a deployment should have, and which ones are evicted: pure decisions."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from modelmill.types import ServingOptions

STEP_SECONDS = 1.0
"""Least seconds between two scale-ups."""
CALM_SECONDS = 30.0
"""Seconds of a calm queue before a scale-down."""
BUSY_WAIT = 0.5
"""A queue whose oldest call has waited less than this share of the target is calm."""


@dataclass(frozen=True)
class Signals:
    """The queue of a deployment over all gateways: waiting calls, age of the oldest, calls in
    progress, time since the last call; times in seconds.
    """

    waiting: int = 0
    oldest: float = 0.0
    busy: int = 0
    idle_seconds: float = 0.0


@dataclass(frozen=True)
class Scale:
    """How many workers are desired, since when, and since when the queue is calm (s)."""

    wanted: int
    changed: float = 0.0
    calm_since: float | None = None


def scale(
    now: float,
    state: Scale,
    signals: Signals,
    options: ServingOptions,
    complete: bool = True,
) -> Scale:
    """The next state: one worker more while calls wait too long, one fewer after a calm time, none
    when idle.

    No worker is added before all desired ones are ready (`complete`). Being loaded counts as a
    call.
    """
    fewest = options.min_replicas
    most = max(options.max_replicas, options.min_replicas, 1)
    wanted = min(max(state.wanted, fewest), most)
    if signals.waiting and not wanted:
        return Scale(1, now)
    if wanted != state.wanted:
        return Scale(wanted, now)
    if signals.waiting and signals.oldest > options.target_delay_ms / 1e3:
        return _grown(now, state, complete and wanted < most)
    if wanted and not fewest and _is_idle(now, state, signals, options):
        return Scale(0, now)
    if wanted <= max(fewest, 1) or not _is_calm(wanted, signals, options):
        return replace(state, calm_since=None)
    return _after_calm(now, state, options)


def _grown(now: float, state: Scale, may_grow: bool) -> Scale:
    """One worker more, unless one came just now; the queue is not calm."""
    if may_grow and now - state.changed >= STEP_SECONDS:
        return Scale(state.wanted + 1, now)
    return replace(state, calm_since=None)


def _after_calm(now: float, state: Scale, options: ServingOptions) -> Scale:
    """One worker fewer, when the queue is calm for long enough."""
    since = now if state.calm_since is None else state.calm_since
    if now - since >= min(CALM_SECONDS, options.idle_seconds):
        return Scale(state.wanted - 1, now)
    return replace(state, calm_since=since)


def _is_idle(
    now: float, state: Scale, signals: Signals, options: ServingOptions
) -> bool:
    """Whether nobody has called for so long that no worker is needed."""
    if signals.waiting or signals.busy:
        return False
    return (
        min(signals.idle_seconds, now - state.changed) >= options.idle_seconds
    )


def _is_calm(wanted: int, signals: Signals, options: ServingOptions) -> bool:
    """Whether one worker fewer would do."""
    longest = options.target_delay_ms / 1e3 * BUSY_WAIT
    return signals.busy < wanted and signals.oldest <= longest


@dataclass(frozen=True)
class HeldMemory:
    """The memory (bytes) of a deployment's workers, and the seconds since its last call."""

    deployment: int
    memory: int
    idle_seconds: float
    waiting: bool = False


MIN_IDLE_SECONDS = 1.0
"""A deployment called more recently is not evicted."""


def evict(held: Iterable[HeldMemory], budget: int) -> list[int]:
    """The deployments to unload so that the rest fits the budget (bytes): the least recently used
    first, none that is in use.
    """
    deployments = list(held)
    total = sum(deployment.memory for deployment in deployments)
    evicted = []
    for deployment in sorted(deployments, key=lambda each: -each.idle_seconds):
        if total <= budget:
            break
        if deployment.waiting or deployment.idle_seconds < MIN_IDLE_SECONDS:
            continue
        evicted.append(deployment.deployment)
        total -= deployment.memory
    return evicted


def share(cores: int, fixed: int, automatic: int) -> int:
    """Threads of each worker without a fixed number (at least 1), such that all fit the cores."""
    return max(1, (cores - fixed) // max(1, automatic))
