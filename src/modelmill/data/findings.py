"""What there is to say about a data set: each finding counted, with a few examples and a line of
advice.
"""

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
FEW = 5
"""A class of fewer items can be neither learnt nor measured."""
UNEVEN = 2.0
"""The ratio of the largest to the smallest class from which it is worth a word."""

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
    """The sound items, arrays [items]: label codes, fingerprints, declared splits; and the name of
    each.
    """

    labels: list[str]
    codes: NDArray[np.int32]
    prints: NDArray[np.uint64]
    declared: NDArray[np.int8]
    name: Callable[[int], str]


class Findings:
    """Findings while they are counted, by kind."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}
        self._texts: dict[str, str] = {}

    def drop(self, kind: str, example: str) -> None:
        """Count an item that is left out."""
        self._add(kind, "dropped", 1, example)

    def warn(
        self, kind: str, example: str = "", count: int = 1, text: str = ""
    ) -> None:
        """Count something to be told; `text` is the line for kinds that have none of their own."""
        self._add(kind, "warning", count, example)
        self._texts[kind] = text

    def conclude(self) -> list[Finding]:
        """All findings in their order, with their lines."""
        found = [self._found[kind] for kind in MESSAGES if kind in self._found]
        for finding in found:
            counted = {
                word: _counted(finding.count, word)
                for word in ("items", "contents", "classes")
            }
            text = self._texts.get(finding.kind, "")
            finding.message = MESSAGES[finding.kind].format(**counted, text=text)
        return found

    def _add(
        self,
        kind: str,
        severity: Literal["warning", "dropped"],
        count: int,
        example: str,
    ) -> None:
        finding = self._found.setdefault(kind, Finding(kind, 0, severity, "", []))
        finding.count += count
        if example and len(finding.examples) < EXAMPLES:
            finding.examples.append(shown(example, 400))


def about_contents(found: Findings, table: Table, splits: NDArray[np.int8]) -> None:
    """Contents that occur more than once: repeated, leaking between splits, or with two labels."""
    for twins in _twins(table.prints):
        codes, places = table.codes[twins], splits[twins]
        if other := _differs(codes):
            pair = [
                (table.name(twins[at]), shown(table.labels[codes[at]], 60))
                for at in (0, other)
            ]
            found.warn(
                "conflicting-labels",
                " = ".join(f"{name} ({label})" for name, label in pair),
            )
        if other := _differs(places):
            found.warn(
                "duplicates-across-splits",
                f"{table.name(twins[0])} = {table.name(twins[other])}",
            )
        first: dict[tuple[int, int], int] = {}
        for number, code, place in zip(
            twins.tolist(), codes.tolist(), places.tolist(), strict=True
        ):
            if (twin := first.setdefault((code, place), number)) != number:
                found.warn("duplicates", f"{table.name(twin)} = {table.name(number)}")


def about_classes(found: Findings, classes: dict[str, int]) -> None:
    """Classes that are too small, too few or uneven; `classes` counts the sound items of each."""
    sizes = Counter(
        {label: count for label, count in classes.items() if count}
    ).most_common()
    if len(sizes) < 2:
        found.warn("one-class", sizes[0][0] if sizes else "", count=len(sizes))
    for label, count in classes.items():
        if count < FEW:
            found.warn("few-items", f"{label}: {count}")
    if len(sizes) > 1 and sizes[0][1] >= UNEVEN * sizes[-1][1]:
        (large, most), (small, least) = sizes[0], sizes[-1]
        small_ones = sum(most >= UNEVEN * count for _, count in sizes)
        text = (
            f"the largest class has {most / least:.1f} times the items of the smallest: "
            f"{_counts(sizes)}"
        )
        found.warn(
            "imbalance",
            f"{large}: {most}, {small}: {least}",
            count=small_ones,
            text=text,
        )


def about_splits(found: Findings, table: Table) -> None:
    """Splits that the set declares without the one that measures; its val then does, where there is
    one.
    """
    if val_measures(table.declared):
        found.warn("val-as-test", count=int((table.declared == VAL).sum()))
    elif (table.declared != UNDECLARED).any() and not (table.declared == TEST).any():
        found.warn("no-test-split")


def _twins(prints: NDArray[np.uint64]) -> Iterator[NDArray[np.intp]]:
    """The places of each content that occurs more than once, by first occurrence."""
    order = np.argsort(prints, kind="stable")
    ordered = prints[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
    sizes = np.diff(np.r_[starts, len(ordered)])
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    for group in np.argsort(order[starts], kind="stable"):
        yield order[starts[group] : starts[group] + sizes[group]]


def _differs(values: NDArray[np.signedinteger]) -> int:
    """The first place whose value is another than the first one; 0 when there is none."""
    return int(np.argmax(values != values[0]))


def _counted(count: int, words: str) -> str:
    one = {"items": "item", "contents": "content", "classes": "class"}[words]
    return f"{count} {one if count == 1 else words}"


def _counts(sizes: list[tuple[str, int]]) -> str:
    told = [f"{shown(label, 40)} {count}" for label, count in sizes]
    return ", ".join(told if len(told) <= 12 else [*told[:6], "…", *told[-5:]])
