"""The report of a check, and the index with the split and label of every item."""

from pathlib import Path
from typing import Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelmill.data.base import SPLITS
from modelmill.data.names import shown
from modelmill.errors import MillError, from_os

DROPPED = -1
"""Code of a dropped item."""


class Finding(msgspec.Struct):
    """A warning, or a reason why items were dropped; `kind` is stable, `examples` at most five."""

    kind: str
    count: int
    severity: Literal["warning", "dropped"]
    message: str
    examples: list[str]


class Report(msgspec.Struct):
    """The result of a check: items in all, sound items by class and by split, and findings."""

    items: int
    sound: int
    classes: dict[str, int]
    splits: dict[str, int]
    findings: list[Finding]

    def lines(self) -> list[str]:
        """A summary line, then one for each finding."""
        splits = ", ".join(
            f"{name} {count}" for name, count in self.splits.items()
        )
        classes = sum(count > 0 for count in self.classes.values())
        total = f"{self.items} items, {self.sound} sound, {classes} classes ({splits})"
        return [total, *map(_line, self.findings)]


class Index(msgspec.Struct):
    """The label and split of each item, in the order in which its format yields them.

    `label_codes` is little-endian int32 [items] into `labels`, `split_codes` int8 [items] into
    `splits`, both -1 for items that were dropped (the label also for items that have none);
    `prints` is uint64 [items], the first 8 bytes of each content's sha256.
    """

    labels: list[str]
    splits: list[str]
    label_codes: bytes
    split_codes: bytes
    prints: bytes
    schema: int = 1

    @classmethod
    def of(
        cls,
        labels: list[str],
        codes: NDArray[np.int32],
        splits: NDArray[np.int8],
        prints: NDArray[np.uint64],
    ) -> Self:
        """The index of these arrays, all [items]."""
        return cls(
            labels,
            list(SPLITS),
            codes.astype("<i4").tobytes(),
            splits.astype("i1").tobytes(),
            prints.astype("<u8").tobytes(),
        )

    def __len__(self) -> int:
        """The number of items, dropped ones included."""
        return len(self.split_codes)

    def label_array(self) -> NDArray[np.int32]:
        """The label of each item, int32 [items], -1 where it was dropped."""
        return np.frombuffer(self.label_codes, "<i4").astype(
            np.int32, copy=False
        )

    def split_array(self) -> NDArray[np.int8]:
        """The split of each item, int8 [items], -1 where it was dropped."""
        return np.frombuffer(self.split_codes, np.int8)

    def print_array(self) -> NDArray[np.uint64]:
        """The fingerprint of each item, uint64 [items], 0 where it was dropped."""
        return np.frombuffer(self.prints, "<u8").astype(np.uint64, copy=False)

    def save(self, path: Path) -> None:
        """Write as MessagePack; raises `StorageFull`."""
        try:
            path.write_bytes(msgspec.msgpack.encode(self))
        except OSError as error:
            raise from_os(error, "saving the index of the data") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises `MillError` when it is missing or damaged."""
        try:
            index = msgspec.msgpack.decode(path.read_bytes(), type=cls)
        except OSError as error:
            raise from_os(error, "reading the index of the data") from error
        except msgspec.DecodeError as error:
            raise _damaged(str(error), path) from error
        if (
            not len(index)
            == len(index.label_codes) / 4
            == len(index.prints) / 8
        ):
            raise _damaged("its arrays disagree", path)
        return index


def _damaged(why: str, path: Path) -> MillError:
    return MillError(f"the index of the data is damaged: {why} ({path})")


def few(classes: list[str]) -> str:
    """The number of classes in words, for a message that they are too few."""
    count = {0: "no classes", 1: "one class only"}.get(
        len(classes), f"{len(classes)} classes only"
    )
    return f"{count} ({', '.join(classes)})" if classes else count


def _line(finding: Finding) -> str:
    examples = "; ".join(shown(example) for example in finding.examples)
    return f"{finding.severity}: {finding.kind}: {finding.message}" + (
        f" (such as {examples})" if examples else ""
    )
