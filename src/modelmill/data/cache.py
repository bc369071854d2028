"""The cache of decoded training data: arrays on disk, mapped into memory, decoded once."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from modelmill.errors import MillError, from_os

TARGET = "target."
"""Prefix of the names of targets."""
NAMES = "names.json"
STALE = 24 * 3600.0
"""Seconds without a write after which an unfinished entry is removed."""

Row = tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]
Build = Callable[[], Iterator[Row]]


@dataclass(frozen=True)
class Arrays:
    """Training data: inputs and targets by name, each [count, ...] and read-only."""

    arrays: dict[str, NDArray[Any]]
    targets: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        """The number of items."""
        return len(next(iter(self.arrays.values())))

    def rows(self, chosen: Any) -> dict[str, NDArray[Any]]:
        """Inputs and targets of the chosen rows by name, as a batch."""
        return {
            name: array[chosen]
            for name, array in {**self.arrays, **self.targets}.items()
        }


def cached(
    folder: Path,
    key: str,
    build: Build,
    count: int,
    progress: Callable[[int], None],
) -> Arrays:
    """The arrays cached under `key`, built from `count` items if they are not cached yet.

    `progress` is called with the number of items done. Of concurrent builders one wins, the others
    discard theirs. Raises `StorageFull`, and `MillError` when the items differ in names, shape or
    type, or are not `count`.
    """
    entry = folder / key
    existing = _load(entry)
    if existing is not None:
        return existing
    try:
        _make(entry, build, count, progress)
    except OSError as error:
        raise from_os(error, "caching the decoded data") from error
    built = _load(entry)
    if built is None:
        raise MillError(
            f"the cache entry '{key}' vanished while it was made; try again"
        )
    return built


def _make(
    entry: Path, build: Build, count: int, progress: Callable[[int], None]
) -> None:
    """Write an entry as a draft beside it, which then gets its name."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{entry.name}.tmp-{os.getpid()}-"
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=entry.parent))
    try:
        _fill(_Writer(draft, count), build, progress)
        _publish(draft, entry)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def trim(folder: Path, keep_bytes: int) -> int:
    """Remove the least recently used entries until at most `keep_bytes` stay; returns the bytes
    freed.
    """
    freed = total = 0
    newest_first = sorted(
        _entries(folder), key=lambda entry: entry[1], reverse=True
    )
    for path, used, size in newest_first:
        is_stale = used < time.time() - STALE
        total += size
        if is_stale if ".tmp-" in path.name else total > keep_bytes:
            shutil.rmtree(_move_aside(path), ignore_errors=True)
            freed += size
            total -= size
    return freed


def _load(entry: Path) -> Arrays | None:
    try:
        os.utime(entry)  # the time of last use, for `trim`
    except FileNotFoundError:
        return None
    try:
        return _arrays_of(_mapped(entry))
    except (OSError, ValueError, EOFError):
        shutil.rmtree(
            entry, ignore_errors=True
        )  # damaged: it can be made again
        return None


def _mapped(entry: Path) -> dict[str, NDArray[Any]]:
    """The files of an entry by name, mapped into memory."""
    names: list[str] = json.loads((entry / NAMES).read_text())
    return {
        name: np.load(entry / f"{name}.npy", mmap_mode="r") for name in names
    }


def _arrays_of(files: dict[str, NDArray[Any]]) -> Arrays | None:
    """Inputs and targets of an entry by name; None without inputs."""
    arrays = {
        name: array
        for name, array in files.items()
        if not name.startswith(TARGET)
    }
    targets = {
        name.removeprefix(TARGET): array
        for name, array in files.items()
        if name.startswith(TARGET)
    }
    return Arrays(arrays, targets) if arrays else None


def _fill(
    writer: "_Writer", build: Build, progress: Callable[[int], None]
) -> None:
    for arrays, targets in build():
        prefixed = {f"{TARGET}{name}": part for name, part in targets.items()}
        writer.add({**arrays, **prefixed})
        if writer.done % 256 == 0:
            progress(writer.done)
    writer.finish()
    progress(writer.done)


class _Writer:
    """Writes the rows of an entry; all have the names, types and shapes of the first."""

    def __init__(self, draft: Path, count: int) -> None:
        self._draft = draft
        self._count = count
        self._memmaps: dict[str, NDArray[Any]] = {}
        self.done = 0

    def add(self, named: dict[str, NDArray[Any]]) -> None:
        """Raises `MillError` for a row that is unlike the first, or one too many."""
        row = {name: np.asarray(part) for name, part in named.items()}
        if not self._memmaps:
            self._allocate(row)
        if self.done == self._count:
            raise MillError(
                f"there are more than the {self._count} items announced"
            )
        _write_row(self._memmaps, row, self.done)
        self.done += 1

    def _allocate(self, first: dict[str, NDArray[Any]]) -> None:
        """Make the files for rows like the first one."""
        self._memmaps = {
            name: _allocate(self._draft / f"{name}.npy", part, self._count)
            for name, part in first.items()
        }

    def finish(self) -> None:
        """Raises `MillError` where rows are missing."""
        if self.done != self._count or not self.done:
            raise MillError(
                f"{self.done} items came where {self._count} were announced"
            )
        for memmap in self._memmaps.values():
            memmap.flush()  # type: ignore[attr-defined]
        (self._draft / NAMES).write_text(json.dumps(sorted(self._memmaps)))


def _allocate(path: Path, first: NDArray[Any], count: int) -> NDArray[Any]:
    memmap: NDArray[Any] = open_memmap(
        path, "w+", first.dtype, (count, *first.shape)
    )
    with path.open("r+b") as file:
        # Allocates all of it now: on a full disk a write to a mapped page would kill the process.
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return memmap


def _write_row(
    memmaps: dict[str, NDArray[Any]], row: dict[str, NDArray[Any]], number: int
) -> None:
    if row.keys() != memmaps.keys():
        raise MillError(
            f"item {number} has the arrays {sorted(row)}, the first one {sorted(memmaps)}"
        )
    for name, memmap in memmaps.items():
        _check_like(memmap[0], row[name], f"item {number}: '{name}'")
        memmap[number] = row[name]


def _check_like(first: NDArray[Any], part: NDArray[Any], what: str) -> None:
    """Raises `MillError` for an array of another shape or type than that of the first item."""
    if part.shape != first.shape or part.dtype != first.dtype:
        raise MillError(
            f"{what} is {_described(part)}, the first one {_described(first)}"
        )


def _described(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _publish(draft: Path, entry: Path) -> None:
    try:
        draft.rename(entry)
    except OSError:
        if (
            _load(entry) is not None
        ):  # another builder was first: the same content
            return
        shutil.rmtree(_move_aside(entry), ignore_errors=True)
        draft.rename(entry)


def _move_aside(entry: Path) -> Path:
    """Rename an entry to a draft's name, so that nobody opens it while its files are removed."""
    aside = entry.with_name(
        f"{entry.name}.tmp-{os.getpid()}-{time.monotonic_ns()}"
    )
    try:
        return entry.rename(aside)
    except OSError:
        return aside


def _entries(folder: Path) -> Iterator[tuple[Path, float, int]]:
    """Each entry and draft, with the time of its last use and its size in bytes."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        try:
            own = entry.stat()
            files = [path.stat() for path in entry.glob("*.*")]
        except OSError:  # another process is trimming too
            continue
        used = own.st_mtime
        if ".tmp-" in entry.name:
            used = max([used, *(file.st_mtime for file in files)])
        yield entry, used, sum(file.st_size for file in files)
