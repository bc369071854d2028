"""How many rows a model gains from: timed when it is loaded, on the path that calls will take."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from modelmill.engines.base import NUMPY
from modelmill.serve.wire import Batch, Call, Tensor
from modelmill.types import Manifest, TensorSpec

SIZES = (1, 2, 4, 8, 16, 32, 64)
ENOUGH_SECONDS = 0.25
MOST_SECONDS = 2.0
LEAST = 4
"""Sizes up to this one are tried also when `ENOUGH_SECONDS` have passed."""
CLOSE = 1.1
FREE = 8
"""Length of a free axis behind the first, for lack of anything better."""


def seconds_of_one(answer: Callable[[Sequence[Call]], Batch], manifest: Manifest) -> float:
    """Seconds that one row takes; endless when the model can't be tried."""
    if not _can_be_tried(manifest):
        return float("inf")
    calls = [Call(0, None, [_example(spec) for spec in manifest.inputs], {})]
    if answer(calls).answers[0].code:
        return float("inf")
    return _timed(answer, calls)


def _can_be_tried(manifest: Manifest) -> bool:
    return all(spec.datatype in NUMPY and spec.datatype != "BYTES" and spec.shape for spec in manifest.inputs)


def best_rows(answer: Callable[[Sequence[Call]], Batch], manifest: Manifest) -> int:
    """The smallest batch whose time a row is within 10 % of the best seen; 0 when the model can't be tried."""
    if not _can_be_tried(manifest):
        return 0
    times: dict[int, float] = {}
    started = time.perf_counter()
    for size in SIZES:
        passed = time.perf_counter() - started
        if passed > MOST_SECONDS or (passed > ENOUGH_SECONDS and size > LEAST):
            break
        calls = [Call(0, None, [_example(spec) for spec in manifest.inputs], {}) for _ in range(size)]
        if answer(calls).answers[0].code:
            return 0
        times[size] = min(_timed(answer, calls) for _ in range(3 if passed < ENOUGH_SECONDS else 1))
    return knee(times)


def knee(times: dict[int, float]) -> int:
    """The smallest size whose time a row is close to the best one; `times` are of whole batches, by their size."""
    if not times:
        return 0
    best = min(seconds / size for size, seconds in times.items())
    return min(size for size, seconds in times.items() if seconds / size <= best * CLOSE)


def _timed(answer: Callable[[Sequence[Call]], Batch], calls: Sequence[Call]) -> float:
    started = time.perf_counter()
    answer(calls)
    return time.perf_counter() - started


def _example(spec: TensorSpec) -> Tensor:
    """One row of zeros."""
    shape = [1, *(side if side > 0 else FREE for side in spec.shape[1:])]
    return Tensor(spec.name, spec.datatype, shape, np.zeros(shape, NUMPY[spec.datatype]).tobytes())
