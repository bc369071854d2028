"""How far a training has come, by its steps or by the clock, and the learning rate that belongs
there.
"""

import math
import time
from collections.abc import Callable

from torch.optim import Optimizer

from modelmill.jobs.optimisers import schedule
from modelmill.tasks.base import TrainSettings

TICKS = 1_000_000
"""The steps of a schedule that follows the clock."""
VALIDATION_SHARE = 1 / 3
"""What an item costs in validation, of what it costs in training, until it was measured."""

Clock = Callable[[], float]


class Pace:
    """The share of a training that is done.

    With a time budget that is the larger of two shares, of the time and of the steps; the end
    leaves room for the last validation. `spent` counts the seconds of earlier runs of the same job.
    """

    def __init__(
        self, settings: TrainSettings, steps: int, clock: Clock = time.monotonic
    ) -> None:
        self._steps = steps
        self._clock = clock
        self._budget = settings.seconds
        self._factor = schedule(settings, TICKS if self._budget else steps)
        self._begun = clock()
        self._before = 0.0
        self._closing = 0.0
        self._measured = False
        self.share = 0.0

    @property
    def spent(self) -> float:
        """Seconds of all runs until now."""
        return self._before + self._clock() - self._begun

    @property
    def over(self) -> bool:
        """Whether the time budget is used up but for the last validation."""
        return bool(self._budget) and self.share >= 1

    def resume(self, spent: float, share: float) -> None:
        """Go on after earlier runs, with what is left."""
        self._begun = self._clock()
        self._before = spent
        self.share = share

    def advance(self, step: int, trained: int, validated: int) -> None:
        """`step` steps are done, the items of this run `trained`; a validation looks at `validated`
        items.
        """
        if not self._budget:
            self.share = step / self._steps
            return
        if not self._measured:
            self._closing = self._estimate(validated / max(trained, 1))
        by_time = self.spent / max(self._budget - self._closing, 1e-9)
        self.share = max(self.share, min(1.0, max(by_time, step / self._steps)))

    def _estimate(self, share: float) -> float:
        """Seconds of a validation of so many items by the number of those that were trained."""
        seconds = (self._clock() - self._begun) * share
        return min(seconds * VALIDATION_SHARE, self._budget / 2)

    def validated(self, seconds: float) -> None:
        """A validation took so long: as long is kept free for the last one."""
        self._measured, self._closing = True, min(seconds, self._budget)
        if self._budget and self.spent + self._closing >= self._budget:
            self.share = (
                1.0  # there is no time for a step and another validation
            )

    def set_rates(self, optimisers: list[Optimizer], step: int) -> None:
        """The learning rates of the next step, from the peaks that the optimisers began with."""
        factor = self._factor(int(self.share * TICKS) if self._budget else step)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = (
                    group.setdefault("initial_lr", group["lr"]) * factor
                )

    def epochs(self, done: float, most: int) -> int:
        """Expected number of epochs, extrapolated from the time spent."""
        if not self._budget:
            return most
        return min(
            most,
            max(
                math.ceil(done),
                round(done * self._budget / max(self.spent, 1e-9)),
            ),
        )
