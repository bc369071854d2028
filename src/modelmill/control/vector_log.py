"""The log of an index of vectors: every change in order, on disk before it is answered.

A file begins with MAGIC and the 16 random bytes of its generation; then come records: MARK, the
length of the payload and its CRC-32 (little-endian), the payload as MessagePack. Only who holds the
lock writes, and only a tail that a writer left unfinished when it died is ever cut off.
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
    """Items that came together; `next_id` is larger than any number that was ever given."""

    items: list[Entry]
    next_id: int


class Removed(msgspec.Struct, array_like=True, tag="r"):
    """Items that went."""

    ids: list[int]


Change = Added | Removed
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Change)


class Replaced(Exception):
    """The log was rewritten: what was read of it counts no more."""


class VectorLog:
    """One log, read by many and written by one at a time, in as many processes as there are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = b""
        self.offset = 0
        self._seen: tuple[int, int] = (0, 0)

    def create(self, changes: Sequence[Change] = ()) -> None:
        """A new log in place of what is there, whole or not at all; raises `StorageFull`."""
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
        """Whether there is something that was not read yet; raises `NotFound` when the index was
        deleted.
        """
        return self._state() != self._seen

    @contextmanager
    def lock(self, *, exclusive: bool) -> Iterator[None]:
        """Keep others from writing, and from reading where it is to be exclusive."""
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
        """The changes since the last time, under the lock; raises `Replaced`, and `MillError` where
        it is damaged.
        """
        state = self._state()
        with self.path.open("rb") as file:
            head = file.read(HEADER)
            if len(head) < HEADER or not head.startswith(MAGIC):
                raise MillError(
                    f"{self.path} is not a log of vectors: put it back from a copy"
                )
            if self.generation and (head != self.generation or state[1] < self.offset):
                self.generation, self.offset = b"", 0
                raise Replaced
            self.generation, self.offset = head, max(self.offset, HEADER)
            file.seek(self.offset)
            while (record := _next(file)) is not None:
                payload, end = record
                yield _decoder.decode(payload)
                self.offset = end
            if self.offset < state[1]:
                self._refuse_damage(file)
        self._seen = state

    def append(self, change: Change) -> None:
        """Write a change behind what was read, under the exclusive lock; it is on disk when this
        returns.
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
        """What tells one content from another: a rewritten log is another file, a longer one has
        more.
        """
        try:
            found = self.path.stat()
        except FileNotFoundError as error:
            raise NotFound("the index was deleted") from error
        return found.st_ino, found.st_size

    def _refuse_damage(self, file: BinaryIO) -> None:
        """A tail is forgotten when nothing sound follows; else something has changed bytes that
        were on disk.
        """
        file.seek(self.offset)
        rest = file.read()
        at = rest.find(MARK, 1)
        while at >= 0:
            if _next(io.BytesIO(rest[at:])) is not None:
                raise MillError(
                    f"{self.path} is damaged at byte {self.offset:,}, with sound records behind "
                    "it: put it back from "
                    "a copy, or delete the index and add its items again"
                )
            at = rest.find(MARK, at + 1)


def _record(change: Change) -> bytes:
    payload = _encoder.encode(change)
    return HEAD.pack(MARK, len(payload), zlib.crc32(payload)) + payload


def _next(file: BinaryIO | io.BytesIO) -> tuple[bytes, int] | None:
    """The payload of the next record and where it ends; None where none is whole and sound."""
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
