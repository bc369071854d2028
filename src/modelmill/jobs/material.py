"""The data of a job: items of a data set by split, as the check sorted them."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelmill import __version__, plugins
from modelmill.data.base import SPLITS, Item, open_source
from modelmill.data.cache import Arrays as Cached
from modelmill.data.cache import Row, cached
from modelmill.data.check import STEP, Index
from modelmill.data.items import Items
from modelmill.errors import InvalidInput
from modelmill.jobs.process import Events, Interrupted, Stop
from modelmill.tasks.base import Context, Task
from modelmill.tasks.decoding.tokenizer import TOKENIZER
from modelmill.types import JobSpec


class Material:
    """A checked data set, read from its archive in the order of its index; a context manager.

    The archive is walked once, for all of `splits`, when the first item is asked for. A file of it
    that was read for a sample is not read again for the pass over its split that follows. Raises
    `Interrupted` where the job is asked to stop.
    """

    def __init__(
        self,
        spec: JobSpec,
        events: Events,
        stop: Stop,
        splits: Sequence[str] = SPLITS,
    ) -> None:
        self.dataset = spec.dataset
        self.index = Index.load(Path(spec.dataset["index"]))
        self._folder = Path(spec.folder)
        self._events = events
        self._stop = stop
        self._together = splits
        self._splits = self.index.split_array()
        self._reader = plugins.load("data.formats", spec.dataset["format"])
        self._found: dict[str, Items] = {}
        self._sampled: dict[int, Item] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the archive."""
        self._found.clear()
        self._sampled.clear()
        self._open.close()

    @property
    def labels(self) -> list[str]:
        """All classes, in order."""
        return self.index.labels

    def count(self, split: str) -> int:
        """Sound items of a split."""
        return int((self._splits == SPLITS.index(split)).sum())

    def classes(self, split: str) -> dict[str, int]:
        """Sound items of a split by class, in the order of the labels."""
        codes = self.index.label_array()[self._splits == SPLITS.index(split)]
        counts = np.bincount(codes[codes >= 0], minlength=len(self.labels))
        return {
            label: int(count)
            for label, count in zip(self.labels, counts, strict=True)
        }

    def items(self, split: str) -> Iterator[Item]:
        """Sound items of a split, one at a time; `label` is the class's name."""
        for row in self._rows(split).tolist():
            sampled = row in self._sampled
            yield self._sampled.pop(row) if sampled else self._read(split, row)

    def sample(self, split: str, most: int) -> list[Item]:
        """Items spread evenly over a split, always the same ones."""
        count = self.count(split)
        places = (
            np.linspace(0, count - 1, min(most, count)).astype(int).tolist()
        )
        found = self.rows(split, places)
        rows = self._rows(split)
        for place, item in zip(places, found, strict=True):
            if self._items(split).waits(int(rows[place])):
                self._sampled[int(rows[place])] = item
        return found

    def rows(self, split: str, chosen: Sequence[int]) -> list[Item]:
        """Some items of a split by their place in it, in the order asked for."""
        rows = (
            self._rows(split)[list(chosen)]
            if len(chosen)
            else np.array([], int)
        )
        return [
            self._sampled.get(row) or self._read(split, row)
            for row in rows.tolist()
        ]

    def decoded(
        self, split: str, task: Task, context: Context, folder: Path
    ) -> Cached:
        """A split as arrays mapped from the cache, decoded on the first use of this
        preprocessing.
        """
        count = self.count(split)

        def build() -> Iterator[Row]:
            for item in self.items(split):
                if self._stop.requested:
                    raise Interrupted
                yield task.sample(item, context)

        key = self._key(split, task, context)
        tell = self._events.counter(f"decoding {split}", count)
        arrays = cached(folder, key, build, count, tell)
        self._drop_samples(split)
        return arrays

    def _drop_samples(self, split: str) -> None:
        """Of a split that was decoded before nobody has read the samples again."""
        code = SPLITS.index(split)
        self._sampled = {
            row: item
            for row, item in self._sampled.items()
            if self._splits[row] != code
        }

    def _rows(self, split: str) -> NDArray[np.intp]:
        return np.flatnonzero(self._splits == SPLITS.index(split))

    def _read(self, split: str, row: int) -> Item:
        item = self._items(split)[row]
        if (
            item.problem
        ):  # the check has read it: the archive is not what it was
            raise InvalidInput(f"'{item.name}' can't be read: {item.problem}")
        return item

    def _items(self, split: str) -> Items:
        if split not in self._found:
            together = self._together if split in self._together else (split,)
            wanted = np.isin(
                self._splits, [SPLITS.index(one) for one in together]
            )
            found = Items(self._walk(wanted), wanted, self._folder)
            self._open.callback(found.close)
            self._found |= dict.fromkeys(together, found)
        return self._found[split]

    def _walk(self, wanted: NDArray[np.bool_]) -> Iterator[Item]:
        """What the reader finds in the archive, which stays open."""
        source = self._open.enter_context(
            open_source(Path(self.dataset["archive"]), self.dataset["name"])
        )
        total = int(np.flatnonzero(wanted)[-1]) + 1
        tell = self._events.counter("reading", total)
        for row, item in enumerate(
            self._reader.read(source, self.dataset["options"])
        ):
            if row % STEP == 0:
                tell(row)
                if self._stop.requested:
                    raise Interrupted
            yield item

    def _key(self, split: str, task: Task, context: Context) -> str:
        """Everything that the decoded arrays depend on."""
        parts: list[Any] = [
            __version__,
            self.dataset["digest"],
            self.dataset["format"],
            self.dataset["options"],
            split,
        ]
        parts += [task.name, context.preprocessing, context.labels]
        digest = hashlib.sha256(msgspec.json.encode(parts))
        digest.update(self.index.split_codes)
        for path in sorted(context.folder.glob(TOKENIZER)):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:32]
