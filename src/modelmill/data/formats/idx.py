"""IDX: the binary files of MNIST, EMNIST and Fashion-MNIST, plain or gzip, under their original
names.
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

from modelmill.data.base import LIMIT, Item, Source, check_options, unzipped
from modelmill.errors import InvalidInput

INPUT = "image"
SUMMARY = (
    "train-images-idx3-ubyte and t10k-images-idx3-ubyte with their labels, plain or .gz "
    "(MNIST)"
)
OPTIONS = {"set": "which one, where there are several, e.g. emnist-letters"}
RANK = 3

NAME = re.compile(
    r"(?P<set>(?:.*/)?(?:[^/]+?(?=[-_.](?:train|t10k|test)))?)[-_.]?(?P<split>train|t10k|test)[-_]"
    r"(?P<what>images|labels)[-_.]idx[13][-_.]ubyte(?:\.gz)?"
)
IMAGES, LABELS = 0x00000803, 0x00000801
BATCH = 1 << 20

Files = dict[tuple[str, str], str]


def detect(source: Source) -> bool:
    """Whether there are files named like MNIST's."""
    return any(NAME.fullmatch(name) for name in source.names)


def read(source: Source, options: Mapping[str, str]) -> Iterator[Item]:
    """All pictures, train first, as uint8 [H, W] with their label; raises `InvalidInput` when
    damaged.
    """
    check_options(options, OPTIONS)
    files = _choose(source, options.get("set"))
    for split in ("train", "test"):
        images, labels = (
            files.get((split, "images")),
            files.get((split, "labels")),
        )
        if images and labels:
            yield from _pictures(source, split, images, labels)
        elif images or labels:
            missing = "labels" if images else "images"
            raise InvalidInput(f"'{images or labels}' lacks its {missing} file")


def _choose(source: Source, wanted: str | None) -> Files:
    sets = _sets(source)
    if not sets:
        raise InvalidInput(
            f"'{source.title}' holds no files named like train-images-idx3-ubyte"
        )
    if wanted is None and len(sets) == 1:
        return next(iter(sets.values()))
    if wanted not in sets:
        raise InvalidInput(
            f"say which set with --set set=NAME: {', '.join(sorted(sets))}"
        )
    return sets[wanted]


def _sets(source: Source) -> dict[str, Files]:
    """The files of each set by split and kind."""
    sets: dict[str, Files] = {}
    for name in source.names:
        if match := NAME.fullmatch(name):
            split = "train" if match["split"] == "train" else "test"
            files = sets.setdefault(match["set"].strip("/"), {})
            # A plain file sorts before its .gz, and torchvision leaves both.
            files.setdefault((split, match["what"]), name)
    return sets


def _pictures(
    source: Source, split: str, images_name: str, labels_name: str
) -> Iterator[Item]:
    with (
        _File(source, images_name) as images,
        _File(source, labels_name) as labels,
    ):
        count, height, width = _shape_of(images, labels)
        rows = max(1, BATCH // (height * width))
        for start in range(0, count, rows):
            shape = (min(rows, count - start), height, width)
            for number, (picture, digit) in enumerate(
                _batch(images, labels, shape)
            ):
                yield Item(
                    f"{split}/{start + number}", str(digit), picture, split
                )
        images.check_end()
        labels.check_end()


def _batch(
    images: "_File", labels: "_File", shape: tuple[int, int, int]
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """The next pictures with their digits."""
    pictures = np.frombuffer(images.read(math.prod(shape)), np.uint8)
    return zip(pictures.reshape(shape), labels.read(shape[0]), strict=True)


def _shape_of(images: "_File", labels: "_File") -> tuple[int, int, int]:
    """Number, height and width of the pictures; raises `InvalidInput`."""
    count, height, width = images.header(IMAGES)
    (label_count,) = labels.header(LABELS)
    if count != label_count:
        raise InvalidInput(
            f"'{images.name}' holds {count} pictures, '{labels.name}' {label_count} labels"
        )
    if not 0 < height * width <= LIMIT:
        raise InvalidInput(
            f"'{images.name}' claims pictures of {height}x{width} pixels"
        )
    return count, height, width


class _File:
    """An IDX file that is read from start to end; raises `InvalidInput` where it is damaged."""

    def __init__(self, source: Source, name: str) -> None:
        self.name = name
        self._file = unzipped(source, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def header(self, magic: int) -> tuple[int, ...]:
        """The lengths of the axes."""
        begins = struct.unpack(">I", self.read(4))[0]
        if begins != magic:
            raise InvalidInput(
                f"'{self.name}' is not an IDX file of this kind: it begins with {begins:#010x}, "
                f"not {magic:#010x}"
            )
        dimensions = magic & 0xFF
        return struct.unpack(f">{dimensions}I", self.read(4 * dimensions))

    def read(self, size: int) -> bytes:
        """The next bytes."""
        data = self._file.read(size)
        if len(data) != size:
            raise InvalidInput(
                f"'{self.name}' ends too early: its header announces more items than it holds"
            )
        return data

    def check_end(self) -> None:
        """Nothing may follow."""
        if self._file.read(1):
            raise InvalidInput(
                f"'{self.name}' goes on after the items that its header announces"
            )
