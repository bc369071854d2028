"""Whether the rows of a batch are independent: the proof that several callers may share it.

A model can mix its rows: one whose first axis is time, one that is quantised dynamically (its
scale follows the largest value of the whole batch), one that normalises over the batch. Joined
with others, a call would get another answer, and callers could read one another's data from it.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from modelmill.engines.base import NUMPY
from modelmill.errors import MillError, reraise_exit
from modelmill.predictor import Predictor, read_golden
from modelmill.tasks.base import Arrays
from modelmill.types import ALONE, Manifest, TensorSpec

log = logging.getLogger("modelmill.worker")

LENGTHS = (8, 32, 64, 224)
"""Lengths tried for free axes, until one is accepted."""
EXTREME = 1e4
"""Factor of the extreme row: it would change a scale that is shared by the batch."""
WIDE, NARROW = 100, 2
"""Whole numbers tried: below `WIDE`, and below `NARROW` where the network takes no others."""
TOLERANCE = 2e-4
"""Allowed difference of float32 outputs, relative to the largest value of a row.

Kernels for other batch sizes add up in another order, which moves a value by about 1e-6.
"""
ORDERS = ([0, 1, 2, 3], [3, 2, 0, 1], [1, 1, 0], [3, 2])
"""The batches that the four rows are tried in."""
SLOW_SECONDS = 1.0
"""A row that takes longer is not tried: it gains nothing from others in its batch."""

SHARED = (
    "calls share batches: the rows of a batch are independent of one another"
)
DEPENDENT = "rows of a batch depend on one another"
SLOW = f"a row takes longer than {SLOW_SECONDS:g} second, and others would gain nothing"
UNTRIED = "it could not be tried whether rows of a batch depend on one another"
FAILED = "the engine failed when rows of a batch were tried"


def rows_independent(model: Predictor) -> bool:
    """Whether each row's output is the same alone, beside other rows, and in another order.

    False also when this can't be tried, such as for inputs of type BYTES, and when the engine
    fails in a way that it should not.
    """
    return not why_alone(model)


def why_alone(model: Predictor) -> str:
    """Why each call has to run alone; empty where the rows of a batch are independent."""
    if model.grows:
        return ""
    try:
        for example in _examples(model):
            try:
                return _differs_together(model, _variants(example))
            except MillError:
                continue  # such as a length that the network can't take
    except BaseException as error:
        reraise_exit(error)
        log.exception("the rows of a batch could not be tried")
        return FAILED
    return UNTRIED


def batches(model: Predictor) -> str:
    """How calls of this model are answered, as a sentence for its card."""
    if model.grows:
        return "texts of several calls grow beside one another"
    why = why_alone(model)
    return f"{ALONE}: {why}" if why else SHARED


def can_be_tried(manifest: Manifest) -> bool:
    """Whether values can be made up for the inputs: they have a batch axis, and are no BYTES."""
    return all(
        spec.datatype in NUMPY and spec.datatype != "BYTES" and spec.shape
        for spec in manifest.inputs
    )


def _examples(model: Predictor) -> Iterator[Arrays]:
    """Rows without the batch axis: a golden input of the task, or random values of its shapes."""
    if model.manifest.task:
        for case in read_golden(model.golden):
            yield model.decode(case["input"])
    elif can_be_tried(model.manifest):
        yield from _random_rows(model.manifest.inputs)


def _random_rows(specs: list[TensorSpec]) -> Iterator[Arrays]:
    """Rows of random values, of several lengths where axes are free."""
    fixed = all(side > 0 for spec in specs for side in spec.shape[1:])
    for length, most in product(LENGTHS, (WIDE, NARROW)):
        random = np.random.default_rng(0)
        yield {
            spec.name: _random_input(random, spec, length, most)
            for spec in specs
        }
        if fixed and most == NARROW:
            return


def _random_input(
    random: np.random.Generator, spec: TensorSpec, length: int, most: int
) -> np.ndarray:
    shape = [side if side > 0 else length for side in spec.shape[1:]]
    return _random(random, shape, np.dtype(NUMPY[spec.datatype]), most)


def _random(
    random: np.random.Generator,
    shape: Sequence[int],
    kind: np.dtype[np.generic],
    most: int,
) -> np.ndarray:
    """Values for one input; whole numbers may be token ids, so they are below `most`."""
    if kind == np.uint8:
        return random.integers(0, 256, shape).astype(kind)
    if kind == np.bool_:
        return random.integers(0, 2, shape).astype(kind)
    if np.issubdtype(kind, np.integer):
        return random.integers(0, most, shape).astype(kind)
    return random.normal(size=shape).astype(kind)


def _variants(row: Arrays) -> list[Arrays]:
    """The row, another one of the same values, one of extreme values, and one that lacks them.

    Whole numbers have no extreme that any network takes: theirs are rows of zeros and of ones,
    whose largest and smallest values are not those of the others.
    """
    other: Arrays = {}
    extreme: Arrays = {}
    flat: Arrays = {}
    for name, array in row.items():
        other[name], extreme[name] = _other_and_extreme(array)
        flat[name] = np.ones_like(array)
    return [row, other, extreme, flat]


def _other_and_extreme(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    backwards = np.ascontiguousarray(array[..., ::-1]) if array.ndim else array
    if array.dtype == np.uint8:
        return backwards // 2, 255 - array
    if array.dtype.kind in "iub":
        return backwards, np.zeros_like(array)
    # Cast back: a factor would widen the small float types.
    other = (backwards * 0.5).astype(array.dtype)
    return other, (array * EXTREME).astype(array.dtype)


def _differs_together(model: Predictor, rows: list[Arrays]) -> str:
    """Why the rows can't share a batch; empty when they are answered together as alone."""
    began = time.perf_counter()
    alone = [_run(model, [rows[0]])]
    if time.perf_counter() - began > SLOW_SECONDS:
        return SLOW
    alone += [_run(model, [row]) for row in rows[1:]]
    if any(len(array) != 1 for outputs in alone for array in outputs.values()):
        return DEPENDENT
    same = all(_matches(model, rows, alone, order) for order in ORDERS)
    return "" if same else DEPENDENT


def _matches(
    model: Predictor, rows: list[Arrays], alone: list[Arrays], order: list[int]
) -> bool:
    """Whether the rows in this order are answered together as alone."""
    tolerance = TOLERANCE if model.tolerance < 1e-2 else model.tolerance
    together = _run(model, [rows[at] for at in order])
    for name, array in together.items():
        if array.shape[:1] != (len(order),):
            return False
        for place, at in enumerate(order):
            if not _close(array[place], alone[at][name][0], tolerance):
                return False
    return True


def _run(model: Predictor, rows: Sequence[Arrays]) -> Arrays:
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return model.infer(batch)


def _close(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    """Whether two outputs are the same but for rounding; both may be NaN or infinite."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind in "iubOSU":
        return bool(np.array_equal(one, other))
    return _close_floats(
        one.astype(np.float64), other.astype(np.float64), tolerance
    )


def _close_floats(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return False
    scale = float(np.abs(one[finite]).max(initial=0.0))
    difference = np.abs(one[finite] - other[finite]).max(initial=0.0)
    return bool(difference <= tolerance * max(scale, 1e-6))
