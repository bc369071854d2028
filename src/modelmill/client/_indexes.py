"""The part of the SDK for vector indexes."""

import os
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from modelmill.client._connection import Connection, quoted, read_file
from modelmill.client.rows import Hit, Index, Json
from modelmill.data.names import (
    folder_of,
    is_junk,
    is_note,
    is_zip,
    list_folder,
    split_of,
    top_folder,
    view,
)
from modelmill.errors import InvalidInput, MillError, NotFound

ITEMS, ITEMS_BYTES = 64, 16 << 20
"""Most items, and bytes of them, in one request to an index."""


class Indexes(Connection):
    """Vector indexes of pictures or texts."""

    def create_index(self, name: str, model: str) -> Index:
        """An empty index of the vectors of `NAME[:VERSION|@ALIAS]`, such as a model of a
        feature-extraction task.
        """
        return cast(
            Index,
            self._call(
                "POST", "/api/v1/indexes", json={"name": name, "model": model}
            ),
        )

    def indexes(self) -> list[Index]:
        """All indexes."""
        return cast(list[Index], self._get("/api/v1/indexes"))

    def index(self, name: str) -> Index:
        """One index."""
        return cast(Index, self._get(f"/api/v1/indexes/{quoted(name)}"))

    def add_to_index(
        self,
        name: str,
        *inputs: str | bytes | os.PathLike[str],
        label: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        left_out: Callable[[str, str], object] | None = None,
    ) -> list[int]:
        """Add files (their bytes, or all files of folders and zips); returns the numbers of the
        items.

        Without `left_out` the first file that can't be read raises an error. Else it is skipped,
        and `left_out` is called with its name and the reason.

        Without a `label` a file of a folder has its subfolder as label, as in `LABEL/1.jpg` or
        `train/LABEL/1.jpg`, so that a data set of pictures can be added as it is. Files are sent in
        requests of up to 64: when one is refused, those of earlier requests stay; the error says
        how many.
        """
        ids: list[int] = []
        batch = _Batch()
        for title, read, folder_label in _inputs(inputs):
            try:
                data = read()
            except (InvalidInput, NotFound) as error:
                if left_out is None:
                    raise _with_count(error, len(ids)) from error
                left_out(title, error.message)
                continue
            if not batch.has_room(len(data)):
                ids += self._add_items(name, batch, left_out, len(ids))
                batch = _Batch()
            batch.add(
                title, data, folder_label if label is None else label, metadata
            )
        if batch.items:
            ids += self._add_items(name, batch, left_out, len(ids))
        return ids

    def search_index(
        self,
        name: str,
        query: str | bytes | os.PathLike[str] = b"",
        k: int = 5,
        *,
        text: str | None = None,
    ) -> list[Hit]:
        """The `k` items most like a picture or a text (a file, its bytes, or a `text`), the nearest
        first.
        """
        data = query if isinstance(query, bytes) else read_file(Path(query))
        data = data if text is None else text.encode()
        path = f"/api/v1/indexes/{quoted(name)}/search"
        return cast(list[Hit], self._send_bytes(path, data, {"k": k}))

    def index_items(
        self,
        name: str,
        *,
        label: str | None = None,
        offset: int = 0,
        limit: int = 100,
    ) -> list[Json]:
        """Items in the order in which they came: `id`, `label` and `metadata`."""
        parameters: Json = {
            "offset": offset,
            "limit": limit,
            **({} if label is None else {"label": label}),
        }
        return cast(
            list[Json],
            self._get(
                f"/api/v1/indexes/{quoted(name)}/items", params=parameters
            ),
        )

    def remove_from_index(
        self, name: str, id: int | None = None, *, label: str | None = None
    ) -> int:
        """Remove the item of a number, or all of a label; returns how many."""
        if (id is None) == (label is None):
            raise InvalidInput(
                "say which items to remove: the number of one, or a label"
            )
        path = f"/api/v1/indexes/{quoted(name)}/items"
        if label is None:
            return int(self._call("DELETE", f"{path}/{id}")["removed"])
        return int(
            self._call("DELETE", path, params={"label": label})["removed"]
        )

    def delete_index(self, name: str) -> None:
        """Remove an index with all its items."""
        self._call("DELETE", f"/api/v1/indexes/{quoted(name)}")

    def _add_items(
        self,
        name: str,
        batch: "_Batch",
        left_out: Callable[[str, str], object] | None,
        added: int,
    ) -> list[int]:
        """Add some items to an index after others that were `added`; an error about one of them
        names its file.
        """
        path = f"/api/v1/indexes/{quoted(name)}/items"
        parameters = {"strict": left_out is None}
        body = {"items": batch.items}
        try:
            answer = self._call("POST", path, params=parameters, json=body)
        except InvalidInput as error:
            raise _with_count(batch.named(error), added) from error
        if left_out is not None:
            for refused in answer["refused"]:
                left_out(batch.names[refused["item"]], refused["error"])
        return list(answer["ids"])


