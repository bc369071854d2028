"""Vectors with labels and metadata, searched by cosine similarity: exactly while they are few, by
an HNSW graph when many.

The log is the source of truth. The graph (usearch's) is built from it; a snapshot saves time at the
next start.
"""

import threading
import uuid
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelmill.control.vector_log import (
    COPY,
    HEADER,
    Added,
    Change,
    Entry,
    Removed,
    Replaced,
    VectorLog,
)
from modelmill.errors import InvalidInput, unknown

LOG, SNAPSHOT = "log", "graph"
EXACT = 10_000
"""Rows up to which searches are exact."""
CONNECTIVITY = 16
EXPANSION_ADD = 64
EXPANSION_SEARCH = 96
BATCH = 1000
"""Rows that are added to a graph at a time while it is built."""
SNAPSHOT_SHARE = 16
"""A snapshot is written again when the rows have grown by one in this many."""
WASTE = 1000
"""Removed rows from which the log is rewritten, when they are more than the remaining ones."""

Floats = NDArray[np.float32]


class NewItem(NamedTuple):
    """An item to add; its metadata are JSON."""

    vector: Sequence[float] | Floats
    label: str = ""
    metadata: str = "{}"


class Hit(NamedTuple):
    """An item that was found; `score` is the cosine similarity, 1 for the same direction."""

    id: int
    label: str
    score: float
    metadata: str


