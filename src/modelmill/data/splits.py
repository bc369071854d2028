"""Assigns items to train, val and test, deterministically by their content."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modelmill.data.base import SPLITS
from modelmill.data.names import top_folder

TRAIN = 0
VAL = 1
TEST = 2
UNDECLARED = -1
SHARE = 10
"""One item in this many goes to each split that the set does not declare."""
TEST_CLASSES = 5
"""One class in this many is tested on where whole classes are held out."""
LEAST_CLASSES = 10
"""Least classes for holding out whole ones: two for val, two for test, the rest to train on."""
LEAST_FOLDERS = 4
"""Least folders of classes for holding out whole folders."""

Codes = NDArray[np.int8]


def assign(
    labels: NDArray[np.int32], declared: Codes, fingerprints: NDArray[np.uint64]
) -> Codes:
    """The split of every item as a code: 0 train, 1 val, 2 test.

    All arrays are [items]; `declared` is -1 where the set declares nothing. Declared splits are
    kept; where only some items have one, the rest trains; a val without a test is the test. Without
    declared splits a tenth of every class becomes val and a tenth test; with train but no val, a
    tenth of every class's train becomes val. Items are chosen by the rank of their `fingerprints`
    (hashes of content, or of group keys) within the class: independent of their order, and items of
    one class with equal fingerprints stay together.
    """
    splits: Codes = np.where(declared == UNDECLARED, TRAIN, declared).astype(
        np.int8
    )
    if val_measures(declared):
        splits[splits == VAL] = TEST
    missing = _missing_splits(declared, splits)
    for members in _rows_by_class(labels, splits == TRAIN) if missing else ():
        _hold_out(splits, members, fingerprints[members], missing)
    return splits


def _missing_splits(declared: Codes, splits: Codes) -> list[int]:
    """The splits that are still to be taken from train."""
    if (declared == UNDECLARED).all():
        return [TEST, VAL]
    return [] if (splits == VAL).any() else [VAL]


def _hold_out(
    splits: Codes,
    members: NDArray[np.intp],
    fingerprints: NDArray[np.uint64],
    missing: list[int],
) -> None:
    """Give a tenth of a class's members to each split that is missing, in place."""
    contents, rank = np.unique(fingerprints, return_inverse=True)
    if len(contents) < len(SPLITS):
        return
    size = max(1, round(len(contents) / SHARE))
    for part, split in enumerate(missing):
        splits[members[rank // size == part]] = split


def val_measures(declared: Codes) -> bool:
    """Whether a set declares val but no test; its val is then the test."""
    return bool((declared == VAL).any() and not (declared == TEST).any())


def assign_classes(
    names: Sequence[str],
    labels: NDArray[np.int32],
    declared: Codes,
    prints: NDArray[np.uint64],
) -> Codes:
    """As `assign`, but without declared splits each class goes to one split, so that the test is on
    unknown classes.

    A fifth of the classes is test and a tenth val, by rank of the name's hash. Of classes in
    several folders, such as ALPHABET/CHARACTER, whole folders are test. With fewer than ten classes
    items are assigned one by one.
    """
    if (declared != UNDECLARED).any() or len(names) < LEAST_CLASSES:
        return assign(labels, declared, prints)
    splits = _split_of_classes(sorted(names, key=_hash))
    return np.array([splits.get(name, TRAIN) for name in names], np.int8)[
        labels
    ]


def _split_of_classes(order: list[str]) -> dict[str, int]:
    """The classes that are held out, of all by their rank."""
    test = (
        _classes_of_folders(order)
        or order[: max(2, len(order) // TEST_CLASSES)]
    )
    rest = [name for name in order if name not in set(test)]
    val = rest[: max(2, round(len(rest) / SHARE))]
    return dict.fromkeys(test, TEST) | dict.fromkeys(val, VAL)


def _classes_of_folders(names: list[str]) -> list[str]:
    """The classes of a fifth of the folders; none where there are too few folders, or these hold
    too many classes.
    """
    tops = {top_folder(name) for name in names}
    if len(tops) < LEAST_FOLDERS:
        return []
    order = sorted(tops, key=_hash)
    tested = set(order[: max(1, len(order) // TEST_CLASSES)]) - {""}
    classes = [name for name in names if top_folder(name) in tested]
    return classes if 2 <= len(classes) <= len(names) / 2 else []


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


def _rows_by_class(
    labels: NDArray[np.int32], chosen: NDArray[np.bool_]
) -> list[NDArray[np.intp]]:
    chosen_rows = np.flatnonzero(chosen)
    ordered = chosen_rows[np.argsort(labels[chosen_rows], kind="stable")]
    return (
        np.split(ordered, np.flatnonzero(np.diff(labels[ordered])) + 1)
        if len(ordered)
        else []
    )
