"""IDX: the binary files of MNIST, EMNIST and Fashion-MNIST, plain or gzip, under their original
names.
"""

import gzip
import re
import struct
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np

from modelmill.data.base import LIMIT, Item, Source, check_options, guarded
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
        pair = files.get((split, "images")), files.get((split, "labels"))
        if pair[0] and pair[1]:
            yield from _pictures(source, split, pair[0], pair[1])
        elif pair[0] or pair[1]:
            raise InvalidInput(
                f"'{pair[0] or pair[1]}' lacks its {'labels' if pair[0] else 'images'} file"
            )


def _choose(source: Source, wanted: str | None) -> Files:
    sets: dict[str, Files] = {}
    for name in source.names:
        if match := NAME.fullmatch(name):
            split = "train" if match["split"] == "train" else "test"
            # A plain file sorts before its .gz, and torchvision leaves both.
            sets.setdefault(match["set"].strip("/"), {}).setdefault(
                (split, match["what"]), name
            )
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


def _pictures(
    source: Source, split: str, images_name: str, labels_name: str
) -> Iterator[Item]:
    with _open(source, images_name) as images, _open(source, labels_name) as labels:
        count, height, width = _header(images, images_name, IMAGES)
        (label_count,) = _header(labels, labels_name, LABELS)
        if count != label_count:
            raise InvalidInput(
                f"'{images_name}' holds {count} pictures, '{labels_name}' {label_count} labels"
            )
        size = height * width
        if not 0 < size <= LIMIT:
            raise InvalidInput(
                f"'{images_name}' claims pictures of {height}x{width} pixels"
            )
        rows = max(1, BATCH // size)
        for start in range(0, count, rows):
            batch = min(rows, count - start)
            pixels = np.frombuffer(
                _read_exactly(images, images_name, batch * size), np.uint8
            )
            digits = _read_exactly(labels, labels_name, batch)
            for number, picture in enumerate(pixels.reshape(batch, height, width)):
                yield Item(
                    f"{split}/{start + number}", str(digits[number]), picture, split
                )
        _check_end(images, images_name)
        _check_end(labels, labels_name)


def _open(source: Source, name: str) -> BinaryIO:
    file = source.open(name)
    return guarded(gzip.GzipFile(fileobj=file), name) if name.endswith(".gz") else file


def _header(file: BinaryIO, name: str, magic: int) -> tuple[int, ...]:
    if (begins := struct.unpack(">I", _read_exactly(file, name, 4))[0]) != magic:
        raise InvalidInput(
            f"'{name}' is not an IDX file of this kind: it begins with {begins:#010x}, not "
            f"{magic:#010x}"
        )
    dimensions = magic & 0xFF
    return struct.unpack(f">{dimensions}I", _read_exactly(file, name, 4 * dimensions))


def _read_exactly(file: BinaryIO, name: str, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise InvalidInput(
            f"'{name}' ends too early: its header announces more items than it holds"
        )
    return data


def _check_end(file: BinaryIO, name: str) -> None:
    if file.read(1):
        raise InvalidInput(
            f"'{name}' goes on after the items that its header announces"
        )
