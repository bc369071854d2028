"""Which items train, which choose the best epoch, and which measure: the same answer for the same content."""

import numpy as np
from numpy.typing import NDArray

from modelmill.data.base import SPLITS

TRAIN, VAL, TEST = 0, 1, 2
UNDECLARED = -1
SHARE = 10
"""One item in this many goes to each split that is made here."""

Codes = NDArray[np.int8]


def assign(labels: NDArray[np.int32], declared: Codes, fingerprints: NDArray[np.uint64]) -> Codes:
    """The split of every item as a code: 0 train, 1 val, 2 test.

    All arrays are [items]; `declared` is -1 where the set says nothing. Declared splits are kept; where only
    some are, the rest trains; a val without a test is the test. Without any, a tenth of every class becomes val
    and a tenth test; with train but no val, a tenth of every class's train becomes val. The choice is by rank of
    the content's hash within the class: independent of order, and never between two items of one class with the
    same content.
    """
    splits: Codes = np.where(declared == UNDECLARED, TRAIN, declared).astype(np.int8)
    if val_measures(declared):
        splits[splits == VAL] = TEST
    wanted = [] if (splits == VAL).any() else [VAL]
    if (declared == UNDECLARED).all():
        wanted = [TEST, VAL]
    for members in _classes(labels, splits == TRAIN) if wanted else ():
        contents, rank = np.unique(fingerprints[members], return_inverse=True)
        if len(contents) >= len(SPLITS):
            size = max(1, round(len(contents) / SHARE))
            for place, split in enumerate(wanted):
                splits[members[rank // size == place]] = split
    return splits


def val_measures(declared: Codes) -> bool:
    """Whether a set declares val but no test: what its makers measured on then measures here as well."""
    return bool((declared == VAL).any() and not (declared == TEST).any())


def _classes(labels: NDArray[np.int32], chosen: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    places = np.flatnonzero(chosen)
    ordered = places[np.argsort(labels[places], kind="stable")]
    return np.split(ordered, np.flatnonzero(np.diff(labels[ordered])) + 1) if len(ordered) else []
