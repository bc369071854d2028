"""Chooses the batch size when a model is loaded: times growing batches until throughput stops
improving.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from modelmill.engines.base import NUMPY
from modelmill.independence import can_be_tried
from modelmill.serve.wire import Batch, Call, Tensor
from modelmill.types import Manifest, TensorSpec

SIZES = (1, 2, 4, 8, 16, 32, 64)
ENOUGH_SECONDS = 0.25
MOST_SECONDS = 2.0
LEAST = 8
"""Sizes up to this one are tried also when `ENOUGH_SECONDS` have passed, as far as `MOST_SECONDS`
allow.
"""
HEAVY_SECONDS = 1e-3
"""A row that takes longer makes the model a heavy one."""
CLOSE = 1.15
SHARE_SECONDS = 0.02
LEAST_TRIES, MOST_TRIES = 2, 12
FREE = 8
"""Length of a free axis after the first, for lack of anything better."""


def seconds_of_one(
    answer: Callable[[Sequence[Call]], Batch], manifest: Manifest
) -> float:
    """Seconds that one row takes; endless when the model can't be tried."""
    if not can_be_tried(manifest):
        return float("inf")
    calls = _examples(manifest, 1)
    if answer(calls).answers[0].code:
        return float("inf")
    return _timed(answer, calls)


def best_rows(
    answer: Callable[[Sequence[Call]], Batch], manifest: Manifest
) -> int:
    """How many rows make a batch (see `knee`), found by trying; 0 when the model can't be tried."""
    if not can_be_tried(manifest):
        return 0
    times: dict[int, float] = {}
    started = time.perf_counter()
    for size in SIZES:
        passed = time.perf_counter() - started
        expected = 2 * LEAST_TRIES * times[size // 2] if times else 0.0
        enough = passed > ENOUGH_SECONDS and size > LEAST
        if enough or passed + expected > MOST_SECONDS:
            break
        times[size] = _best_time(answer, _examples(manifest, size))
        if not times[size]:
            return 0
    return knee(times)


def knee(times: dict[int, float]) -> int:
    """How many rows make a batch, from the seconds that batches of each size took.

    Of the sizes whose time a row is close to the best one: the smallest for light models, so that
    gateway and worker overlap; the largest for heavy ones, up to `LEAST`, because each batch has a
    way there and back.
    """
    if not times:
        return 0
    best = min(seconds / size for size, seconds in times.items())
    close = [
        size
        for size, seconds in times.items()
        if seconds / size <= best * CLOSE
    ]
    return (
        max((size for size in close if size <= LEAST), default=min(close))
        if best > HEAVY_SECONDS
        else min(close)
    )


def _best_time(
    answer: Callable[[Sequence[Call]], Batch], calls: Sequence[Call]
) -> float:
    """The best of several tries, fewer for what takes long: others use the machine too; none when
    it fails.
    """
    started = time.perf_counter()
    if answer(calls).answers[0].code:
        return 0.0
    times = [time.perf_counter() - started]
    while len(times) < MOST_TRIES and (
        len(times) < LEAST_TRIES or sum(times) < SHARE_SECONDS
    ):
        times.append(_timed(answer, calls))
    return min(times)


def _timed(
    answer: Callable[[Sequence[Call]], Batch], calls: Sequence[Call]
) -> float:
    started = time.perf_counter()
    answer(calls)
    return time.perf_counter() - started


def _examples(manifest: Manifest, count: int) -> list[Call]:
    """Calls with one row of zeros each."""
    return [
        Call(0, None, [_example(spec) for spec in manifest.inputs], {})
        for _ in range(count)
    ]


def _example(spec: TensorSpec) -> Tensor:
    """One row of zeros."""
    shape = [1, *(side if side > 0 else FREE for side in spec.shape[1:])]
    return Tensor(
        spec.name,
        spec.datatype,
        shape,
        np.zeros(shape, NUMPY[spec.datatype]).tobytes(),
    )
