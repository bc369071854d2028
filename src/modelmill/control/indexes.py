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
from modelmill.types import Struct, check_name

DESCRIPTION = "index.json"
DELETED = ".deleted-"
OUTPUT = "embedding"


class Description(Struct, frozen=True, kw_only=True):
    """What an index is: made once, never changed. `mark` tells it from a later one of the same
    name.
    """

    name: str
    mark: str
    model: str
    version: int
    dimensions: int
    created: datetime


class Indexes:
    """Indexes below `root`/PROJECT/NAME. They are files so that any gateway of the home reads and
    writes them.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, VectorIndex] = {}
        self._guard = threading.Lock()
        for left in root.glob(f"*/{DELETED}*"):
            shutil.rmtree(left, ignore_errors=True)

    def create(self, project: int, name: str, version: Version) -> Description:
        """A new, empty index of the vectors of a version; raises `Conflict`, `InvalidInput`,
        `StorageFull`.
        """
        check_name("index", name)
        place = self._root / str(project) / name
        told = Description(
            name=name,
            mark=uuid.uuid4().hex,
            model=version.model,
            version=version.number,
            dimensions=_dimensions(version),
            created=datetime.now(UTC),
        )
        draft = place.with_name(f".{told.mark}")
        try:
            draft.mkdir(parents=True)
            (draft / DESCRIPTION).write_bytes(msgspec.json.encode(told))
            VectorIndex.create(draft)
            draft.rename(place)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            if place.exists():
                raise Conflict(
                    f"there is an index '{name}' already: choose another name, or delete it first"
                ) from error
            raise from_os(error, "making the index") from error
        return told

    def all(self, project: int) -> list[Description]:
        """All of a project, by name."""
        return sorted(self._described(project), key=lambda told: told.name)

    def get(self, project: int, name: str) -> tuple[Description, VectorIndex]:
        """One by name, open; raises `NotFound` naming those that exist."""
        told = _read(self._root / str(project) / check_name("index", name))
        if told is None:
            raise unknown("index", name, [one.name for one in self._described(project)])
        with self._guard:
            if told.mark not in self._open:
                self._open[told.mark] = VectorIndex(
                    self._root / str(project) / name, told.dimensions
                )
            return told, self._open[told.mark]

    def delete(self, project: int, name: str) -> None:
        """Forget an index with all its items."""
        told, index = self.get(project, name)
        try:
            gone = index.folder.rename(index.folder.with_name(f"{DELETED}{told.mark}"))
        except FileNotFoundError as error:
            raise NotFound(f"the index '{name}' was deleted") from error
        self._open.pop(told.mark, None)
        shutil.rmtree(gone, ignore_errors=True)

    def _described(self, project: int) -> Iterator[Description]:
        folder = self._root / str(project)
        for place in folder.iterdir() if folder.is_dir() else ():
            if not place.name.startswith(".") and (told := _read(place)) is not None:
                yield told


def _read(place: Path) -> Description | None:
    try:
        return msgspec.json.decode((place / DESCRIPTION).read_bytes(), type=Description)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise MillError(f"the index at {place} can't be read: {error}") from error


def _dimensions(version: Version) -> int:
    """How long the vectors of a version are; raises `InvalidInput` for a model that answers
    none.
    """
    outputs = version.manifest["outputs"]
    if (
        not version.task
        or len(outputs) != 1
        or outputs[0]["name"] != OUTPUT
        or len(outputs[0]["shape"]) != 2
    ):
        kind = f"is for {version.task}" if version.task else "has no task"
        raise InvalidInput(
            f"'{version.model}' {kind}: an index wants a model that answers vectors, such as one "
            "of "
            "image-feature-extraction or feature-extraction"
        )
    return int(outputs[0]["shape"][1])
