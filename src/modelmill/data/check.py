"""The check of a data set: one pass over its items that keeps some bytes of each."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from modelmill.data.base import SPLITS, Item
from modelmill.data.findings import (
    Findings,
    Table,
    about_classes,
    about_contents,
    about_splits,
)
from modelmill.data.magic import kind_of_data, kind_of_name
from modelmill.data.mask_values import values_of
from modelmill.data.names import shown
from modelmill.data.report import DROPPED, Finding, Index, Report
from modelmill.data.splits import UNDECLARED, assign, assign_classes
from modelmill.errors import Cancelled, MillError

__all__ = ["Finding", "Index", "Report", "examine"]

STEP = 256
"""Items between two reports of progress."""


Digest = Callable[[Item], str]
"""A sha256 (hexadecimal) of an item."""
GroupKey = Callable[[Item], str | None]
"""A sha256 (hexadecimal) that items of a group have in common, or None."""


def _ungrouped(item: Item) -> None:
    """Each item is a group of its own."""


def examine(
    items: Iterable[Item],
    fingerprint: Callable[[Item], str],
    progress: Callable[[int], None],
    *,
    labelled: bool = True,
    declared: Sequence[str] = (),
    whole_classes: bool = False,
    group_key: GroupKey = _ungrouped,
) -> tuple[Index, Report]:
    """Check all items and give each its split.

    Items that are not `labelled` need no class of their own: the classes are those of their boxes,
    the characters of their texts, or those `declared` (each counted once for a mask that holds it),
    and their balance is not checked. With `whole_classes` a class stays in one split, unless the
    set declares splits. Items with the same `group_key` (a sha256, hexadecimal) stay in one split,
    if there are at least three different keys.

    `fingerprint` returns the sha256 (hexadecimal) of an item's decoded content and raises
    `MillError` when it can't be decoded; `progress` is called with the number of items done. Bad
    items are dropped and reported.
    """
    checked = _Pass(fingerprint, group_key, labelled, masked=bool(declared))
    for item in items:
        checked.add(item)
        if len(checked.labels) % STEP == 0:
            progress(len(checked.labels))
    progress(len(checked.labels))
    return _conclude(checked, list(declared), whole_classes)


class _Pass:
    """What the pass keeps of each item: label, declared split, fingerprint, group, name."""

    def __init__(
        self,
        fingerprint: Digest,
        group_key: GroupKey,
        labelled: bool,
        masked: bool,
    ) -> None:
        self.fingerprint = fingerprint
        self.group_key = group_key
        self.labelled = labelled
        self.masked = masked
        self.mentions: Counter[str] = Counter()
        self.mask_values: Counter[int] = Counter()
        self.label_numbers: dict[str, int] = {}
        self.labels = array("i")
        self.declared = array("b")
        self.prints = array("Q")
        self.groups = array("Q")
        self.names, self.ends = bytearray(), array("Q", [0])
        self.findings = Findings()

    def add(self, item: Item) -> None:
        label = self._label_number(item)
        content = self._content(item)
        split = UNDECLARED if item.split is None else SPLITS.index(item.split)
        self.labels.append(label if content is not None else DROPPED)
        self.declared.append(split)
        self.prints.append(content or 0)
        self.groups.append(0 if content is None else self._group(item, content))
        if content is not None:
            self._count_classes(item)
        self._keep_name(item.name)

    def _group(self, item: Item, content: int) -> int:
        """The number of an item's group: by its key, else of its content alone."""
        key = self.group_key(item)
        return _short(key) if key else content

    def _keep_name(self, name: str) -> None:
        self.names += name.encode("utf-8", "backslashreplace")
        self.ends.append(len(self.names))

    def _label_number(self, item: Item) -> int:
        """The number of an item's label, by first occurrence."""
        if self.labelled and not item.label:
            return DROPPED
        return self.label_numbers.setdefault(
            item.label, len(self.label_numbers)
        )

    def _count_classes(self, item: Item) -> None:
        """Count the classes of a target: of its boxes, its characters, or its pixels."""
        if isinstance(item.target, list):
            self.mentions.update(box.label for box in item.target)
        elif isinstance(item.target, str):
            self.mentions.update(set(item.target))
        elif self.masked and isinstance(item.target, bytes):
            self.mask_values.update(np.unique(values_of(item.target)).tolist())

    def name(self, number: int) -> str:
        return shown(
            self.names[self.ends[number] : self.ends[number + 1]].decode()
        )

    def _content(self, item: Item) -> int | None:
        """The first 8 bytes of the content's hash, or None for an item to drop."""
        no_label = "" if item.label or not self.labelled else "has no label"
        if problem := item.problem or no_label:
            self.findings.drop("unreadable-row", f"{item.name}: {problem}")
            return None
        if _is_empty(item):
            self.findings.drop("empty", item.name)
            return None
        return self._decoded_content(item)

    def _decoded_content(self, item: Item) -> int | None:
        try:
            content = _short(self.fingerprint(item))
        except Cancelled:
            raise
        except MillError as error:
            self.findings.drop("undecodable", f"{item.name}: {error.message}")
            return None
        self._compare_extension(item)
        return content

    def _compare_extension(self, item: Item) -> None:
        """Warn of a picture of another kind than its name says."""
        named_kind = kind_of_name(item.name)
        if named_kind and isinstance(item.data, bytes):
            kind = kind_of_data(item.data)
            if kind and kind != named_kind:
                self.findings.warn(
                    "mislabelled-extension", f"{item.name} is {kind}"
                )


