"""The part of the SDK that is about indexes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from modelmill.client._connection import Connection, quoted, read_file
from modelmill.client.rows import Hit, Index, Json
from modelmill.errors import (
    InvalidInput,
)

ITEMS, ITEMS_BYTES = 64, 16 << 20
"""Most items, and bytes of them, in one request to an index."""


class Indexes(Connection):
    """Indexes of what models make of pictures."""

    def create_index(self, name: str, model: str) -> Index:
        """An empty index of the vectors of `NAME[:VERSION|@ALIAS]`, such as a model of image-feature-extraction."""
        return cast(Index, self._call("POST", "/api/v1/indexes", json={"name": name, "model": model}))

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
    ) -> list[int]:
        """Add files (their bytes, or all files of folders); returns the numbers of the items.

        Without a `label` a file of a folder has the label that its place in the folder says, as in `LABEL/1.jpg`.
        Some dozens go at once: when one is refused, those that went before stay.
        """
        from base64 import b64encode

        ids: list[int] = []
        items: list[Json] = []
        names: list[str] = []
        size = 0
        for title, data, said in _enrolled(inputs):
            if items and (len(items) == ITEMS or size + len(data) > ITEMS_BYTES):
                ids += self._add_items(name, items, names)
                items, names, size = [], [], 0
            given = said if label is None else label
            items.append({"input": b64encode(data).decode(), "label": given, "metadata": dict(metadata or {})})
            names.append(title)
            size += len(data)
        return ids + self._add_items(name, items, names) if items else ids

    def search_index(self, name: str, query: str | bytes | os.PathLike[str], k: int = 5) -> list[Hit]:
        """The `k` items most like a picture (a file or its bytes), the nearest first."""
        data = query if isinstance(query, bytes) else read_file(Path(query))
        headers = {"Content-Type": "application/octet-stream"}
        path = f"/api/v1/indexes/{quoted(name)}/search"
        return cast(list[Hit], self._call("POST", path, params={"k": k}, content=data, headers=headers))

    def index_items(self, name: str, *, label: str | None = None, offset: int = 0, limit: int = 100) -> list[Json]:
        """Items in the order in which they came: `id`, `label` and `metadata`."""
        parameters: Json = {"offset": offset, "limit": limit, **({} if label is None else {"label": label})}
        return cast(list[Json], self._get(f"/api/v1/indexes/{quoted(name)}/items", params=parameters))

    def remove_from_index(self, name: str, id: int | None = None, *, label: str | None = None) -> int:
        """Remove the item of a number, or all of a label; returns how many."""
        if (id is None) == (label is None):
            raise InvalidInput("say which items to remove: the number of one, or a label")
        path = f"/api/v1/indexes/{quoted(name)}/items" + (f"/{id}" if label is None else "")
        parameters = {} if label is None else {"label": label}
        return int(self._call("DELETE", path, params=parameters)["removed"])

    def delete_index(self, name: str) -> None:
        """Forget an index with all its items."""
        self._call("DELETE", f"/api/v1/indexes/{quoted(name)}")

    def _add_items(self, name: str, items: list[Json], names: list[str]) -> list[int]:
        """Add some items to an index; an error about one of them names its file."""
        try:
            return list(self._call("POST", f"/api/v1/indexes/{quoted(name)}/items", json={"items": items})["ids"])
        except InvalidInput as error:
            place, colon, why = error.message.partition(": ")
            number = place.removeprefix("item ") if len(items) > 1 else "0"
            if not number.isdecimal() or not names[int(number)]:
                raise
            raise type(error)(f"{names[int(number)][:200]}: {why if colon and len(items) > 1 else error}") from error


def _enrolled(inputs: Sequence[str | bytes | os.PathLike[str]]) -> Iterator[tuple[str, bytes, str]]:
    """What is to be added to an index: the file's name, its bytes, and the label that a folder gives it."""
    for one in inputs:
        if isinstance(one, bytes):
            yield "", one, ""
        elif not (place := Path(one).expanduser()).is_dir():
            yield str(one), read_file(place), ""
        else:
            files = sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))
            if not files:
                raise InvalidInput(f"the folder '{place}' holds no files")
            for path in files:
                label = path.relative_to(place).parent.as_posix()
                yield str(path), read_file(path), "" if label == "." else label
