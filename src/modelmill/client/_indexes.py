"""The part of the SDK for vector indexes."""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from modelmill.client._connection import Connection, quoted, read_file
from modelmill.client.rows import Hit, Index, Json
from modelmill.data.names import is_junk, is_note, is_zip, list_folder, split_of, view
from modelmill.errors import InvalidInput, NotFound

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
            self._call("POST", "/api/v1/indexes", json={"name": name, "model": model}),
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
        from base64 import b64encode

        ids: list[int] = []
        items: list[Json] = []
        names: list[str] = []
        size = 0

        def send() -> None:
            try:
                ids.extend(self._add_items(name, items, names, left_out))
            except InvalidInput as error:
                raise type(error)(f"{error}; {_added_before(len(ids))}") from error

        for title, read, folder_label in _inputs(inputs):
            try:
                data = read()
            except (InvalidInput, NotFound) as error:
                if left_out is None:
                    raise type(error)(f"{error}; {_added_before(len(ids))}") from error
                left_out(title, error.message)
                continue
            if items and (len(items) == ITEMS or size + len(data) > ITEMS_BYTES):
                send()
                items = []
                names = []
                size = 0
            own_label = folder_label if label is None else label
            items.append(
                {
                    "input": b64encode(data).decode(),
                    "label": own_label,
                    "metadata": dict(metadata or {}),
                }
            )
            names.append(title)
            size += len(data)
        if items:
            send()
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
        headers = {"Content-Type": "application/octet-stream"}
        path = f"/api/v1/indexes/{quoted(name)}/search"
        return cast(
            list[Hit],
            self._call("POST", path, params={"k": k}, content=data, headers=headers),
        )

    def index_items(
        self, name: str, *, label: str | None = None, offset: int = 0, limit: int = 100
    ) -> list[Json]:
        """Items in the order in which they came: `id`, `label` and `metadata`."""
        parameters: Json = {
            "offset": offset,
            "limit": limit,
            **({} if label is None else {"label": label}),
        }
        return cast(
            list[Json],
            self._get(f"/api/v1/indexes/{quoted(name)}/items", params=parameters),
        )

    def remove_from_index(
        self, name: str, id: int | None = None, *, label: str | None = None
    ) -> int:
        """Remove the item of a number, or all of a label; returns how many."""
        if (id is None) == (label is None):
            raise InvalidInput(
                "say which items to remove: the number of one, or a label"
            )
        path = f"/api/v1/indexes/{quoted(name)}/items" + (
            f"/{id}" if label is None else ""
        )
        parameters = {} if label is None else {"label": label}
        return int(self._call("DELETE", path, params=parameters)["removed"])

    def delete_index(self, name: str) -> None:
        """Remove an index with all its items."""
        self._call("DELETE", f"/api/v1/indexes/{quoted(name)}")

    def _add_items(
        self,
        name: str,
        items: list[Json],
        names: list[str],
        left_out: Callable[[str, str], object] | None,
    ) -> list[int]:
        """Add some items to an index; an error about one of them names its file."""
        path = f"/api/v1/indexes/{quoted(name)}/items"
        parameters = {"strict": left_out is None}
        try:
            answer = self._call("POST", path, params=parameters, json={"items": items})
            if left_out is not None:
                for refused in answer["refused"]:
                    left_out(names[refused["item"]], refused["error"])
            return list(answer["ids"])
        except InvalidInput as error:
            subject, colon, why = error.message.partition(": ")
            number = subject.removeprefix("item ") if len(items) > 1 else "0"
            if not number.isdecimal() or not names[int(number)]:
                raise
            raise type(error)(
                f"{names[int(number)][:200]}: {why if colon and len(items) > 1 else error}"
            ) from error


def _added_before(count: int) -> str:
    if not count:
        return "nothing was added"
    return f"{count} item{'s' * (count > 1)} before it {'were' if count > 1 else 'was'} added"


FileToAdd = tuple[str, Callable[[], bytes], str]
"""The name of a file to add, a function that reads its bytes, and its folder's label."""


def _inputs(inputs: Sequence[str | bytes | os.PathLike[str]]) -> Iterator[FileToAdd]:
    for value in inputs:
        if isinstance(value, bytes):
            yield "", partial(bytes, value), ""
            continue
        path = Path(value).expanduser()
        if path.is_dir():
            yield from _labelled(path, list_folder(path), read_file)
        elif path.is_file() and is_zip(path):
            yield from _zip_files(path)
        else:
            yield str(value), partial(read_file, path), ""


def _labelled(
    path: Path, files: Mapping[str, Any], read: Callable[[Any], bytes]
) -> Iterator[FileToAdd]:
    """The files of a folder or a zip with their folders as labels, without folders of splits."""
    names = [name for name in sorted(files) if not is_junk(name) and not is_note(name)]
    if not names:
        raise InvalidInput(f"'{path}' holds no files")
    in_splits = all("/" in name and split_of(name.partition("/")[0]) for name in names)
    for name in names:
        label = (name.partition("/")[2] if in_splits else name).rpartition("/")[0]
        yield f"{path}/{name}", partial(read, files[name]), label


def _zip_files(path: Path) -> Iterator[FileToAdd]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InvalidInput(f"'{path}' is no zip that can be read: {error}") from error
    with archive:
        members = {name: name for name in archive.namelist() if not name.endswith("/")}
        yield from _labelled(
            path, view(members), lambda name: _read_member(archive, name)
        )


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of a zip; raises `InvalidInput` for a damaged or huge one."""
    try:
        if archive.getinfo(name).file_size > ITEMS_BYTES:
            raise InvalidInput(f"{name[:200]} is larger than {ITEMS_BYTES >> 20} MiB")
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