def _short(digest: str) -> int:
    """The first 8 bytes of a hash."""
    return int(digest[:16], 16)


def _is_empty(item: Item) -> bool:
    if isinstance(item.data, np.ndarray):
        return item.data.size == 0
    return not (item.data.strip() if isinstance(item.data, str) else item.data)


def _conclude(
    checked: _Pass, declared: list[str], whole_classes: bool
) -> tuple[Index, Report]:
    raw = np.array(checked.labels, np.int32)
    sound = np.flatnonzero(raw >= 0)
    table = _table_of(checked, raw, sound)
    splits = _splits_of(checked, table, sound, whole_classes)
    about_contents(checked.findings, table, splits)
    labels, classes = _classes_of(checked, declared, table)
    about_splits(checked.findings, table)
    report = Report(
        items=len(raw),
        sound=len(sound),
        classes=classes,
        splits=_sizes(splits),
        findings=checked.findings.conclude(),
    )
    return _index_of(checked, table, labels, sound, splits), report


def _sizes(splits: NDArray[np.int8]) -> dict[str, int]:
    """How many items each split has."""
    counts = np.bincount(splits, minlength=len(SPLITS)).tolist()
    return dict(zip(SPLITS, counts, strict=True))


def _classes_of(
    checked: _Pass, declared: list[str], table: Table
) -> tuple[list[str], dict[str, int]]:
    """The classes in order, and how many sound items have each; warns of their sizes."""
    sizes = np.bincount(table.codes, minlength=len(table.labels)).tolist()
    counts = dict(zip(table.labels, sizes, strict=True))
    if not checked.labelled:
        return _unlabelled_classes(checked, declared, counts)
    classes = {
        name: counts.get(name, 0)
        for name in sorted(checked.label_numbers, key=_order)
    }
    about_classes(checked.findings, classes)
    return table.labels, classes


def _table_of(
    checked: _Pass, raw: NDArray[np.int32], sound: NDArray[np.intp]
) -> Table:
    """The sound items, their labels in order without those that have no sound item."""
    names = list(checked.label_numbers)
    labels = sorted(
        (names[number] for number in set(raw[sound].tolist())), key=_order
    )
    return Table(
        labels,
        _codes(names, labels)[raw[sound]],
        np.array(checked.prints, np.uint64)[sound],
        np.array(checked.declared, np.int8)[sound],
        lambda number: checked.name(int(sound[number])),
    )


def _codes(names: Sequence[str], labels: Sequence[str]) -> NDArray[np.int32]:
    """The place of each name among the labels, or `DROPPED`."""
    rank = {label: number for number, label in enumerate(labels)}
    return np.array([rank.get(name, DROPPED) for name in names], np.int32)


def _splits_of(
    checked: _Pass, table: Table, sound: NDArray[np.intp], whole_classes: bool
) -> NDArray[np.int8]:
    """The split of each sound item."""
    if whole_classes:
        return assign_classes(
            table.labels, table.codes, table.declared, table.prints
        )
    groups = np.array(checked.groups, np.uint64)[sound]
    enough = len(np.unique(groups)) >= len(SPLITS)
    return assign(
        table.codes, table.declared, groups if enough else table.prints
    )


def _unlabelled_classes(
    checked: _Pass, declared: list[str], counts: dict[str, int]
) -> tuple[list[str], dict[str, int]]:
    """The classes of items without one label each, and how often they occur in masks, boxes or
    texts.
    """
    if declared:
        masks = checked.mask_values
        return declared, {
            name: masks[number] for number, name in enumerate(declared)
        }
    occurrences = checked.mentions or counts
    labels = sorted(filter(None, occurrences), key=_order)
    return labels, {name: occurrences[name] for name in labels}


def _index_of(
    checked: _Pass,
    table: Table,
    labels: list[str],
    sound: NDArray[np.intp],
    splits: NDArray[np.int8],
) -> Index:
    """The index of all items, with those that were dropped."""
    all_codes = np.full(len(checked.labels), DROPPED, np.int32)
    all_splits = np.full(len(checked.labels), DROPPED, np.int8)
    all_codes[sound] = _codes(table.labels, labels)[table.codes]
    all_splits[sound] = splits
    return Index.of(
        labels, all_codes, all_splits, np.array(checked.prints, np.uint64)
    )


def _order(label: str) -> tuple[int, int, str]:
    """Numbers in order of their value, before words."""
    return (
        (0, int(label), label)
        if label.isdecimal() and len(label) < 19
        else (1, 0, label)
    )
