"""The evaluation of a bundle, always through the served path: decode -> engine -> encode."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, cast

from modelmill import predictor
from modelmill.cluster.child import Report
from modelmill.data.base import Item
from modelmill.jobs.material import Material
from modelmill.jobs.process import Events, Interrupted, Stop, run, save_pictures
from modelmill.predictor import Predictor
from modelmill.tasks.base import SAMPLES, Arrays, Evaluation, Measured, Raw
from modelmill.tasks.evaluation.fonts import every_script
from modelmill.types import JobSpec, Json

BATCH = 64
PORTION_BYTES = 16 << 20
"""Decoded items that go through the engine together."""


def main(spec: bytes, report: Report) -> int:
    """Entry of the job process."""
    return run(spec, evaluate_version)


def evaluate_version(spec: JobSpec, events: Events, stop: Stop) -> Json:
    """Measure a version on a split; leaves pictures in the job's folder."""
    model = predictor.load(Path(spec.bundle), spec.threads)
    with Material(spec, events, stop, [spec.split]) as material:
        count = material.count(spec.split)
        events.stage(f"evaluating on {count} items of {spec.split}")
        found = evaluate(model, material, spec.split, events, stop, spec.threads)
    save_pictures(Path(spec.folder) / "pictures", found.pictures)
    return {"metrics": found.metrics, "split": spec.split}


def evaluate(
    model: Predictor,
    material: Material,
    split: str,
    events: Events,
    stop: Stop,
    threads: int,
) -> Evaluation:
    """Every item of a split through the served path; raises `InvalidInput` for one that can't be
    decoded.
    """
    with every_script():
        if hasattr(model.task, "questions"):
            return _evaluate_made(model, material, split, events, stop)
        if hasattr(model.task, "measure"):
            return _evaluate_texts(model, list(material.items(split)), events)
        return _evaluate_answers(model, material, split, events, stop, threads)


def _evaluate_texts(
    model: Predictor, items: Sequence[Item], events: Events
) -> Evaluation:
    """What the model makes of the items' texts, and some that it writes where it writes any."""
    events.stage("measuring what the model makes of them")
    measure = model.task.measure  # type: ignore[attr-defined]
    found = cast(Evaluation, measure(model.session.run, items, model.context))
    if hasattr(model.task, "written"):
        found.metrics[SAMPLES] = model.task.written(model.predict, items, model.context)
    return found


def _evaluate_answers(
    model: Predictor,
    material: Material,
    split: str,
    events: Events,
    stop: Stop,
    threads: int,
) -> Evaluation:
    """Every item's answer beside what is true of it."""
    labels = model.manifest.labels
    complete = model.task.complete(labels)
    tell = events.counter("evaluating", material.count(split))
    answers: list[Any] = []
    truths: list[Any] = []
    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(material.items(split)):
            if stop.asked:
                raise Interrupted
            decoded = list(
                pool.map(lambda item: model.decode(model.asked(item)), batch)
            )
            for part in _portions(decoded):
                answers += [
                    model.encode(arrays, complete) for arrays in model.run(part)
                ]
            truths += [model.task.truth(item) for item in batch]
            tell(len(truths))

    def show(rows: Sequence[int]) -> list[Raw]:
        return [item.data for item in material.rows(split, rows)]

    return model.task.evaluate(
        Measured(
            outputs=answers,
            truths=truths,
            labels=labels,
            show=show,
            context=model.context,
        )
    )


def _evaluate_made(
    model: Predictor, material: Material, split: str, events: Events, stop: Stop
) -> Evaluation:
    """What a model makes of questions of its own, compared with items of a split as a whole."""
    items = material.sample(split, model.task.EVALUATED)  # type: ignore[attr-defined]
    questions = model.task.questions(len(items))  # type: ignore[attr-defined]
    tell = events.counter("evaluating", len(questions))
    answers: list[Any] = []
    for number, (raw, parameters) in enumerate(questions):
        if stop.asked:
            raise Interrupted
        answers += model.predict([raw], parameters)
        tell(number + 1)

    return model.task.evaluate(
        Measured(
            outputs=answers,
            truths=[model.task.truth(item) for item in items],
            labels=model.manifest.labels,
            show=lambda rows: [items[row].data for row in rows],
            learn=lambda most: material.sample("train", most),
        )
    )


def _batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    while batch := list(islice(items, BATCH)):
        yield batch


def _portions(decoded: list[Arrays]) -> Iterator[list[Arrays]]:
    """So many items at a time that large ones do not fill the memory."""
    part, size = list[Arrays](), 0
    for arrays in decoded:
        size += sum(array.nbytes for array in arrays.values())
        if part and size > PORTION_BYTES:
            yield part
            part, size = [], sum(array.nbytes for array in arrays.values())
        part.append(arrays)
    yield part
