"""The indexes of all projects: a folder each, with the model whose vectors it holds."""

import shutil
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from modelmill.control.db import Version
from modelmill.control.vector_index import VectorIndex
from modelmill.errors import (
    Conflict,
    InvalidInput,
    MillError,
    NotFound,
    from_os,
    unknown,
)
from modelmill.types import Json, Struct, check_name

DESCRIPTION = "index.json"
DELETED = ".deleted-"
OUTPUT = "embedding"


class Description(Struct, frozen=True, kw_only=True):
    """An index, immutable; `mark` distinguishes it from a later one of the same name."""

    name: str
    mark: str
    model: str
    version: int
    dimensions: int
    created: datetime


class Indexes:
    """Indexes below `root`/PROJECT/NAME; as files they are shared by all gateways of a home."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, VectorIndex] = {}
        self._guard = threading.Lock()
        for leftover in root.glob(f"*/{DELETED}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def create(self, project: int, name: str, version: Version) -> Description:
        """A new, empty index of the vectors of a version; raises `Conflict`, `InvalidInput`,
        `StorageFull`.
        """
        check_name("index", name)
        folder = self._root / str(project) / name
        description = Description(
            name=name,
            mark=uuid.uuid4().hex,
            model=version.model,
            version=version.number,
            dimensions=_dimensions(version),
            created=datetime.now(UTC),
        )
        try:
            _make(folder, description)
        except OSError as error:
            if folder.exists():
                raise Conflict(
                    f"there is an index '{name}' already: choose another name, or delete it first"
                ) from error
            raise from_os(error, "making the index") from error
        return description

    def all(self, project: int) -> list[Description]:
        """All of a project, by name."""
        return sorted(
            self._descriptions(project),
            key=lambda description: description.name,
        )

    def get(self, project: int, name: str) -> tuple[Description, VectorIndex]:
        """One by name, open; raises `NotFound` naming those that exist."""
        description = _read(
            self._root / str(project) / check_name("index", name)
        )
        if description is None:
            names = [each.name for each in self._descriptions(project)]
            raise unknown("index", name, names)
        return description, self._opened(project, description)

    def _opened(self, project: int, description: Description) -> VectorIndex:
        """The index, one object for all threads."""
        with self._guard:
            index = self._open.get(description.mark)
            if index is None:
                folder = self._root / str(project) / description.name
                index = VectorIndex(folder, description.dimensions)
                self._open[description.mark] = index
            return index

    def delete(self, project: int, name: str) -> None:
        """Remove an index with all its items; raises `NotFound`."""
        description, index = self.get(project, name)
        try:
            removed = index.folder.rename(
                index.folder.with_name(f"{DELETED}{description.mark}")
            )
        except FileNotFoundError as error:
            raise NotFound(f"the index '{name}' was deleted") from error
        self._open.pop(description.mark, None)
        shutil.rmtree(removed, ignore_errors=True)

    def _descriptions(self, project: int) -> Iterator[Description]:
        parent = self._root / str(project)
        for folder in parent.iterdir() if parent.is_dir() else ():
            description = None if folder.name.startswith(".") else _read(folder)
            if description is not None:
                yield description


def _make(folder: Path, description: Description) -> None:
    """The files of an empty index, whole or not at all."""
    draft = folder.with_name(f".{description.mark}")
    try:
        draft.mkdir(parents=True)
        (draft / DESCRIPTION).write_bytes(msgspec.json.encode(description))
        VectorIndex.create(draft)
        draft.rename(folder)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _read(folder: Path) -> Description | None:
    try:
        data = (folder / DESCRIPTION).read_bytes()
        return msgspec.json.decode(data, type=Description)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise MillError(
            f"the index at {folder} can't be read: {error}"
        ) from error


def _dimensions(version: Version) -> int:
    """The dimensions of a version's vectors; raises `InvalidInput` for a model without vectors."""
    outputs = version.manifest["outputs"]
    if not version.task or not _are_vectors(outputs):
        reason = f"is for {version.task}" if version.task else "has no task"
        raise InvalidInput(
            f"'{version.model}' {reason}: an index wants a model that answers vectors, such as one "
            "of image-feature-extraction or feature-extraction"
        )
    return int(outputs[0]["shape"][1])


def _are_vectors(outputs: list[Json]) -> bool:
    """Whether the outputs are one vector for each input."""
    if len(outputs) != 1:
        return False
    return outputs[0]["name"] == OUTPUT and len(outputs[0]["shape"]) == 2
