"""Packs data for an upload: a zip with the same bytes for the same content; standard library
only.
"""

import shutil
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

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
        with (
            target.open("wb")
            if isinstance(target, Path)
            else nullcontext(target) as out
        ):
            if files is None:
                with location.open("rb") as file:
                    shutil.copyfileobj(file, out, CHUNK)
            else:
                _write(files, out)
    except OSError as error:
        raise from_os(error, "packing the data") from error


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
            info = zipfile.ZipInfo(name, EPOCH)
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            info.file_size = files[name].stat().st_size
            with files[name].open("rb") as file, archive.open(info, "w") as member:
                shutil.copyfileobj(file, member, CHUNK)