class VectorIndex:
    """An index in a folder, safe for threads and processes; changes are on disk when they
    return.
    """

    def __init__(self, folder: Path, dimensions: int) -> None:
        self.folder, self.dimensions = folder, dimensions
        self._log = VectorLog(folder / LOG)
        self._guard = threading.RLock()
        self._builder: threading.Thread | None = None
        self._reset()

    @staticmethod
    def create(folder: Path) -> None:
        """Make the files of an empty index; raises `StorageFull`."""
        VectorLog(folder / LOG).create()

    def __len__(self) -> int:
        """How many items there are now."""
        with self._guard:
            self._catch_up()
            return len(self._row_of)

    def add(self, items: Sequence[NewItem]) -> list[int]:
        """All of them or none; returns their numbers. Raises `InvalidInput`, `StorageFull`."""
        vectors = self._normalised([item.vector for item in items])
        with self._guard, self._log.lock(exclusive=True):
            self._read()
            ids = list(range(self._next_id, self._next_id + len(items)))
            entries = [
                Entry(
                    number,
                    item.label,
                    item.metadata,
                    vector.astype("<f4").tobytes(),
                )
                for number, item, vector in zip(
                    ids, items, vectors, strict=True
                )
            ]
            self._log.append(Added(entries, self._next_id + len(items)))
            self._read()
        return ids

    def remove(self, *, id: int | None = None, label: str | None = None) -> int:
        """The item of a number, or all of a label; returns how many. Raises `NotFound`."""
        with self._guard, self._log.lock(exclusive=True):
            self._read()
            found = self._numbers_of(id, label)
            self._log.append(Removed(found))
            self._read()
            if self._rows - len(self._row_of) > max(WASTE, len(self._row_of)):
                self._rewrite()
        return len(found)

    def _numbers_of(self, id: int | None, label: str | None) -> list[int]:
        """The item of a number, or all of a label; raises `NotFound`."""
        if label is None:
            if id not in self._row_of:
                raise unknown("item", str(id), ())
            return [id]
        found = [
            n for n, row in self._row_of.items() if self._labels[row] == label
        ]
        if not found:
            raise unknown("label", label, self._counts())
        return found

    def search(self, vector: Sequence[float] | Floats, k: int) -> list[Hit]:
        """The `k` items nearest to a vector, the nearest first; raises `InvalidInput`."""
        query = self._normalised([vector])[0]
        with self._guard:
            self._catch_up()
            count = min(k, len(self._row_of))
            if not count:
                return []
            rows = (
                self._exact(query, count)
                if self._graph is None
                else self._approximate(query, count)
            )
            scores = self._vectors[rows] @ query
            order = np.argsort(-scores, kind="stable")
            return [self._hit(int(rows[at]), float(scores[at])) for at in order]

    def labels(self) -> dict[str, int]:
        """How many items each label has, by name."""
        with self._guard:
            self._catch_up()
            return self._counts()

    def items(
        self, label: str | None = None, offset: int = 0, limit: int = 1000
    ) -> list[Hit]:
        """Items in the order of their numbers, `score` 1."""
        with self._guard:
            self._catch_up()
            rows = (
                row
                for row in self._row_of.values()
                if label is None or self._labels[row] == label
            )
            return [
                self._hit(row, 1.0)
                for row in islice(rows, offset, offset + limit)
            ]

    def labelled(self) -> tuple[Floats, list[str]]:
        """The vectors of all items that have a label, float32 [items, dimensions], and their
        labels.
        """
        with self._guard:
            self._catch_up()
            rows = [row for row in self._row_of.values() if self._labels[row]]
            return self._vectors[rows], [self._labels[row] for row in rows]

    # ---- in memory

    def _reset(self) -> None:
        self._rows = 0
        self._next_id = 1
        self._vectors: Floats = np.zeros((0, self.dimensions), np.float32)
        self._ids: list[int] = []
        self._labels: list[str] = []
        self._metadata: list[str] = []
        self._alive: NDArray[np.bool_] = np.zeros(0, bool)
        self._row_of: dict[int, int] = {}
        self._graph: Any = None
        self._snapshot_rows = 0

    def _catch_up(self) -> None:
        """Read what other processes have written."""
        if self._log.changed():
            with self._log.lock(exclusive=False):
                self._read()

    def _read(self) -> None:
        before, removed_rows = self._rows, []
        try:
            for change in self._log.read():
                removed_rows += self._apply(change)
        except Replaced:
            self._reset()
            return self._read()
        except BaseException:
            self._log = VectorLog(
                self.folder / LOG
            )  # a change is applied completely or not at all
            self._reset()
            raise
        self._update_graph(before, removed_rows)
        return None

    def _apply(self, change: Change) -> list[int]:
        """Apply a change; returns the removed rows."""
        if isinstance(change, Removed):
            return self._apply_removal(change)
        self._append(change.items)
        self._next_id = change.next_id
        return []

    def _apply_removal(self, change: Removed) -> list[int]:
        rows = [
            self._row_of.pop(number)
            for number in change.ids
            if number in self._row_of
        ]
        self._alive[rows] = False
        return rows

    def _append(self, entries: Sequence[Entry]) -> None:
        """Items in new rows."""
        first = self._rows
        end = first + len(entries)
        self._reserve(end)
        for row, entry in enumerate(entries, first):
            self._vectors[row] = np.frombuffer(entry.vector, "<f4")
            self._ids.append(entry.id)
            self._labels.append(entry.label)
            self._metadata.append(entry.metadata)
            self._row_of[entry.id] = row
        self._alive[first:end] = True
        self._rows = end

    def _reserve(self, rows: int) -> None:
        """Room for so many rows, at least twice what there was."""
        present = len(self._vectors)
        if rows <= present:
            return
        more = max(rows, 2 * present, 256) - present
        self._vectors = np.concatenate(
            [self._vectors, np.zeros((more, self.dimensions), np.float32)]
        )
        self._alive = np.concatenate([self._alive, np.zeros(more, bool)])

    def _counts(self) -> dict[str, int]:
        return dict(
            sorted(
                Counter(
                    self._labels[row] for row in self._row_of.values()
                ).items()
            )
        )

    def _hit(self, row: int, score: float) -> Hit:
        return Hit(
            self._ids[row], self._labels[row], score, self._metadata[row]
        )

    def _exact(self, query: Floats, count: int) -> NDArray[np.intp]:
        scores = self._vectors[: self._rows] @ query
        scores[~self._alive[: self._rows]] = -np.inf
        return np.argpartition(-scores, count - 1)[:count]

    def _approximate(self, query: Floats, count: int) -> NDArray[np.intp]:
        found = self._graph.search(query, count)
        return np.asarray(found.keys, np.intp)

    def _normalised(
        self, vectors: Sequence[Sequence[float] | Floats]
    ) -> Floats:
        """Vectors of length 1, float32 [items, dimensions]; raises `InvalidInput`."""
        values = self._as_rows(vectors)
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(values, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise InvalidInput("a vector has finite numbers that are not all 0")
        return np.asarray(values / lengths, np.float32)

    def _as_rows(
        self, vectors: Sequence[Sequence[float] | Floats]
    ) -> NDArray[np.float64]:
        try:
            values = np.asarray(vectors, np.float64).reshape(len(vectors), -1)
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"vectors are lists of {self.dimensions} numbers each"
            ) from error
        if len(values) and values.shape[1] != self.dimensions:
            raise InvalidInput(
                f"the index holds vectors of {self.dimensions} numbers, not of {values.shape[1]}"
            )
        return values

    # ---- the graph

    def settle(self) -> None:
        """Wait until the graph is built, if it is being built: until then searches are exact."""
        with self._guard:
            self._catch_up()
        while (builder := self._builder) is not None:
            builder.join()

    def _update_graph(self, before: int, removed_rows: list[int]) -> None:
        """Update the graph with new rows; start building it when there are more than `EXACT`."""
        if self._graph is not None:
            self._extend(self._graph, before, removed_rows)
            self._save_snapshot(self._snapshot_rows // SNAPSHOT_SHARE)
        elif self._rows > EXACT and self._builder is None:
            self._builder = threading.Thread(
                target=self._build, name="index", daemon=True
            )
            self._builder.start()

    def _build(self) -> None:
        """Build the graph in the background: usearch releases the interpreter lock."""
        with self._guard:
            generation = self._log.generation
            rows = self._rows
            vectors = self._vectors
            alive = self._alive[:rows].copy()
        try:
            graph, loaded = _read_graph(
                self.folder / SNAPSHOT, generation, self.dimensions, rows
            )
            _add_to(graph, vectors, loaded + np.flatnonzero(alive[loaded:]))
        except BaseException:
            self._builder = None  # the next change tries again
            raise
        with self._guard:
            self._builder = None
            if self._log.generation == generation and self._rows >= rows:
                self._take_over(graph, rows, loaded)
            else:  # the log was rewritten meanwhile
                self._update_graph(self._rows, [])

    def _take_over(self, graph: Any, rows: int, loaded: int) -> None:
        """Search a graph that was built of the first rows, with what has changed since; `loaded`
        of them were in the snapshot.
        """
        dead = np.flatnonzero(~self._alive[:rows])
        removed = dead[graph.contains(dead)].tolist() if len(dead) else []
        self._extend(graph, rows, removed)
        self._graph = graph
        self._snapshot_rows = loaded
        self._save_snapshot(BATCH)

    def _extend(self, graph: Any, before: int, removed_rows: list[int]) -> None:
        fresh = before + np.flatnonzero(self._alive[before : self._rows])
        if len(fresh):
            graph.add(fresh, self._vectors[fresh])
        for row in removed_rows:
            if row < before:
                graph.remove(row)

    def _save_snapshot(self, growth: int) -> None:
        """Write a snapshot when more than `growth` rows were added since the last one."""
        if self._rows - self._snapshot_rows > growth:
            with suppress(
                OSError
            ):  # without it the next start is slower, nothing else
                _write_graph(
                    self.folder / SNAPSHOT,
                    self._graph,
                    self._log.generation,
                    self._rows,
                )
                self._snapshot_rows = self._rows

    def _rewrite(self) -> None:
        """Rewrite the log without removed items, under the exclusive lock."""
        entries = [
            self._entry(number, row) for number, row in self._row_of.items()
        ]
        parts = [
            entries[at : at + COPY] for at in range(0, len(entries), COPY)
        ] or [[]]
        self._log.create([Added(part, self._next_id) for part in parts])
        self._read()

    def _entry(self, number: int, row: int) -> Entry:
        vector = self._vectors[row].astype("<f4").tobytes()
        return Entry(number, self._labels[row], self._metadata[row], vector)


def _new_graph(dimensions: int) -> Any:
    from usearch.index import Index

    return Index(
        ndim=dimensions,
        metric="ip",
        dtype="f32",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
    )


def _add_to(graph: Any, vectors: Floats, rows: NDArray[np.intp]) -> None:
    """Add rows in parts, between which others get the interpreter."""
    for part in np.array_split(rows, len(rows) // BATCH + 1):
        graph.add(part, vectors[part])


def _write_graph(path: Path, graph: Any, generation: bytes, rows: int) -> None:
    """Write the graph of the first `rows` rows of a log with a checksum, atomically."""
    payload = bytes(graph.save())
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with draft.open("wb") as file:
            file.write(
                generation + rows.to_bytes(8, "little") + _checksum(payload)
            )
            file.write(payload)
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _checksum(payload: bytes | memoryview) -> bytes:
    return zlib.crc32(payload).to_bytes(4, "little")


def _read_graph(
    path: Path, generation: bytes, dimensions: int, limit: int
) -> tuple[Any, int]:
    """The graph of a valid snapshot of this log and its number of rows; else an empty graph and
    0.
    """
    graph = _new_graph(dimensions)
    with suppress(OSError, ValueError, RuntimeError):
        data = path.read_bytes()
        head = data[: HEADER + 12]
        payload = memoryview(data)[HEADER + 12 :]
        rows = int.from_bytes(head[HEADER : HEADER + 8], "little")
        sound = head[HEADER + 8 :] == _checksum(payload)
        if sound and head.startswith(generation) and rows <= limit:
            graph.load(bytes(payload))
            return graph, rows
    return _new_graph(dimensions), 0
