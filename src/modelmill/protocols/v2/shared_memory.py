"""System shared memory of v2: tensors in files of /dev/shm that a client on this machine has
registered.

Regions are read and written with `pread` and `pwrite`, never mapped: a client that shortens its
file would end the process with SIGBUS. A region belongs to the key that registered it.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from weakref import WeakKeyDictionary

from modelmill.errors import Conflict, Forbidden, InvalidInput, NotFound
from modelmill.serve.gateway import Gateway
from modelmill.types import Json, KeyInfo

KEY = re.compile(r"/(?!\.{1,2}$|sem\.)[A-Za-z0-9_.-]{1,250}")
"""Names of objects; those of semaphores, which lie in the same folder, are none."""
FOLDER = "/dev/shm"  # noqa: S108  where shm_open(3) keeps them
MAX_REGIONS = 64
MAX_BYTES = 4 << 30
MAX_NAME = 256


class Region(NamedTuple):
    """An open file of /dev/shm; `offset` and `byte_size` are what was registered."""

    descriptor: int
    key: str
    offset: int
    byte_size: int


class Regions:
    """The regions of all callers of one gateway."""

    def __init__(self) -> None:
        self._owned: dict[tuple[str, str], dict[str, Region]] = {}

    def register(
        self, caller: KeyInfo, name: str, key: str, offset: int, byte_size: int
    ) -> None:
        """Open the object `key`; raises `Conflict`, `InvalidInput`, `NotFound`, `Forbidden`."""
        own = self._of(caller)
        _check_name(name)
        if name in own:
            raise Conflict(
                f"the region '{name}' is already registered: unregister it first"
            )
        _check_room(own, byte_size)
        self._owned.setdefault(_owner(caller), {})[name] = _open(
            key, offset, byte_size
        )

    def unregister(self, caller: KeyInfo, name: str | None = None) -> None:
        """Close a region, or all of the caller's; one that is not there is no error."""
        own = self._of(caller)
        for each in [name] if name is not None else list(own):
            if region := own.pop(each, None):
                os.close(region.descriptor)
        if not own:
            self._owned.pop(_owner(caller), None)

    def status(self, caller: KeyInfo, name: str | None = None) -> list[Json]:
        """The caller's regions, or one of them; raises `NotFound`."""
        own = self._of(caller)
        chosen = own if name is None else {name: self._find(caller, name)}
        return [_described(each, region) for each, region in chosen.items()]

    def read(self, caller: KeyInfo, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` of the region; raises `NotFound`, `InvalidInput`."""
        region = self.check(caller, name, offset, size)
        start = region.offset + offset
        parts = list(_parts(region.descriptor, start, start + size))
        if sum(map(len, parts)) < size:
            raise _shortened(name)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(
        self, caller: KeyInfo, name: str, offset: int, size: int, data: bytes
    ) -> None:
        """Leave `data` at `offset` of the region, where `size` bytes are meant for it; raises as
        `read`.
        """
        region = self.check(caller, name, offset, size)
        if len(data) > size:
            raise InvalidInput(
                f"the output has {len(data)} bytes; shared_memory_byte_size allows {size}"
            )
        start = region.offset + offset
        if start + len(data) > os.fstat(region.descriptor).st_size:
            raise _shortened(name)
        _write(region.descriptor, start, data)

    def check(
        self, caller: KeyInfo, name: str, offset: int, size: int
    ) -> Region:
        """The region, when it has `size` bytes at `offset`; raises `NotFound`, `InvalidInput`."""
        region = self._find(caller, name)
        if (
            not 0 <= offset <= region.byte_size
            or not 0 <= size <= region.byte_size - offset
        ):
            raise InvalidInput(
                f"{size} bytes from {offset} do not lie in the region '{name}' of "
                f"{region.byte_size}"
            )
        return region

    def _of(self, caller: KeyInfo) -> dict[str, Region]:
        return self._owned.get(_owner(caller), {})

    def _find(self, caller: KeyInfo, name: str) -> Region:
        if (region := self._of(caller).get(name)) is None:
            raise NotFound(
                f"no region '{name[:80]}' is registered with this key"
            )
        return region


def _owner(caller: KeyInfo) -> tuple[str, str]:
    return caller.project, caller.digest


def _check_name(name: str) -> None:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidInput(
            f"a region's name has 1 to {MAX_NAME} printable characters, not {name[:80]!r}"
        )


def _check_room(own: Mapping[str, Region], byte_size: int) -> None:
    """Raises `InvalidInput` when a caller has registered as much as it may."""
    together = byte_size + sum(region.byte_size for region in own.values())
    if len(own) >= MAX_REGIONS or together > MAX_BYTES:
        raise InvalidInput(
            f"a key may register {MAX_REGIONS} regions of {MAX_BYTES:,} bytes together"
        )


def _parts(descriptor: int, at: int, end: int) -> Iterator[bytes]:
    """What a file holds between two places, as far as it goes."""
    while at < end and (part := os.pread(descriptor, end - at, at)):
        yield part
        at += len(part)


def _write(descriptor: int, at: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view, at)
        view, at = view[done:], at + done


def _described(name: str, region: Region) -> Json:
    return {
        "name": name,
        "key": region.key,
        "offset": region.offset,
        "byte_size": region.byte_size,
    }


def _shortened(name: str) -> InvalidInput:
    return InvalidInput(
        f"the region '{name}' is shorter than it was when it was registered"
    )


def _open(key: str, offset: int, byte_size: int) -> Region:
    """The checked object; raises `InvalidInput`, `NotFound`, `Forbidden`."""
    if not KEY.fullmatch(key):
        raise InvalidInput(
            f"a region's key is '/' and 1 to 250 letters, digits, '_', '.' or '-', not {key[:80]!r}"
        )
    if offset < 0 or byte_size < 1:
        raise InvalidInput(
            f"a region has an offset from 0 and a byte_size from 1, not {offset} and {byte_size}"
        )
    descriptor = _descriptor(key)
    try:
        _check(descriptor, key, offset + byte_size)
    except BaseException:
        os.close(descriptor)
        raise
    return Region(descriptor, key, offset, byte_size)


def _descriptor(key: str) -> int:
    """The open object; raises `NotFound`, `Forbidden`."""
    try:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(FOLDER + key, flags)
    except FileNotFoundError as error:
        raise NotFound(
            f"there is no shared memory '{key}' on this machine"
        ) from error
    except OSError as error:
        raise Forbidden(
            f"the shared memory '{key}' can't be opened: {error.strerror}"
        ) from error


def _check(descriptor: int, key: str, end: int) -> None:
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
        raise Forbidden(
            f"the shared memory '{key}' does not belong to the user that this server runs as"
        )
    if end > about.st_size:
        raise InvalidInput(
            f"the shared memory '{key}' has {about.st_size} bytes, fewer than offset + byte_size "
            f"= {end}"
        )


_regions: WeakKeyDictionary[Gateway, Regions] = WeakKeyDictionary()


def regions(gateway: Gateway) -> Regions:
    """The gateway's regions; raises `Forbidden` unless the setting `shared_memory` allows them."""
    if not gateway.shared_memory:
        raise Forbidden(
            "shared memory is off on this server; the setting shared_memory=true allows it"
        )
    return _regions.setdefault(gateway, Regions())
