"""Files that are sent to the admin API: taken in pieces, refused before they fill the disk."""

import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from modelmill.control.api_base import Control
from modelmill.errors import InvalidInput, StorageFull, TooLarge, from_os

CHUNK = 1 << 20


async def receive(request: Request, control: Control) -> Path:
    """The body as a file in the home; removed again when it can't be taken whole.

    Raises `TooLarge`, and `StorageFull` where it would leave less than `free_bytes` on the disk:
    by its declared length before any of it is read, and again as it comes.
    """
    folder = control.jobs.home / "uploads"
    path = folder / uuid.uuid4().hex
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_large(
            int(request.headers.get("content-length", 0)), folder, control
        )
        if not await _write(request, path, control):
            raise InvalidInput("the body is empty: send a zip")
    except OSError as error:
        path.unlink(missing_ok=True)
        raise from_os(error, "taking the upload") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


async def _write(request: Request, path: Path, control: Control) -> int:
    """Write the body as it comes; its bytes."""
    size = 0
    with path.open("wb") as file:
        async for chunk in _gathered(request.stream()):
            size += len(chunk)
            _refuse_large(size, path.parent, control, written=size - len(chunk))
            # A slow disk must not keep predictions waiting.
            await run_in_threadpool(file.write, chunk)
    return size


def _refuse_large(
    size: int, folder: Path, control: Control, written: int = 0
) -> None:
    """Refuse an upload of so many bytes, some of which are on the disk already."""
    if size > control.upload_bytes:
        raise TooLarge(f"the upload exceeds {control.upload_bytes:,} bytes")
    room = shutil.disk_usage(folder).free - control.free_bytes
    if size - written > room:
        raise StorageFull(
            f"the disk is full: the upload needs {_mib(size)} and the disk has room for "
            f"{_mib(max(room, 0) + written)}; free some ({_mib(control.free_bytes)} stay free, "
            "limits.free_bytes)"
        )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


async def _gathered(stream: AsyncIterator[bytes]) -> AsyncIterator[bytearray]:
    """The same bytes in pieces of a size worth a thread."""
    gathered = bytearray()
    async for chunk in stream:
        gathered += chunk
        if len(gathered) >= CHUNK:
            yield gathered
            gathered = bytearray()
    if gathered:
        yield gathered
