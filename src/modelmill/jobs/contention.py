"""Whether other processes keep a job from the cores, by what the kernel says of its threads."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from modelmill.jobs.process import Events

LOOK_SECONDS = 5.0
BUSY = 1.5
FREE = 1.2
"""How many times slower is busy, and below which it is no longer: what lies between changes
nothing.
"""
THREADS = Path("/proc/self/task")


class Times(NamedTuple):
    """Of a thread, in nanoseconds: how long it ran, and how long it waited for a core."""

    ran: int
    waited: int


def thread_times() -> dict[str, Times]:
    """All threads of this process (schedstat of proc(5)); none where the kernel does not tell."""
    found: dict[str, Times] = {}
    try:
        for thread in THREADS.iterdir():
            ran, waited, _ = (thread / "schedstat").read_text().split()
            found[thread.name] = Times(int(ran), int(waited))
    except (OSError, ValueError):  # it ended as it was read
        return found
    return found


def slowdown(before: Mapping[str, Times], after: Mapping[str, Times]) -> float:
    """How many times slower the busiest thread was than with a core of its own; the others wait for
    it.
    """
    spent = [
        Times(now.ran - then.ran, now.waited - then.waited)
        for name, now in after.items()
        if (then := before.get(name))
    ]
    busiest = max(
        spent, key=lambda one: one.ran + one.waited, default=Times(0, 0)
    )
    return (
        (busiest.ran + busiest.waited) / busiest.ran if busiest.ran > 0 else 1.0
    )


class Contention:
    """Says once that the machine has become busy, and once that it no longer is."""

    def __init__(
        self,
        events: Events,
        clock: Callable[[], float] = time.monotonic,
        times: Callable[[], Mapping[str, Times]] = thread_times,
    ) -> None:
        self._events = events
        self._clock = clock
        self._times = times
        self._before = times()
        self._looked = clock()
        self._busy = False

    def look(self) -> None:
        """To be called often; it looks every few seconds."""
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        before = self._before
        self._before = self._times()
        self._looked = now
        self._tell(slowdown(before, self._before))

    def _tell(self, times: float) -> None:
        """Say what has changed, where the training is so many times slower than alone."""
        if times > BUSY and not self._busy:
            self._busy = True
            self._events.stage(
                f"the machine is busy: this goes {times:.1f} times slower than it would alone"
            )
        elif times < FREE and self._busy:
            self._busy = False
            self._events.stage("the machine is no longer busy")
