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
    folder: Path, key: str, build: Build, count: int, progress: Callable[[int], None]
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
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f"{key}.tmp-{os.getpid()}-", dir=folder))
        try:
            _fill(draft, build, count, progress)
            _publish(draft, entry)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise from_os(error, "caching the decoded data") from error
    built = _load(entry)
    if built is None:
        raise MillError(
            f"the cache entry '{key}' vanished while it was made; try again"
        )
    return built


def trim(folder: Path, keep_bytes: int) -> int:
    """Remove the least recently used entries until at most `keep_bytes` stay; returns the bytes
    freed.
    """
    freed = total = 0
    entries = sorted(_entries(folder), key=lambda entry: entry[1], reverse=True)
    for path, used, size in entries:
        draft = ".tmp-" in path.name
        total += size
        if used < time.time() - STALE if draft else total > keep_bytes:
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
        files = {
            name: np.load(entry / f"{name}.npy", mmap_mode="r")
            for name in json.loads((entry / NAMES).read_text())
        }
    except (OSError, ValueError, EOFError):
        shutil.rmtree(entry, ignore_errors=True)  # damaged: it can be made again
        return None
    arrays = {
        name: array for name, array in files.items() if not name.startswith(TARGET)
    }
    targets = {
        name.removeprefix(TARGET): array
        for name, array in files.items()
        if name not in arrays
    }
    return Arrays(arrays, targets) if arrays else None


def _fill(
    draft: Path, build: Build, count: int, progress: Callable[[int], None]
) -> None:
    memmaps: dict[str, NDArray[Any]] = {}
    done = 0
    for arrays, targets in build():
        named = {
            **arrays,
            **{f"{TARGET}{name}": part for name, part in targets.items()},
        }
        row = {name: np.asarray(part) for name, part in named.items()}
        if not memmaps:
            memmaps = {
                name: _allocate(draft / f"{name}.npy", part, count)
                for name, part in row.items()
            }
        if done == count:
            raise MillError(f"there are more than the {count} items announced")
        _write_row(memmaps, row, done)
        done += 1
        if done % 256 == 0:
            progress(done)
    if done != count or not done:
        raise MillError(f"{done} items came where {count} were announced")
    for memmap in memmaps.values():
        memmap.flush()  # type: ignore[attr-defined]
    (draft / NAMES).write_text(json.dumps(sorted(memmaps)))
    progress(done)


def _allocate(path: Path, first: NDArray[Any], count: int) -> NDArray[Any]:
    memmap: NDArray[Any] = open_memmap(path, "w+", first.dtype, (count, *first.shape))
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
        part = row[name]
        if part.shape != memmap.shape[1:] or part.dtype != memmap.dtype:
            raise MillError(
                f"item {number}: '{name}' is {part.dtype} {list(part.shape)}, "
                f"the first one {memmap.dtype} {list(memmap.shape[1:])}"
            )
        memmap[number] = part


def _publish(draft: Path, entry: Path) -> None:
    try:
        draft.rename(entry)
    except OSError:
        if _load(entry) is not None:  # another builder was first: the same content
            return
        shutil.rmtree(_move_aside(entry), ignore_errors=True)
        draft.rename(entry)


def _move_aside(entry: Path) -> Path:
    """Rename an entry to a draft's name, so that nobody opens it while its files are removed."""
    aside = entry.with_name(f"{entry.name}.tmp-{os.getpid()}-{time.monotonic_ns()}")
    try:
        return entry.rename(aside)
    except OSError:
        return aside


def _entries(folder: Path) -> Iterator[tuple[Path, float, int]]:
    for entry in folder.iterdir() if folder.is_dir() else ():
        try:
            files = [path.stat() for path in (entry, *entry.glob("*.*"))]
        except OSError:  # another process is trimming too
            continue
        used = (
            files[0].st_mtime
            if ".tmp-" not in entry.name
            else max(file.st_mtime for file in files)
        )
        yield entry, used, sum(file.st_size for file in files[1:])
