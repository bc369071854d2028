"""Logs in parts of a bounded size, of which the oldest go.

Every process whose output goes into a log looks now and then whether it is full, and whether
another process has begun the next part. A full part is renamed after the byte at which it begins
in all that was ever logged: a reader that follows by bytes goes on from one part to the next.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

LOOK_SECONDS = 0.5
STDOUT, STDERR = 1, 2


class LogLimits(NamedTuple):
    """How many bytes a part has before the next one begins, and how many full ones are kept."""

    part_bytes: int
    parts: int


def keep(path: Path, limits: LogLimits, *descriptors: int) -> None:
    """Keep the log that these descriptors write within its limits, in a thread of its own."""
    keeper = Keeper(path, limits, descriptors or (STDOUT, STDERR))
    threading.Thread(
        target=_watch, args=(keeper,), name="log", daemon=True
    ).start()


def read(path: Path, offset: int, most: int) -> tuple[bytes, int]:
    """Up to `most` bytes of a log from a byte of all that was ever logged, and the byte at which
    they begin: a later one where those before it were removed.
    """
    while True:
        parts = _parts(path)
        with ExitStack() as stack:
            files = []
            for begin, part in [*parts, (-1, path)]:
                with suppress(FileNotFoundError):
                    files.append((begin, stack.enter_context(part.open("rb"))))
            # else another part began meanwhile
            if _parts(path) == parts:
                return _read_parts(files, offset, most)


def _read_parts(
    files: Sequence[tuple[int, BinaryIO]], offset: int, most: int
) -> tuple[bytes, int]:
    """As `read`, from the parts and the bytes at which they begin: -1 for the last one, which
    begins where that before it ends.
    """
    data = bytearray()
    at = offset
    end = 0
    for begin, file in files:
        first = end if begin < 0 else begin
        end = first + os.fstat(file.fileno()).st_size
        if at + len(data) >= end:
            continue
        if not data:
            at = max(at, first)
        file.seek(max(at + len(data) - first, 0))
        data += file.read(most - len(data))
    return bytes(data), at


class Keeper:
    """Keeps the log that some descriptors of this process write within its limits."""

    def __init__(
        self, path: Path, limits: LogLimits, descriptors: tuple[int, ...]
    ) -> None:
        self._path = path
        self._limits = limits
        self._descriptors = descriptors
        self._next = path.with_name(f"{path.name}.next")

    def look(self) -> None:
        """Follow to the part that another process has begun; begin one where this is full."""
        mine = os.fstat(self._descriptors[0])
        with suppress(FileNotFoundError):
            there = os.stat(self._path)
            if _same(there, mine) and there.st_size < self._limits.part_bytes:
                return
        with _locked(self._path.parent) as locked:
            if locked:  # else another process is at it
                self._follow_or_begin(mine)

    def _follow_or_begin(self, mine: os.stat_result) -> None:
        if self._next.exists():  # it was begun by one that was killed
            self._finish()
        elif self._path.exists() and _same(os.stat(self._path), mine):
            self._write_to(self._next)
            self._finish()
            return
        self._write_to(self._path)

    def _write_to(self, path: Path) -> None:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for descriptor in self._descriptors:
            os.dup2(opened, descriptor, inheritable=descriptor <= STDERR)
        os.close(opened)

    def _finish(self) -> None:
        """What was written so far is a full part; the next one takes its place."""
        full = self._full_part()
        with suppress(FileNotFoundError):
            os.rename(self._path, full)
        os.rename(self._next, self._path)
        for _, part in _parts(self._path)[: -self._limits.parts]:
            part.unlink(missing_ok=True)

    def _full_part(self) -> Path:
        """The name of the part that is full now: after the byte at which it begins."""
        parts = _parts(self._path)
        begin = parts[-1][0] + parts[-1][1].stat().st_size if parts else 0
        return self._path.with_name(f"{self._path.name}.{begin}")


def _watch(keeper: Keeper) -> None:
    while True:
        time.sleep(LOOK_SECONDS)
        with suppress(OSError):  # such as a full disk: tried again
            keeper.look()


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _parts(path: Path) -> list[tuple[int, Path]]:
    """The full parts with the bytes at which they begin, the oldest first."""
    found = []
    with suppress(FileNotFoundError):
        for name in os.listdir(path.parent):
            begin = name.removeprefix(f"{path.name}.")
            if begin != name and begin.isdecimal():
                found.append((int(begin), path.with_name(name)))
    return sorted(found)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether this process has the folder to itself for the moment; never waits."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)
