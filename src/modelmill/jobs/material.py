"""The data of a job: items of a data set by split, as the check sorted them."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from modelmill import __version__, plugins
from modelmill.data.base import SPLITS, Item, open_source
from modelmill.data.cache import Arrays as Cached
from modelmill.data.cache import Row, cached
from modelmill.data.check import Index
from modelmill.jobs.process import Events, Interrupted, Stop
from modelmill.tasks.base import Context, Task
from modelmill.types import Json


class Material:
    """A checked data set, read from its archive in the order of its index."""

    def __init__(self, dataset: Json) -> None:
        self.dataset = dataset
        self.index = Index.load(Path(dataset["index"]))
        self._splits = self.index.split_array()
        self._reader = plugins.load("data.formats", dataset["format"])

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
            label: int(count) for label, count in zip(self.labels, counts, strict=True)
        }

    def items(self, split: str) -> Iterator[Item]:
        """Sound items of a split, one at a time; `label` is the class's name."""
        wanted = self._splits == SPLITS.index(split)
        last = int(np.flatnonzero(wanted)[-1]) if wanted.any() else -1
        with open_source(Path(self.dataset["archive"]), self.dataset["name"]) as source:
            for row, item in enumerate(
                self._reader.read(source, self.dataset["options"])
            ):
                if row > last:
                    return
                if wanted[row]:
                    yield item

    def sample(self, split: str, most: int) -> list[Item]:
        """Items spread evenly over a split, always the same ones."""
        count = self.count(split)
        return self.rows(
            split, np.linspace(0, count - 1, min(most, count)).astype(int).tolist()
        )

    def rows(self, split: str, chosen: Sequence[int]) -> list[Item]:
        """Some items of a split, in the order asked for."""
        wanted = set(chosen)
        found = (
            {row: item for row, item in enumerate(self.items(split)) if row in wanted}
            if wanted
            else {}
        )
        return [found[row] for row in chosen]

    def decoded(
        self,
        split: str,
        task: Task,
        context: Context,
        folder: Path,
        events: Events,
        stop: Stop,
    ) -> Cached:
        """A split as arrays mapped from the cache, decoded on the first use of this
        preprocessing.
        """
        count = self.count(split)

        def build() -> Iterator[Row]:
            for item in self.items(split):
                if stop.asked:
                    raise Interrupted
                yield task.sample(item, context)

        key = self._key(split, task, context)
        return cached(
            folder, key, build, count, events.counter(f"decoding {split}", count)
        )

    def _key(self, split: str, task: Task, context: Context) -> str:
        """Everything that the decoded arrays depend on."""
        parts: list[Any] = [
            __version__,
            self.dataset["digest"],
            self.dataset["format"],
            self.dataset["options"],
            split,
        ]
        parts += [task.__name__, context.preprocessing, context.labels]  # type: ignore[attr-defined]
        digest = hashlib.sha256(msgspec.json.encode(parts))
        digest.update(self.index.split_codes)
        for path in sorted(context.folder.glob("tokenizer.json")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:32]
