"""The evaluation of a bundle, always through the served path: decode -> engine -> encode."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from modelmill import predictor
from modelmill.data.base import Item
from modelmill.jobs.material import Material
from modelmill.jobs.process import Events, Interrupted, Stop, save_pictures
from modelmill.predictor import Predictor
from modelmill.tasks.base import Evaluation
from modelmill.tasks.evaluation.fonts import every_script
from modelmill.types import JobSpec, Json

T = TypeVar("T")


def evaluate_version(spec: JobSpec, events: Events, stop: Stop) -> Json:
    """Measure a version on a split; leaves pictures in the job's folder."""
    model = predictor.load(Path(spec.bundle), spec.threads)
    with Material(spec, events, stop, [spec.split]) as material:
        count = material.count(spec.split)
        events.stage(f"evaluating on {count} items of {spec.split}")
        found = evaluate(model, material, spec.split, events, stop)
    save_pictures(Path(spec.folder) / "pictures", found.pictures)
    return {"metrics": found.metrics, "split": spec.split}


def evaluate(
    model: Predictor, material: Material, split: str, events: Events, stop: Stop
) -> Evaluation:
    """A model on a split, as its task is measured; raises `InvalidInput` for an item that can't be
    decoded, `Interrupted` when the job was asked to stop.
    """
    with every_script():
        return model.task.evaluate(
            model, SplitItems(material, split, events, stop)
        )


class SplitItems:
    """The items of a split for an evaluation (`tasks.base.Items`)."""

    def __init__(
        self, material: Material, split: str, events: Events, stop: Stop
    ) -> None:
        self._material = material
        self._split = split
        self._events = events
        self._stop = stop

    def __len__(self) -> int:
        return self._material.count(self._split)

    def __iter__(self) -> Iterator[Item]:
        return self._watched(self._material.items(self._split), len(self))

    def rows(self, rows: Sequence[int]) -> list[Item]:
        """Some of them, in the order asked for."""
        return self._material.rows(self._split, rows)

    def sample(self, most: int) -> list[Item]:
        """At most so many of them, spread evenly."""
        return self._material.sample(self._split, most)

    def training(self, most: int) -> list[Item]:
        """At most so many training items, spread evenly."""
        return self._material.sample("train", most)

    def steps(self, parts: Sequence[T]) -> Iterator[T]:
        """Other parts of an evaluation, with their progress shown in the same way."""
        return self._watched(iter(parts), len(parts))

    def _watched(self, parts: Iterator[T], count: int) -> Iterator[T]:
        tell = self._events.counter("evaluating", count)
        for number, part in enumerate(parts, 1):
            if self._stop.requested:
                raise Interrupted
            yield part
            tell(number)
