"""The part of the SDK that is about indexes."""

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
    """Indexes of what models make of pictures or texts."""

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

        Without `left_out` the first file that can't be read ends it with an error. Else it is
        passed over, and `left_out` is told its name and the reason.

        Without a `label` a file of a folder has the label that its place in the folder says, as in
        `LABEL/1.jpg` or `train/LABEL/1.jpg`, so that a data set of pictures can be added as it is.
        Some dozens go at once: when one is refused, those that went before stay; the error says
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

        for title, read, said in _enrolled(inputs):
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
            given = said if label is None else label
            items.append(
                {
                    "input": b64encode(data).decode(),
                    "label": given,
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
        """Forget an index with all its items."""
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
        how = {"strict": left_out is None}
        try:
            told = self._call("POST", path, params=how, json={"items": items})
            if left_out is not None:
                for one in told["refused"]:
                    left_out(names[one["item"]], one["error"])
            return list(told["ids"])
        except InvalidInput as error:
            place, colon, why = error.message.partition(": ")
            number = place.removeprefix("item ") if len(items) > 1 else "0"
            if not number.isdecimal() or not names[int(number)]:
                raise
            raise type(error)(
                f"{names[int(number)][:200]}: {why if colon and len(items) > 1 else error}"
            ) from error


def _added_before(count: int) -> str:
    if not count:
        return "nothing was added"
    return f"{count} item{'s' * (count > 1)} before it {'were' if count > 1 else 'was'} added"


Enrolled = tuple[str, Callable[[], bytes], str]
"""What is to be added: the file's name, what reads its bytes, and the label that a folder gives
it.
"""


def _enrolled(inputs: Sequence[str | bytes | os.PathLike[str]]) -> Iterator[Enrolled]:
    for one in inputs:
        if isinstance(one, bytes):
            yield "", partial(bytes, one), ""
            continue
        place = Path(one).expanduser()
        if place.is_dir():
            yield from _labelled(place, list_folder(place), read_file)
        elif place.is_file() and is_zip(place):
            yield from _zipped(place)
        else:
            yield str(one), partial(read_file, place), ""


def _labelled(
    place: Path, files: Mapping[str, Any], read: Callable[[Any], bytes]
) -> Iterator[Enrolled]:
    """The files of a folder or a zip, with the folders in which they lie as labels; those of splits
    are none.
    """
    names = [name for name in sorted(files) if not is_junk(name) and not is_note(name)]
    if not names:
        raise InvalidInput(f"'{place}' holds no files")
    split = all("/" in name and split_of(name.partition("/")[0]) for name in names)
    for name in names:
        label = (name.partition("/")[2] if split else name).rpartition("/")[0]
        yield f"{place}/{name}", partial(read, files[name]), label


def _zipped(place: Path) -> Iterator[Enrolled]:
    try:
        archive = zipfile.ZipFile(place)
    except (zipfile.BadZipFile, OSError) as error:
        raise InvalidInput(f"'{place}' is no zip that can be read: {error}") from error
    with archive:
        members = {name: name for name in archive.namelist() if not name.endswith("/")}
        yield from _labelled(place, view(members), lambda name: _member(archive, name))


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
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
