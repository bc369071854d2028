"""The items of a data set, found in one walk over its archive and read by row from then on."""

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from modelmill.data.base import Item
from modelmill.errors import NotFound, from_os

DATA = 2
"""Where the data stand among what makes an item."""


class Items:
    """Some rows of what a reader yields.

    An item whose files are read when it is asked for stays that: nothing of it is held but its
    name. What the reader had to read on its way, such as the lines of a table, goes into a file
    without a name in `folder`, which ends with this process. Raises `StorageFull`.
    """

    def __init__(
        self, walk: Iterable[Item], wanted: NDArray[np.bool_], folder: Path
    ) -> None:
        self._waiting: dict[int, Item] = {}
        self._ends = array("Q", [0])
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            try:
                self._fill(walk, wanted)
                self._file.flush()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise from_os(error, "keeping the items of the data set") from error

    def _fill(self, walk: Iterable[Item], wanted: NDArray[np.bool_]) -> None:
        rows = int(np.flatnonzero(wanted)[-1]) + 1 if wanted.any() else 0
        end = row = 0
        # `zip` asks for a row first: what follows the last one is not read.
        for keep, item in zip(wanted[:rows].tolist(), walk, strict=False):
            if keep and item.waits:
                self._waiting[row] = item
            elif keep:
                end += self._file.write(_packed(item))
            self._ends.append(end)
            row += 1  # noqa: SIM113

    def __getitem__(self, row: int) -> Item:
        """An item, to be read while its source is open; raises `NotFound` for a row that was not
        wanted.
        """
        if row in self._waiting:
            return self._waiting[row].again()
        start, end = (*self._ends[row : row + 2], 0, 0)[:2]
        if start >= end:
            raise NotFound(f"row {row} is not among the items that were kept")
        return _unpacked(os.pread(self._file.fileno(), end - start, start))

    def waits(self, row: int) -> bool:
        """Whether an item is read from files of its own."""
        return row in self._waiting

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the file back."""
        self.close()


def _packed(item: Item) -> bytes:
    data: Any = item.data
    shape = None
    if isinstance(
        data, np.ndarray
    ):  # a tenth of the time that pickling it takes
        shape = data.shape
        data = data.tobytes()
    parts = (item.name, item.label, data, item.split, item.problem, item.target)
    return pickle.dumps((shape, *parts), pickle.HIGHEST_PROTOCOL)


def _unpacked(data: bytes) -> Item:
    # Nobody else can write to the file: it has no name.
    shape, *parts = pickle.loads(data)  # noqa: S301
    if shape is not None:
        parts[DATA] = np.frombuffer(parts[DATA], np.uint8).reshape(shape)
    return Item(*parts)
