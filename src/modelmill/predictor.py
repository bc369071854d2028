"""A loaded model, whole: decode -> stack -> run -> encode. Serving, evaluation and golden sets all
go this way.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from modelmill.bundle import digest_of, open_bundle
from modelmill.engines.base import (
    Engine,
    Session,
    Writer,
    engine_for,
    engine_named,
)
from modelmill.errors import BundleCorrupt, InvalidInput, MillError
from modelmill.streams import Piece, Text
from modelmill.tasks.base import (
    NOTE,
    Arrays,
    Context,
    Item,
    Raw,
    Run,
    StreamingTask,
    Task,
    task_named,
)
from modelmill.tasks.parameters import NoParameters
from modelmill.types import Manifest, Struct

GOLDEN = "golden.json"
SLOTS = 16
"""Texts that grow beside one another."""
BATCH = 64
PORTION_BYTES = 16 << 20
"""Items of an evaluation that are decoded together, and those that go through the engine
together.
"""
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
        self._usual = self._task.PARAMETERS() if self._task else NoParameters()
        self.context = self._context()
        self.grows = isinstance(self._task, StreamingTask)
        runtime = self._engine(engine)
        self.golden = runtime.place_of(folder, precision)
        arithmetic = "" if precision in runtime.VARIANTS else precision
        self.writer: Writer | None = None
        self.session = self._open_session(runtime, arithmetic)
        self.runs: dict[str, Run] = {
            "": self.session.run,
            **self._open_graphs(runtime, arithmetic),
        }
        self.tolerance = _tolerance(precision or runtime.PRECISIONS[0])

    def _context(self) -> Context:
        """What the task's steps know of the model."""
        shape = self._task.PREPROCESSING if self._task else dict
        return Context(
            preprocessing=msgspec.convert(self.manifest.preprocessing, shape),
            labels=self.manifest.labels,
            folder=self.folder,
        )

    def _engine(self, engine: str) -> Engine:
        """The engine that opens the bundle, the manifest's by default; raises `InvalidInput` for
        one that would run code that nobody trusts.
        """
        name = engine or self.manifest.engine
        if engine or self.grows:
            runtime = engine_for(name, self.folder, writes=self.grows)
        else:
            runtime = engine_named(name)
        if runtime.RUNS_CODE and not self.manifest.trusted:
            raise InvalidInput(
                f"the engine '{name}' may run code that is in "
                f"{' and '.join(runtime.READS)}: bring the model again with --trust (SDK and REST: "
                "trust) if you trust where it comes from"
            )
        return runtime

    def _open_session(self, runtime: Engine, arithmetic: str) -> Session:
        """The main network; where answers grow, it is a writer."""
        if self.grows:
            self.writer = runtime.writer(
                self.golden, self.threads, SLOTS, arithmetic
            )
            return self.writer
        return runtime.open(
            self.golden,
            self.threads,
            precision=arithmetic,
            signature=(self.manifest.inputs, self.manifest.outputs),
        )

    def _open_graphs(self, runtime: Engine, arithmetic: str) -> dict[str, Run]:
        """The other networks of the task, by name."""
        graphs = self._task.GRAPHS if self._task else ()
        return {
            name: runtime.open(
                self.golden / name, self.threads, precision=arithmetic
            ).run
            for name in graphs
        }

    @property
    def task(self) -> Task:
        """The task; raises `InvalidInput` for a model that has none."""
        if self._task is None:
            raise InvalidInput(
                "the model has no task: it takes tensors, as the Open Inference Protocol sends them"
            )
        return self._task

    @property
    def streaming(self) -> StreamingTask:
        """The task, whose answers are written token by token."""
        assert isinstance(self._task, StreamingTask)
        return self._task

    def parameters(self, given: Mapping[str, Any] | None) -> Struct:
        """The parameters of a call, checked; raises `InvalidInput` naming what is wrong."""
        return self.task.parameters(given) if given else self._usual

    def decode(self, data: Raw, parameters: Struct | None = None) -> Arrays:
        """One raw input as arrays without the batch axis; raises `InvalidInput`."""
        return self.task.decode(data, self.context, parameters or self._usual)

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
        notes = {
            name: array
            for name, array in batch.items()
            if name.startswith(NOTE)
        }
        inputs = (
            {name: array for name, array in batch.items() if name not in notes}
            if notes
            else batch
        )
        outputs = (
            self._task.infer(self.runs, inputs, self.context)
            if self._task
            else self.runs[""](inputs)
        )
        return {**outputs, **notes} if notes else outputs

    def encode(self, arrays: Arrays, parameters: Struct | None = None) -> Any:
        """One answer as plain data."""
        return self.task.encode(arrays, self.context, parameters or self._usual)

    def begin(self, name: Any, data: Raw, parameters: Struct) -> Text:
        """A text that is to grow; raises `InvalidInput`."""
        return self.streaming.begin(name, data, self.context, parameters)

    def pieces(self, texts: Sequence[Text]) -> dict[Any, list[Piece]]:
        """All that texts grow by, beside one another, by their names; raises `InvalidInput` for a
        model whose answers do not grow.
        """
        if self.writer is None:
            raise InvalidInput(
                "the answers of this model do not grow token by token"
            )
        found: dict[Any, list[Piece]] = {}
        try:
            for text in texts:
                self.writer.add(text)
            while self.writer.busy:
                for piece in self.writer.tick():
                    found.setdefault(piece.name, []).append(piece)
        except (
            BaseException
        ):  # what failed is not to go on beside the next ones
            self.writer.cancel({text.name for text in texts})
            raise
        return found

    def _grow(self, inputs: Sequence[Raw], parameters: Struct) -> list[Any]:
        """Texts beside one another, to their ends."""
        texts = [
            self.begin(number, raw, parameters)
            for number, raw in enumerate(inputs)
        ]
        pieces = self.pieces(texts)
        return [
            self.streaming.stream_answer(
                text, pieces[number], parameters, self.context
            )
            for number, text in enumerate(texts)
        ]

    def predict(
        self, inputs: Sequence[Raw], parameters: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Raw inputs to answers, one batch."""
        checked = self.parameters(parameters)
        if self.grows:
            return self._grow(inputs, checked)
        return [
            self.encode(arrays, checked)
            for arrays in self.run(
                [self.decode(raw, checked) for raw in inputs]
            )
        ]

    def answers(
        self, items: Iterator[Item], parameters: Struct
    ) -> Iterator[tuple[Item, Any]]:
        """Every item with the answer to what it is measured by; decoding runs in threads.

        Raises `InvalidInput` for an item that can't be decoded.
        """

        def decoded(item: Item) -> Arrays:
            raw = self.task.measured_by(item, self.context)
            return self.decode(raw, parameters)

        with ThreadPoolExecutor(self.threads) as pool:
            while batch := list(islice(items, BATCH)):
                rows = iter(batch)
                for portion in _portions(list(pool.map(decoded, batch))):
                    for arrays in self.run(portion):
                        yield next(rows), self.encode(arrays, parameters)

    def check_golden(self) -> None:
        """Replay the golden set, of a variant its own; raises `BundleCorrupt` when an answer
        differs from the recorded one.

        A model without a task has none: its digests alone say that it is the one that was brought.
        """
        if self._task is None:
            return
        for number, case in enumerate(read_golden(self.golden)):
            answer = self._replay(number, case)
            if not self._task.same_answer(
                answer, case["output"], self.tolerance
            ):
                raise BundleCorrupt(
                    f"golden input {number} is answered {json.dumps(answer)[:120]}, "
                    f"recorded was {json.dumps(case['output'])[:120]}"
                )

    def _replay(self, number: int, case: Mapping[str, Any]) -> Any:
        try:
            return self.predict([case["input"]])[0]
        except MillError as error:
            raise BundleCorrupt(
                f"golden input {number} is no longer accepted: {error}"
            ) from error


def _tolerance(precision: str) -> float:
    """That of a precision; an engine of another package may offer one that is not known here."""
    return TOLERANCE.get(precision, max(TOLERANCE.values()))


def _portions(decoded: list[Arrays]) -> Iterator[list[Arrays]]:
    """So many items at a time that large ones do not fill the memory."""
    portion = list[Arrays]()
    size = 0
    for arrays in decoded:
        bytes_of = sum(array.nbytes for array in arrays.values())
        if portion and size + bytes_of > PORTION_BYTES:
            yield portion
            portion = []
            size = 0
        size += bytes_of
        portion.append(arrays)
    yield portion


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
    predictor = Predictor(
        folder, open_bundle(folder), threads, engine, precision
    )
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
        json.dumps(cases, ensure_ascii=False, indent=1).encode(
            "utf-8", "replace"
        )
    )


def read_golden(folder: Path) -> list[dict[str, Any]]:
    """The recorded cases; raises `BundleCorrupt` when there are none."""
    try:
        cases = json.loads((folder / GOLDEN).read_text("utf-8"))
        if not cases:
            raise BundleCorrupt(f"the golden set of {folder} is empty")
        return [
            {"input": _raw(case), "output": case["output"]} for case in cases
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleCorrupt(
            f"the golden set of {folder} can't be read: {error}"
        ) from error


def _raw(case: dict[str, Any]) -> bytes | str:
    """The input of a recorded case: a text, or bytes as base64."""
    return case["input"] if "input" in case else b64decode(case["base64"])
