"""The findings of a check: each counted, with a few examples and a line of advice."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelmill.data.names import shown
from modelmill.data.report import Finding
from modelmill.data.splits import TEST, UNDECLARED, VAL, val_measures

EXAMPLES = 5
SINGULAR = {"items": "item", "contents": "content", "classes": "class"}
FEW = 5
"""Items of a class below which a warning is given."""
UNEVEN = 2.0
"""Ratio of the largest to the smallest class from which a warning is given."""

MESSAGES = {
    "unreadable-row": "left out {items} that could not be read",
    "empty": "left out {items} without content",
    "undecodable": "left out {items} that can't be decoded",
    "mislabelled-extension": "{items} of another kind than the file name says, used all the same",
    "conflicting-labels": "{contents} with more than one label, of which only one can be right",
    "duplicates-across-splits": "{contents} in more than one split, so what is measured is too "
    "good",
    "duplicates": "{items} equal to another one of the same class and split",
    "one-class": "{classes} with sound items, where a classifier needs two",
    "few-items": "{classes} with fewer than 5 sound items",
    "imbalance": "{text}",
    "val-as-test": "no test items are declared: {items} of val measure instead, and a tenth of "
    "train becomes val",
    "no-test-split": "the set declares splits but no test items, so nothing can measure a model",
}
"""All kinds, in the order in which they are reported."""


class Table(msgspec.Struct):
    """The sound items: their labels, arrays [items] of label codes, fingerprints and declared
    splits, and a function from an item's number to its name.
    """

    labels: list[str]
    codes: NDArray[np.int32]
    prints: NDArray[np.uint64]
    declared: NDArray[np.int8]
    name: Callable[[int], str]

    def labelled(self, number: int) -> str:
        """An item with its label, for people."""
        return f"{self.name(number)} ({shown(self.labels[self.codes[number]], 60)})"

    def pair(self, one: int, other: int) -> str:
        """Two items of the same content, for people."""
        return f"{self.name(one)} = {self.name(other)}"


class Findings:
    """Collects findings by kind."""

    def __init__(self) -> None:
        self._findings: dict[str, Finding] = {}
        self._texts: dict[str, str] = {}

    def drop(self, kind: str, example: str) -> None:
        """Count an item that is dropped."""
        self._add(kind, "dropped", 1, example)

    def warn(
        self, kind: str, example: str = "", count: int = 1, text: str = ""
    ) -> None:
        """Count a warning; `text` is the message of kinds that have none of their own."""
        self._add(kind, "warning", count, example)
        self._texts[kind] = text

    def conclude(self) -> list[Finding]:
        """All findings in the order of `MESSAGES`, with their messages."""
        findings = [
            self._findings[kind] for kind in MESSAGES if kind in self._findings
        ]
        for finding in findings:
            finding.message = MESSAGES[finding.kind].format(
                text=self._texts.get(finding.kind, ""),
                **{word: _counted(finding.count, word) for word in SINGULAR},
            )
        return findings

    def _add(
        self,
        kind: str,
        severity: Literal["warning", "dropped"],
        count: int,
        example: str,
    ) -> None:
        finding = self._findings.setdefault(
            kind, Finding(kind, 0, severity, "", [])
        )
        finding.count += count
        if example and len(finding.examples) < EXAMPLES:
            finding.examples.append(shown(example, 400))


def about_contents(
    findings: Findings, table: Table, splits: NDArray[np.int8]
) -> None:
    """Warn of contents that occur more than once: duplicates, leaks between splits, two labels."""
    for group in _groups(table.prints):
        _about_conflict(findings, table, group)
        if other := _differs(splits[group]):
            findings.warn(
                "duplicates-across-splits", table.pair(group[0], group[other])
            )
        _about_duplicates(findings, table, splits, group)


def _about_conflict(
    findings: Findings, table: Table, group: NDArray[np.intp]
) -> None:
    """Warn of items of one content with different labels."""
    if other := _differs(table.codes[group]):
        pair = [table.labelled(group[at]) for at in (0, other)]
        findings.warn("conflicting-labels", " = ".join(pair))


def _about_duplicates(
    findings: Findings,
    table: Table,
    splits: NDArray[np.int8],
    group: NDArray[np.intp],
) -> None:
    """Warn of items of one content, class and split."""
    first: dict[tuple[int, int], int] = {}
    for number in group.tolist():
        place = int(table.codes[number]), int(splits[number])
        first_item = first.setdefault(place, number)
        if first_item != number:
            findings.warn("duplicates", table.pair(first_item, number))


def about_classes(findings: Findings, classes: dict[str, int]) -> None:
    """Warn of classes that are too small, too few or imbalanced; `classes` counts sound items."""
    present = Counter(
        {label: count for label, count in classes.items() if count}
    )
    sizes = present.most_common()
    if len(sizes) < 2:
        findings.warn(
            "one-class", sizes[0][0] if sizes else "", count=len(sizes)
        )
    for label, count in classes.items():
        if count < FEW:
            findings.warn("few-items", f"{label}: {count}")
    if len(sizes) > 1:
        _about_imbalance(findings, sizes)


def _about_imbalance(findings: Findings, sizes: list[tuple[str, int]]) -> None:
    (large, most), (small, least) = sizes[0], sizes[-1]
    if most < UNEVEN * least:
        return
    text = (
        f"the largest class has {most / least:.1f} times the items of the smallest: "
        f"{_class_sizes(sizes)}"
    )
    example = f"{large}: {most}, {small}: {least}"
    count = sum(most >= UNEVEN * size for _, size in sizes)
    findings.warn("imbalance", example, count, text)


def about_splits(findings: Findings, table: Table) -> None:
    """Warn where the set declares splits without a test split; val is used for it if there is
    one.
    """
    if val_measures(table.declared):
        findings.warn("val-as-test", count=int((table.declared == VAL).sum()))
    elif (table.declared != UNDECLARED).any() and not (
        table.declared == TEST
    ).any():
        findings.warn("no-test-split")


def _groups(prints: NDArray[np.uint64]) -> Iterator[NDArray[np.intp]]:
    """The item numbers of each content that occurs more than once, by first occurrence."""
    order = np.argsort(prints, kind="stable")
    starts, sizes = _runs(prints[order])
    for run in np.argsort(order[starts], kind="stable"):
        yield order[starts[run] : starts[run] + sizes[run]]


def _runs(
    ordered: NDArray[np.uint64],
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where values that occur more than once begin in a sorted array, and how often they occur."""
    is_new = np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)]
    starts = np.flatnonzero(is_new)
    sizes = np.diff(np.r_[starts, len(ordered)])
    return starts[sizes > 1], sizes[sizes > 1]


def _differs(values: NDArray[np.signedinteger]) -> int:
    """The index of the first value that differs from the first; 0 when none does."""
    return int(np.argmax(values != values[0]))


def _counted(count: int, words: str) -> str:
    return f"{count} {SINGULAR[words] if count == 1 else words}"


def _class_sizes(sizes: list[tuple[str, int]]) -> str:
    counts = [f"{shown(label, 40)} {count}" for label, count in sizes]
    return ", ".join(
        counts if len(counts) <= 12 else [*counts[:6], "…", *counts[-5:]]
    )
