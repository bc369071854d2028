"""The log of a vector index: every change in order, on disk before the call returns.

A file begins with MAGIC and the 16 random bytes of its generation; then come records: MARK, the
length of the payload and its CRC-32 (little-endian), the payload as MessagePack. Writers
hold the lock; an unfinished record at the end, of a writer that died, is cut off.
"""

import fcntl
import io
import os
import struct
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from modelmill.errors import MillError, NotFound, from_os

MAGIC = b"MMVECLG1"
HEADER = len(MAGIC) + 16
MARK = b"\xf5VR\n"
HEAD = struct.Struct("<4sII")
COPY = 4096
"""Entries in one record of a rewritten log."""


class Entry(msgspec.Struct, array_like=True):
    """An item: its number, its label, its metadata as JSON, and its vector as little-endian
    float32.
    """

    id: int
    label: str
    metadata: str
    vector: bytes


class Added(msgspec.Struct, array_like=True, tag="a"):
    """Items of one call; `next_id` is larger than any number ever used."""

    items: list[Entry]
    next_id: int


class Removed(msgspec.Struct, array_like=True, tag="r"):
    """Removed items."""

    ids: list[int]


Change = Added | Removed
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Change)


class Replaced(Exception):
    """The log was rewritten: it must be read from its start."""


class VectorLog:
    """A log with many readers and one writer at a time, across processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = b""
        self.offset = 0
        self._state_read: tuple[int, int] = (0, 0)

    def create(self, changes: Sequence[Change] = ()) -> None:
        """Write a new log in place of the present one, atomically; raises `StorageFull`."""
        draft = self.path.with_name(f".{self.path.name}-{uuid.uuid4().hex}")
        try:
            with draft.open("wb") as file:
                file.write(MAGIC + uuid.uuid4().bytes)
                for change in changes:
                    file.write(_record(change))
                _to_disk(file)
            draft.rename(self.path)
            _folder_to_disk(self.path.parent)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise from_os(error, "writing the index") from error

    def changed(self) -> bool:
        """Whether there are changes that were not read yet; raises `NotFound` for a deleted
        index.
        """
        return self._state() != self._state_read

    @contextmanager
    def lock(self, *, exclusive: bool) -> Iterator[None]:
        """Hold the lock: shared against writers, or exclusive; raises `NotFound` for a deleted
        index.
        """
        try:
            file = os.open(
                self.path.with_name("lock"),
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
                0o600,
            )
        except FileNotFoundError as error:
            raise NotFound("the index was deleted") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(file)

    def read(self) -> Iterator[Change]:
        """The changes since the last read, under the lock; raises `Replaced`, and `MillError` for a
        damaged log.
        """
        state = self._state()
        with self.path.open("rb") as file:
            self._begin(file.read(HEADER), state[1])
            file.seek(self.offset)
            while (record := _next(file)) is not None:
                payload, end = record
                yield _decoder.decode(payload)
                self.offset = end
            if self.offset < state[1]:
                self._check_tail(file)
        self._state_read = state

    def _begin(self, head: bytes, size: int) -> None:
        """Check a file by its head and size: the log that was read so far, or a new one."""
        if len(head) < HEADER or not head.startswith(MAGIC):
            raise MillError(
                f"{self.path} is not a log of vectors: put it back from a copy"
            )
        if self.generation and (head != self.generation or size < self.offset):
            self.generation = b""
            self.offset = 0
            raise Replaced
        self.generation = head
        self.offset = max(self.offset, HEADER)

    def append(self, change: Change) -> None:
        """Append a change, under the exclusive lock; it is on disk when this returns. Raises
        `StorageFull`.
        """
        try:
            with self.path.open("r+b") as file:
                file.truncate(self.offset)  # what a writer left unfinished
                file.seek(self.offset)
                try:
                    file.write(_record(change))
                    _to_disk(file)
                except OSError:
                    file.truncate(self.offset)
                    raise
        except OSError as error:
            raise from_os(error, "writing the index") from error

    def _state(self) -> tuple[int, int]:
        """Inode and size, which change when the log is rewritten or appended to."""
        try:
            status = self.path.stat()
        except FileNotFoundError as error:
            raise NotFound("the index was deleted") from error
        return status.st_ino, status.st_size

    def _check_tail(self, file: BinaryIO) -> None:
        """Raises `MillError` when valid records follow the unreadable one: the file is damaged.
        Without any it is an unfinished tail.
        """
        file.seek(self.offset)
        rest = file.read()
        at = rest.find(MARK, 1)
        while at >= 0:
            if _next(io.BytesIO(rest[at:])) is not None:
                raise MillError(
                    f"{self.path} is damaged at byte {self.offset:,}, with sound records after "
                    "it: put it back from "
                    "a copy, or delete the index and add its items again"
                )
            at = rest.find(MARK, at + 1)


def _record(change: Change) -> bytes:
    payload = _encoder.encode(change)
    return HEAD.pack(MARK, len(payload), zlib.crc32(payload)) + payload


def _next(file: BinaryIO | io.BytesIO) -> tuple[bytes, int] | None:
    """The payload of the next record and its end; None where there is no complete, valid one."""
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    mark, length, checksum = HEAD.unpack(head)
    if mark != MARK:
        return None
    payload = file.read(length)
    return (
        (payload, file.tell())
        if len(payload) == length and zlib.crc32(payload) == checksum
        else None
    )


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _folder_to_disk(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