class _Batch:
    """Items of one request to an index, with the names of their files."""

    def __init__(self) -> None:
        self.items: list[Json] = []
        self.names: list[str] = []
        self._size = 0

    def has_room(self, size: int) -> bool:
        """Whether an item of so many bytes may join; the first always may."""
        if not self.items:
            return True
        return len(self.items) < ITEMS and self._size + size <= ITEMS_BYTES

    def add(
        self,
        name: str,
        data: bytes,
        label: str,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        """Let a file join."""
        item = {
            "input": b64encode(data).decode(),
            "label": label,
            "metadata": dict(metadata or {}),
        }
        self.items.append(item)
        self.names.append(name)
        self._size += len(data)

    def named(self, error: InvalidInput) -> InvalidInput:
        """An error with the name of the file that it is about, where it is about one."""
        is_alone = len(self.items) == 1
        subject, colon, why = error.message.partition(": ")
        number = "0" if is_alone else subject.removeprefix("item ")
        if not number.isdecimal() or not self.names[int(number)]:
            return error
        reason = str(error) if is_alone or not colon else why
        return type(error)(f"{self.names[int(number)][:200]}: {reason}")


def _with_count(error: MillError, count: int) -> MillError:
    """An error that says how many items were added before."""
    if not count:
        return type(error)(f"{error}; nothing was added")
    items = "items before it were" if count > 1 else "item before it was"
    return type(error)(f"{error}; {count} {items} added")


FileToAdd = tuple[str, Callable[[], bytes], str]
"""The name of a file to add, a function that reads its bytes, and its folder's label."""


def _inputs(
    inputs: Sequence[str | bytes | os.PathLike[str]],
) -> Iterator[FileToAdd]:
    for value in inputs:
        if isinstance(value, bytes):
            yield "", partial(bytes, value), ""
        else:
            yield from _files(value)


def _files(name: str | os.PathLike[str]) -> Iterator[FileToAdd]:
    """The file of a name, or all those in a folder or a zip."""
    path = Path(name).expanduser()
    if path.is_dir():
        yield from _labelled(path, list_folder(path), read_file)
    elif path.is_file() and is_zip(path):
        yield from _zip_files(path)
    else:
        yield str(name), partial(read_file, path), ""


def _labelled(
    path: Path, files: Mapping[str, Any], read: Callable[[Any], bytes]
) -> Iterator[FileToAdd]:
    """The files of a folder or a zip with their folders as labels, without folders of splits."""
    names = [
        name
        for name in sorted(files)
        if not is_junk(name) and not is_note(name)
    ]
    if not names:
        raise InvalidInput(f"'{path}' holds no files")
    in_splits = all(split_of(top_folder(name)) for name in names)
    for name in names:
        inner = name.partition("/")[2] if in_splits else name
        yield f"{path}/{name}", partial(read, files[name]), folder_of(inner)


def _zip_files(path: Path) -> Iterator[FileToAdd]:
    with _opened(path) as archive:
        members = {
            name: name for name in archive.namelist() if not name.endswith("/")
        }
        yield from _labelled(
            path, view(members), partial(_read_member, archive)
        )


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InvalidInput(
            f"'{path}' is no zip that can be read: {error}"
        ) from error


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of a zip; raises `InvalidInput` for a damaged or huge one."""
    try:
        if archive.getinfo(name).file_size > ITEMS_BYTES:
            raise InvalidInput(
                f"{name[:200]} is larger than {ITEMS_BYTES >> 20} MiB"
            )
        return archive.read(name)
    except (
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
        NotImplementedError,
        EOFError,
    ) as error:
        raise InvalidInput(
            f"{name[:200]} can't be read from the zip: {error}"
        ) from error
