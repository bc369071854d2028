"""The check of a data set: one pass over its items, in memory that grows by some bytes an item."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

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
"""Items between two tellings of progress."""


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
    group_key: Callable[[Item], str | None] = _ungrouped,
) -> tuple[Index, Report]:
    """Check all items and give each its split.

    Where items are not `labelled` with one class each, a class may be missing, the classes are
    those of their boxes, the characters of their texts, or those `declared` (in that order, each
    counted once for a mask that holds it), and nothing is said of how the classes are spread. With
    `whole_classes` a class goes to one split, where the set does not say otherwise. Items with the
    same `group_key` stay in one split, where there are enough different ones.

    `fingerprint` returns the sha256 (hexadecimal) of an item's decoded content and raises
    `MillError` when it can't be decoded; `progress` is told how many items are done. Bad items are
    dropped and reported.
    """
    seen = _Seen(fingerprint, group_key, labelled, masked=bool(declared))
    for item in items:
        seen.add(item)
        if len(seen.labels) % STEP == 0:
            progress(len(seen.labels))
    progress(len(seen.labels))
    return _conclude(seen, list(declared), whole_classes)


Print = Callable[[Item], str]
"""The sha256 (hexadecimal) of something about an item."""


class _Seen:
    """What the pass keeps of each item: label, declared split, fingerprint, name."""

    def __init__(
        self,
        fingerprint: Print,
        group_key: Callable[[Item], str | None],
        labelled: bool,
        masked: bool,
    ) -> None:
        self.fingerprint = fingerprint
        self.group_key = group_key
        self.labelled = labelled
        self.masked = masked
        self.named: Counter[str] = Counter()
        self.masks: Counter[int] = Counter()
        self.known: dict[str, int] = {}
        self.labels = array("i")
        self.declared = array("b")
        self.prints = array("Q")
        self.groups = array("Q")
        self.names, self.ends = bytearray(), array("Q", [0])
        self.findings = Findings()

    def add(self, item: Item) -> None:
        label = (
            self.known.setdefault(item.label, len(self.known))
            if item.label or not self.labelled
            else DROPPED
        )
        content = self._content(item)
        self.labels.append(label if content is not None else DROPPED)
        if content is not None and isinstance(item.target, list):
            self.named.update(box.label for box in item.target)
        elif content is not None and isinstance(item.target, str):
            self.named.update(set(item.target))
        elif content is not None and self.masked and isinstance(item.target, bytes):
            self.masks.update(np.unique(values_of(item.target)).tolist())
        self.declared.append(
            SPLITS.index(item.split) if item.split is not None else UNDECLARED
        )
        self.prints.append(content or 0)
        key = None if content is None else self.group_key(item)
        self.groups.append(_short(key) if key else content or 0)
        self.names += item.name.encode("utf-8", "backslashreplace")
        self.ends.append(len(self.names))

    def name(self, number: int) -> str:
        return shown(self.names[self.ends[number] : self.ends[number + 1]].decode())

    def _content(self, item: Item) -> int | None:
        """The first 8 bytes of the content's hash, or None for an item to drop."""
        if problem := item.problem or (
            "" if item.label or not self.labelled else "has no label"
        ):
            self.findings.drop("unreadable-row", f"{item.name}: {problem}")
            return None
        if _is_empty(item):
            self.findings.drop("empty", item.name)
            return None
        try:
            content = _short(self.fingerprint(item))
        except Cancelled:
            raise
        except MillError as error:
            self.findings.drop("undecodable", f"{item.name}: {error.message}")
            return None
        if isinstance(item.data, bytes) and (said := kind_of_name(item.name)):
            kind = kind_of_data(item.data)
            if kind and kind != said:
                self.findings.warn("mislabelled-extension", f"{item.name} is {kind}")
        return content


def _short(digest: str) -> int:
    """The first 8 bytes of a hash."""
    return int(digest[:16], 16)


def _is_empty(item: Item) -> bool:
    if isinstance(item.data, np.ndarray):
        return item.data.size == 0
    return not (item.data.strip() if isinstance(item.data, str) else item.data)


def _conclude(
    seen: _Seen, declared: list[str], whole_classes: bool
) -> tuple[Index, Report]:
    raw = np.array(seen.labels, np.int32)
    sound = np.flatnonzero(raw >= 0)
    names = list(seen.known)
    counts = dict(
        zip(names, np.bincount(raw[sound], minlength=len(names)).tolist(), strict=True)
    )
    labels = sorted((name for name in names if counts[name]), key=_order)
    rank = {label: number for number, label in enumerate(labels)}
    code = np.array([rank.get(name, DROPPED) for name in names], np.int32)
    table = Table(
        labels,
        code[raw[sound]],
        np.array(seen.prints, np.uint64)[sound],
        np.array(seen.declared, np.int8)[sound],
        lambda number: seen.name(int(sound[number])),
    )
    if whole_classes:
        splits = assign_classes(labels, table.codes, table.declared, table.prints)
    else:
        groups = np.array(seen.groups, np.uint64)[sound]
        enough = len(np.unique(groups)) >= len(SPLITS)
        splits = assign(table.codes, table.declared, groups if enough else table.prints)
    classes = {name: counts[name] for name in sorted(names, key=_order)}
    found = seen.findings
    about_contents(found, table, splits)
    if seen.labelled:
        about_classes(found, classes)
    elif declared:
        labels = declared
        classes = {name: seen.masks[number] for number, name in enumerate(declared)}
    else:
        labels = sorted(seen.named or (name for name in labels if name), key=_order)
        classes = {
            name: seen.named[name] if seen.named else counts[name] for name in labels
        }
    about_splits(found, table)
    tally = Counter(splits.tolist())
    report = Report(
        items=len(raw),
        sound=len(sound),
        classes=classes,
        splits={name: tally[number] for number, name in enumerate(SPLITS)},
        findings=found.conclude(),
    )
    all_codes = np.full(len(raw), DROPPED, np.int32)
    all_splits = np.full(len(raw), DROPPED, np.int8)
    place = {label: number for number, label in enumerate(labels)}
    codes = np.array([place.get(label, DROPPED) for label in table.labels], np.int32)
    all_codes[sound], all_splits[sound] = codes[table.codes], splits
    return Index.of(
        labels, all_codes, all_splits, np.array(seen.prints, np.uint64)
    ), report


def _order(label: str) -> tuple[int, int, str]:
    """Numbers in order of their value, before words."""
    return (
        (0, int(label), label)
        if label.isdecimal() and len(label) < 19
        else (1, 0, label)
    )
