"""Which items train, which choose the best epoch, and which measure: the same answer for the same
content.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modelmill.data.base import SPLITS

TRAIN = 0
VAL = 1
TEST = 2
UNDECLARED = -1
SHARE = 10
"""One item in this many goes to each split that is made here."""
TEST_CLASSES = 5
"""One class in this many is tested on, where whole classes are held out: a search among few is too
easy.
"""
LEAST_CLASSES = 10
"""Classes from which whole ones can be held out: two to choose by, two to test on, and enough to
learn from.
"""
LEAST_FOLDERS = 4

Codes = NDArray[np.int8]


def assign(
    labels: NDArray[np.int32], declared: Codes, fingerprints: NDArray[np.uint64]
) -> Codes:
    """The split of every item as a code: 0 train, 1 val, 2 test.

    All arrays are [items]; `declared` is -1 where the set says nothing. Declared splits are kept;
    where only some are, the rest trains; a val without a test is the test. Without any, a tenth of
    every class becomes val and a tenth test; with train but no val, a tenth of every class's train
    becomes val. The choice is by rank of the content's hash within the class: independent of order,
    and never between two items of one class with the same content, or whatever else their
    `fingerprints` are of.
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
    """Whether a set declares val but no test: what its makers measured on then measures here as
    well.
    """
    return bool((declared == VAL).any() and not (declared == TEST).any())


def assign_classes(
    names: Sequence[str],
    labels: NDArray[np.int32],
    declared: Codes,
    prints: NDArray[np.uint64],
) -> Codes:
    """As `assign`, but without declared splits whole classes go to one split, so that unknown ones
    are tested on.

    A fifth of the classes is tested on and a tenth is val, by rank of the name's hash. Classes in
    several folders, such as ALPHABET/CHARACTER, are tested on by whole folders. Where there are
    fewer than ten classes, every class is split.
    """
    if (declared != UNDECLARED).any() or len(names) < LEAST_CLASSES:
        return assign(labels, declared, prints)
    order = sorted(names, key=_hash)
    test = _held_folders(order) or order[: max(2, len(order) // TEST_CLASSES)]
    rest = [name for name in order if name not in set(test)]
    split = dict.fromkeys(test, TEST) | dict.fromkeys(
        rest[: max(2, round(len(rest) / SHARE))], VAL
    )
    return np.array([split.get(name, TRAIN) for name in names], np.int8)[labels]


def _held_folders(names: list[str]) -> list[str]:
    """The classes of a fifth of the folders; none where the folders are too few or hold too
    much.
    """
    folders = sorted(
        {name.rpartition("/")[0].partition("/")[0] for name in names}, key=_hash
    )
    held = set(folders[: max(1, len(folders) // TEST_CLASSES)])
    inside = [name for name in names if name.partition("/")[0] in held and "/" in name]
    return (
        inside
        if len(folders) >= LEAST_FOLDERS and 2 <= len(inside) <= len(names) / 2
        else []
    )


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


def _classes(
    labels: NDArray[np.int32], chosen: NDArray[np.bool_]
) -> list[NDArray[np.intp]]:
    places = np.flatnonzero(chosen)
    ordered = places[np.argsort(labels[places], kind="stable")]
    return (
        np.split(ordered, np.flatnonzero(np.diff(labels[ordered])) + 1)
        if len(ordered)
        else []
    )
