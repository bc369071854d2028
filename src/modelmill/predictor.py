"""A loaded model, whole: decode -> stack -> run -> encode. Serving, evaluation and golden sets all
go this way.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from modelmill.bundle import digest_of, open_bundle
from modelmill.engines.base import Session, Writer, engine_for, engine_named
from modelmill.errors import BundleCorrupt, InvalidInput, MillError
from modelmill.streams import Piece, Text
from modelmill.tasks.base import NOTE, Arrays, Context, Item, Raw, Task, task_named
from modelmill.types import Manifest

GOLDEN = "golden.json"
SLOTS = 16
"""Texts that grow beside one another."""
TOLERANCE = {"fp32": 2e-3, "bf16": 5e-2}
"""How far an answer may be from the recorded one, which an engine computed in fp32.

bfloat16 keeps 8 bits: every layer rounds by up to 0.4 %, so the logits of a deep network move by a
few hundredths, and a score near one half by about as much. A wrong label or wrong weights are
further off.
"""


class Predictor:
    """A bundle opened by its engine, with its task's decode and encode around it."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        threads: int = 1,
        engine: str = "",
        precision: str = "",
    ) -> None:
        self.manifest = manifest
        self.folder = folder
        self.threads = threads
        self._task = task_named(manifest.task) if manifest.task else None
        self._infer = getattr(self._task, "infer", None)
        self._request = getattr(self._task, "request", None)
        shape = self._task.Preprocessing if self._task else dict
        preprocessing = msgspec.convert(manifest.preprocessing, shape)
        self.context = Context(
            preprocessing=preprocessing, labels=manifest.labels, folder=folder
        )
        self.grows = bool(getattr(self._task, "GROWS", False))
        if engine or self.grows:
            runtime = engine_for(engine or manifest.engine, folder, writes=self.grows)
        else:
            runtime = engine_named(manifest.engine)
        if runtime.RUNS_CODE and not manifest.trusted:
            raise InvalidInput(
                f"the engine '{engine or manifest.engine}' may run code that is in "
                f"{' and '.join(runtime.READS)}: bring the model again with --trust (SDK and REST: "
                "trust) if you trust where it comes from"
            )
        place = runtime.place_of(folder, precision)
        arithmetic = "" if precision in runtime.VARIANTS else precision
        self.golden = place
        self.session: Session
        self.writer: Writer | None = None
        if self.grows:
            self.session = self.writer = runtime.writer(
                place, threads, SLOTS, arithmetic
            )
        else:
            signature = manifest.inputs, manifest.outputs
            self.session = runtime.open(
                place, threads, precision=arithmetic, signature=signature
            )
        further = {
            name: runtime.open(place / name, threads, precision=arithmetic).run
            for name in getattr(self._task, "GRAPHS", ())
        }
        self._runs: Any = (
            {"": self.session.run, **further} if further else self.session.run
        )
        # An engine of another package may offer a precision that is not known here.
        self.tolerance = TOLERANCE.get(
            precision or runtime.PRECISIONS[0], max(TOLERANCE.values())
        )

    @property
    def task(self) -> Task:
        """The task; raises `InvalidInput` for a model that has none."""
        if self._task is None:
            raise InvalidInput(
                "the model has no task: it takes tensors, as the Open Inference Protocol sends them"
            )
        return self._task

    def asked(self, item: Item) -> Raw:
        """What is sent to measure the model by an item of a data set."""
        asked = getattr(self._task, "asked", None)
        return item.data if asked is None else asked(item, self.context)

    def decode(self, data: Raw, parameters: Mapping[str, Any] | None = None) -> Arrays:
        """One raw input as arrays without the batch axis; raises `InvalidInput`."""
        if self._request is not None:  # the parameters are about what is fed
            return cast(Arrays, self._request(data, self.context, parameters or {}))
        return self.task.decode(data, self.context)

    def run(self, items: Sequence[Arrays]) -> list[Arrays]:
        """Decoded items through the engine, those of one shape as a batch, and apart again; raises
        `ModelFailed`.
        """
        groups: dict[Any, list[int]] = {}
        for row, item in enumerate(items):
            groups.setdefault(
                tuple((name, array.shape) for name, array in item.items()), []
            ).append(row)
        answers: dict[int, Arrays] = {}
        for rows in groups.values():
            results = self.infer(
                {
                    name: np.stack([items[row][name] for row in rows])
                    for name in items[rows[0]]
                }
            )
            answers |= {
                row: {name: array[at] for name, array in results.items()}
                for at, row in enumerate(rows)
            }
        return [answers[row] for row in range(len(items))]

    def infer(self, batch: Arrays) -> Arrays:
        """A batch through the engine, as the task wants it; its notes come back beside the
        outputs.
        """
        notes = {name: array for name, array in batch.items() if name.startswith(NOTE)}
        inputs = (
            {name: array for name, array in batch.items() if name not in notes}
            if notes
            else batch
        )
        outputs = (
            self._infer(self._runs, inputs, self.context)
            if self._infer
            else self.session.run(inputs)
        )
        return {**outputs, **notes} if notes else outputs

    def encode(
        self, arrays: Arrays, parameters: Mapping[str, Any] | None = None
    ) -> Any:
        """One answer as plain data."""
        return self.task.encode(arrays, self.context, parameters or {})

    def begin(self, name: Any, data: Raw, parameters: Mapping[str, Any]) -> Text:
        """A text that is to grow; raises `InvalidInput`."""
        return cast(Text, self.task.begin(name, data, self.context, parameters))  # type: ignore[attr-defined]

    def pieces(self, texts: Sequence[Text]) -> dict[Any, list[Piece]]:
        """All that texts grow by, beside one another, by their names; raises `InvalidInput` for a
        model whose answers do not grow.
        """
        if self.writer is None:
            raise InvalidInput("the answers of this model do not grow token by token")
        found: dict[Any, list[Piece]] = {}
        try:
            for text in texts:
                self.writer.add(text)
            while self.writer.busy:
                for piece in self.writer.tick():
                    found.setdefault(piece.name, []).append(piece)
        except BaseException:  # what failed is not to go on beside the next ones
            self.writer.cancel({text.name for text in texts})
            raise
        return found

    def _grow(self, inputs: Sequence[Raw], parameters: Mapping[str, Any]) -> list[Any]:
        """Texts beside one another, to their ends."""
        texts = [
            self.begin(number, raw, parameters) for number, raw in enumerate(inputs)
        ]
        pieces = self.pieces(texts)
        return [
            self.task.grown(text, pieces[number], parameters, self.context)  # type: ignore[attr-defined]
            for number, text in enumerate(texts)
        ]

    def predict(
        self, inputs: Sequence[Raw], parameters: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Raw inputs to answers, one batch."""
        if self.grows:
            return self._grow(inputs, parameters or {})
        return [
            self.encode(arrays, parameters)
            for arrays in self.run([self.decode(raw, parameters) for raw in inputs])
        ]

    def check_golden(self) -> None:
        """Replay the golden set, of a variant its own; raises `BundleCorrupt` when an answer
        differs from the recorded one.

        A model without a task has none: its digests alone say that it is the one that was brought.
        """
        if self._task is None:
            return
        same = getattr(self._task, "alike", alike)
        for number, case in enumerate(read_golden(self.golden)):
            try:
                answer = self.predict([case["input"]])[0]
            except MillError as error:
                raise BundleCorrupt(
                    f"golden input {number} is no longer accepted: {error}"
                ) from error
            if not same(answer, case["output"], self.tolerance):
                raise BundleCorrupt(
                    f"golden input {number} is answered {json.dumps(answer)[:120]}, "
                    f"recorded was {json.dumps(case['output'])[:120]}"
                )


def load(
    folder: Path,
    threads: int = 1,
    engine: str = "",
    precision: str = "",
    digest: str = "",
) -> Predictor:
    """Open a sealed bundle: digests verified, golden set replayed.

    `engine` and `precision` override the manifest's engine and its default precision. A `digest`
    is compared with the manifest's: files and manifest could have been replaced together. Raises
    `BundleCorrupt`, `NotFound` or `NotInstalled` for the engine, `InvalidInput` for the precision.
    """
    if digest and digest_of(folder) != digest:
        raise BundleCorrupt(
            f"the manifest of {folder} is not the one that was registered: import the "
            "model again, or bring the file back from a backup"
        )
    predictor = Predictor(folder, open_bundle(folder), threads, engine, precision)
    predictor.check_golden()
    return predictor


def write_golden(
    folder: Path, inputs: Sequence[bytes | str], outputs: Sequence[Any]
) -> None:
    """Record raw inputs and their answers in a bundle's draft."""
    cases = [
        {"input": raw, "output": out}
        if isinstance(raw, str)
        else {"base64": b64encode(raw).decode(), "output": out}
        for raw, out in zip(inputs, outputs, strict=True)
    ]
    # A lone surrogate is read as an unknown letter, and is written as one.
    (folder / GOLDEN).write_bytes(
        json.dumps(cases, ensure_ascii=False, indent=1).encode("utf-8", "replace")
    )


def read_golden(folder: Path) -> list[dict[str, Any]]:
    """The recorded cases; raises `BundleCorrupt` when there are none."""
    try:
        cases = json.loads((folder / GOLDEN).read_text("utf-8"))
        if not cases:
            raise BundleCorrupt(f"the golden set of {folder} is empty")
        return [
            {
                "input": case["input"]
                if "input" in case
                else b64decode(case["base64"]),
                "output": case["output"],
            }
            for case in cases
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleCorrupt(
            f"the golden set of {folder} can't be read: {error}"
        ) from error


def alike(one: Any, other: Any, tolerance: float = TOLERANCE["fp32"]) -> bool:
    """Whether two answers are the same but for rounding; ranked lists may swap near-equal
    scores.
    """
    if isinstance(one, float | int) and isinstance(other, float | int):
        return abs(one - other) <= tolerance * max(1.0, abs(one), abs(other))
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return False
        if all(
            isinstance(x, dict) and {"label", "score"} <= x.keys()
            for x in [*one, *other]
        ):
            return _alike_ranking(one, other, tolerance)
        return all(alike(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            alike(one[key], other[key], tolerance) for key in one
        )
    return bool(one == other)


def _alike_ranking(one: list[Any], other: list[Any], tolerance: float) -> bool:
    scores = {entry["label"]: entry["score"] for entry in other}
    least = min((entry["score"] for entry in other), default=0.0)
    ranks = all(
        alike(a["score"], b["score"], tolerance)
        for a, b in zip(one, other, strict=True)
    )
    return ranks and all(
        alike(entry["score"], scores.get(entry["label"], least), tolerance)
        for entry in one
    )
