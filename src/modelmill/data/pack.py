"""Packs data for an upload: a zip with the same bytes for the same content; standard library
only.
"""

import shutil
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, BinaryIO

from modelmill.data.names import check_member, locate
from modelmill.errors import InvalidInput, from_os

CHUNK = 1 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


def pack(path: Path, target: BinaryIO | Path) -> None:
    """Write a folder or a file as a zip of stored members, sorted by name; a zip is copied.

    Nothing is held in memory, and the target need not be seekable. Raises `NotFound`,
    `InvalidInput` when there is nothing to pack, and `StorageFull`.
    """
    location, files = locate(path)
    if files == {}:
        raise InvalidInput(
            f"'{path}' holds no files (hidden ones and links that lead outside do not count)"
        )
    try:
        with _opened(target) as out:
            if files is None:
                _copy(location, out)
            else:
                _write(files, out)
    except OSError as error:
        raise from_os(error, "packing the data") from error


def _opened(target: BinaryIO | Path) -> AbstractContextManager[BinaryIO]:
    return (
        target.open("wb") if isinstance(target, Path) else nullcontext(target)
    )


def _copy(file: Path, out: BinaryIO | IO[bytes]) -> None:
    with file.open("rb") as opened:
        shutil.copyfileobj(opened, out, CHUNK)


class _Forward:
    """A target that can only be appended to: zipfile then writes the same bytes to a file and to a
    stream.
    """

    def __init__(self, target: BinaryIO) -> None:
        self.write = target.write
        self.flush = target.flush


def _write(files: dict[str, Path], out: BinaryIO) -> None:
    with zipfile.ZipFile(_Forward(out), "w") as archive:  # type: ignore[call-overload]
        for name in sorted(files):
            check_member("the data", name)
            with archive.open(_info(name, files[name]), "w") as member:
                _copy(files[name], member)


def _info(name: str, file: Path) -> zipfile.ZipInfo:
    """A member that says the same of the same content, wherever and whenever it is packed."""
    info = zipfile.ZipInfo(name, EPOCH)
    info.create_system = 3
    info.external_attr = 0o100644 << 16
    info.file_size = file.stat().st_size
    return info
