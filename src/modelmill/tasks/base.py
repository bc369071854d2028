"""The contracts of a task and of a recipe.

A task is a package `tasks/<name>/` whose module has a `TASK`, an object of a subclass of `Task`; a
recipe is a module in its `recipes/` with the names of `Recipe`. Importing either is cheap:
libraries for training (torch, scikit-learn) are imported inside the functions that need them, so
that a gateway can list and check recipes without them.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from modelmill import plugins
from modelmill.data.base import Item
from modelmill.errors import InvalidInput
from modelmill.streams import Piece, Text
from modelmill.tasks.kinds import TENSOR, input_kind
from modelmill.tasks.kinds.base import Value
from modelmill.tasks.parameters import NoParameters, checked
from modelmill.tasks.training_settings import (
    MOST_EPOCHS,
    Choice,
    Facts,
    Plan,
    TrainSettings,
    describe,
    fitted,
    names,
    plan,
)
from modelmill.types import (
    Fraction,
    Json,
    Manifest,
    Positive,
    StreamPart,
    Struct,
    TensorSpec,
    Usage,
)

T = TypeVar("T")
Arrays = dict[str, np.ndarray[Any, Any]]
NOTE = "note:"
Raw = bytes | str | np.ndarray[Any, Any] | Value
"""What a task decodes: an encoded picture, a text, a value such as a conversation, or pixels that a
reader already had as an array.
"""


class Context(Struct, frozen=True, kw_only=True):
    """What decode and encode know of a model: its preprocessing, its labels and its bundle's
    folder.
    """

    preprocessing: Any
    labels: list[str]
    folder: Path


class Signature(Struct, frozen=True, kw_only=True):
    """What a recipe builds a network for: shapes without the batch axis."""

    inputs: list[TensorSpec]
    classes: int
    preprocessing: Any


class Graph(NamedTuple):
    """A network, or a part of it, as it becomes a graph of its own."""

    network: Any
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


SAMPLES = "samples"


class Evaluation(Struct, frozen=True, kw_only=True):
    """What a task makes of outputs and truths: numbers, and pictures as PNG by file name.

    `samples` among the metrics are texts to read, rows of one form.
    """

    metrics: Json
    pictures: dict[str, bytes]


def nothing(most: int) -> list[Item]:
    """Where there are no training items to learn from."""
    return []


class Measured(Struct, frozen=True, kw_only=True):
    """The items of an evaluation, in one order: complete outputs of `encode`, and the truths.

    `show` gives the raw inputs of some rows, for pictures; `learn` at most so many training items
    of the data set, for figures that are measured by a model of the data.
    """

    outputs: Sequence[Any]
    truths: Sequence[Any]
    labels: Sequence[str]
    show: Callable[[Sequence[int]], list[Raw]]
    context: Context | None = None
    learn: Callable[[int], list[Item]] = nothing


Run = Callable[[Arrays], Arrays]
"""A graph run by an engine: named arrays with the batch axis first, in and out."""


class Model(Protocol):
    """A loaded model as an evaluation uses it (`predictor.Predictor`)."""

    context: Context

    @property
    def runs(self) -> Mapping[str, Run]:
        """The graphs of the model by name; "" is the model itself."""

    def predict(
        self, inputs: Sequence[Raw], parameters: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Answers to raw inputs."""

    def answers(
        self, items: Iterator[Item], parameters: Struct
    ) -> Iterator[tuple[Item, Any]]:
        """Every item with the answer to what it is measured by, many at a time."""


class Items(Protocol):
    """The items of a split that a model is measured on.

    Iterating shows the progress of the job, and ends it when it was asked to stop.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...

    def rows(self, rows: Sequence[int]) -> list[Item]:
        """Some of them, in the order asked for."""

    def sample(self, most: int) -> list[Item]:
        """At most so many of them, spread evenly."""

    def training(self, most: int) -> list[Item]:
        """At most so many training items of the same data set, spread evenly."""

    def steps(self, parts: Sequence[T]) -> Iterator[T]:
        """Other parts of an evaluation, with their progress shown in the same way."""


class Task(ABC):
    """A kind of model, named as on the Hugging Face hub.

    A subclass says what its data and its answers are, and gets everything else: training, serving
    over every protocol, evaluation, golden sets. How its recipes are trained is said by the module
    `training` in its folder (`jobs.objective`). Data go `decode` -> engine -> `encode`; the arrays
    between them are named as in `inputs` and `outputs`.
    """

    SUMMARY: ClassVar[str]
    """What it does, as a line for people."""
    INPUT: ClassVar[str]
    """The kind of the items of its data sets (a module of `kinds`)."""
    TARGETS: ClassVar[tuple[str, ...]]
    """The targets of data formats it can be trained on."""
    CLASSES: ClassVar[int]
    """How many classes a data set needs at least."""
    METRIC: ClassVar[str]
    """The figure that sums up an evaluation."""
    RECIPE: ClassVar[str]
    """The default recipe."""
    SAMPLES: ClassVar[int]
    """How many training items `prepare` sees at most."""
    PREPROCESSING: ClassVar[type[Struct]]
    """Settings of `decode`; travel in the manifest."""
    PARAMETERS: ClassVar[type[Struct]] = NoParameters
    """What a caller may choose with a call."""

    TAKES: ClassVar[str] = ""
    """The kind of what callers send, where it is not that of the items."""
    ALSO_TAKES: ClassVar[tuple[str, ...]] = ()
    """Further kinds that callers may send; they say which it is. `decode` (and `begin`) are given
    what the kind's `read` makes of it.
    """
    GIVES: ClassVar[str] = "json"
    """The kind of an answer (a module of `kinds`). "image": `{"image": base64}`, or a list of
    pictures as base64, which protocols may send as pictures.
    """
    SPLIT: ClassVar[Literal["items", "classes"]] = "items"
    """What goes to a split as a whole where a data set declares none. "classes" is for answers that
    name no class: whole classes are held out, and other classes may be measured than were trained
    on.
    """
    GRAPHS: ClassVar[tuple[str, ...]] = ()
    """The names of further graphs in the bundle, each in its folder; `training.deployed` gives them
    by name, "" is the model itself.
    """

    @property
    def name(self) -> str:
        """The name that people type: that of its package."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @property
    def takes(self) -> str:
        """The kind of what callers send."""
        return self.TAKES or self.INPUT

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds that callers may send, the usual one first."""
        return (self.takes, *self.ALSO_TAKES)

    def read(self, data: bytes, kind: str = "") -> Raw:
        """What is decoded of an input as it was sent: one of the kind that the task takes, or of
        one that it also takes. Raises `InvalidInput`, also for another kind.
        """
        if kind and kind not in self.kinds:
            taken = (input_kind(one).article for one in self.kinds)
            raise InvalidInput(
                f"this model takes {' or '.join(taken)}, not {input_kind(kind).article}"
            )
        return input_kind(kind or self.takes).read(data)

    @property
    def streams(self) -> bool:
        """Whether answers are written token by token."""
        return isinstance(self, StreamingTask)

    def training(self) -> ModuleType:
        """How its recipes are trained; imports torch."""
        return importlib.import_module(f"{type(self).__module__}.training")

    # ---- data

    @abstractmethod
    def fingerprint(self, data: Raw) -> str:
        """The sha256 of the decoded content; raises `InvalidInput` when it can't be decoded."""

    def group_key(self, data: Raw) -> str | None:
        """A sha256 that is the same for items which belong together: those stay in one split."""
        return None

    def prepare_sample(self, item: Item) -> Any:
        """What `prepare` sees of a training item."""
        return item.data

    @abstractmethod
    def prepare(
        self, samples: Sequence[Any], preprocessing: Any, folder: Path
    ) -> Any:
        """Preprocessing completed from training samples; files it needs are written into
        `folder`.
        """

    def describe_inputs(self, samples: Sequence[Any]) -> Any:
        """What the samples are like, as `Facts.inputs` for a recipe's `fit_to`."""
        return None

    @abstractmethod
    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """One item as it is trained on: what `decode` makes (or a part of it), and its targets by
        name.
        """

    # ---- the network

    @abstractmethod
    def inputs(self, context: Context) -> list[TensorSpec]:
        """The signature of what `decode` makes, the batch axis first."""

    @abstractmethod
    def outputs(self, context: Context) -> list[TensorSpec]:
        """The signature of what the network answers, the batch axis first."""

    def graph(
        self, context: Context
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """The network's own inputs and outputs, where `infer` runs it differently from how callers
        see the model.
        """
        return self.inputs(context), self.outputs(context)

    # ---- an answer

    def parameters(self, given: Mapping[str, Any]) -> Any:
        """The parameters of a call as `PARAMETERS`; raises `InvalidInput` naming what is wrong."""
        return checked(self.PARAMETERS, given)

    @abstractmethod
    def decode(
        self, data: Raw, context: Context, parameters: Any = None
    ) -> Arrays:
        """One raw input as named arrays without the batch axis; raises `InvalidInput`.

        Names that begin with `NOTE` do not go to the model: `encode` finds them beside the outputs.
        """

    def infer(
        self, runs: Mapping[str, Run], arrays: Arrays, context: Context
    ) -> Arrays:
        """A batch through the engine; a task whose inputs have no fixed size may run it in tiles or
        in steps.
        """
        return runs[""](arrays)

    @abstractmethod
    def encode(self, arrays: Arrays, context: Context, parameters: Any) -> Any:
        """One answer, in the shape of the Hugging Face API, from arrays without the batch axis."""

    def usage(self, inputs: Arrays, outputs: Arrays, context: Context) -> Usage:
        """What an answered call used, by unit, beside its time: from what `decode` and `infer`
        made, the batch axis first.
        """
        return {}

    def same_answer(self, one: Any, other: Any, tolerance: float) -> bool:
        """Whether two answers to one input are the same but for rounding."""
        return same_numbers(one, other, tolerance)

    # ---- evaluation

    @abstractmethod
    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """Metrics (with the number of `items`) and pictures of a model on a split."""

    def measured_by(self, item: Item, context: Context) -> Raw:
        """The raw input that is sent to measure a model by an item."""
        return item.data

    @abstractmethod
    def expected(self, item: Item) -> Any:
        """What an item's answer is compared with."""

    def full_parameters(self, labels: Sequence[str]) -> Any:
        """The parameters with which `encode` leaves nothing out."""
        return self.PARAMETERS()

    def measured(self, model: Model, items: Items) -> "Measured":
        """The model's answer to each item, beside what is expected."""
        labels = model.context.labels
        outputs = list[Any]()
        truths = list[Any]()
        for item, answer in model.answers(
            iter(items), self.full_parameters(labels)
        ):
            outputs.append(answer)
            truths.append(self.expected(item))
        return Measured(
            outputs=outputs,
            truths=truths,
            labels=labels,
            show=lambda rows: [item.data for item in items.rows(rows)],
            context=model.context,
        )

    # ---- examples

    @abstractmethod
    def as_sent(self, data: Raw) -> bytes | str:
        """An item of a data set as a caller would send it."""

    def example(self) -> Raw:
        """A valid input, for tests and documentation: that of the kind, as a rule."""
        return input_kind(self.takes).sample()


class StreamingTask(Task):
    """A task whose answers are written token by token; its model is a writer
    (`engines.base`).
    """

    @abstractmethod
    def begin(
        self, name: Any, data: Raw, context: Context, parameters: Any
    ) -> Text:
        """A text for the generator, `name`d for its pieces; raises `InvalidInput`."""

    @abstractmethod
    def stream_part(
        self, piece: Piece, at: int, context: Context
    ) -> StreamPart:
        """What a step adds to an answer after `at` characters."""

    @abstractmethod
    def stream_answer(
        self,
        text: Text,
        pieces: Sequence[Piece],
        parameters: Any,
        context: Context,
    ) -> Any:
        """The whole answer, from all pieces of a text."""


class GeneratingTask(Task):
    """A task that is not asked about its items, but makes new ones.

    One request may ask for several rows: its arrays have an axis of their own for them, which
    `infer` knows to take away.
    """

    EVALUATED: ClassVar[int]
    """How many new items are made at most to be compared with those of a split."""

    @abstractmethod
    def questions(self, count: int) -> list[tuple[Raw, Json]]:
        """Raw inputs and parameters that ask for so many new items."""

    def measured(self, model: Model, items: Items) -> "Measured":
        """New items, to be compared as a whole with as many of the split."""
        real = items.sample(self.EVALUATED)
        outputs = list[Any]()
        for raw, parameters in items.steps(self.questions(len(real))):
            outputs += model.predict([raw], parameters)
        return Measured(
            outputs=outputs,
            truths=[self.expected(item) for item in real],
            labels=model.context.labels,
            show=lambda rows: [real[row].data for row in rows],
            learn=items.training,
        )


def same_numbers(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two answers of numbers and labels are the same but for rounding; ranked lists may
    swap near-equal scores.
    """
    if isinstance(one, float | int) and isinstance(other, float | int):
        return abs(one - other) <= tolerance * max(1.0, abs(one), abs(other))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and _same_lists(one, other, tolerance)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            same_numbers(one[key], other[key], tolerance) for key in one
        )
    return bool(one == other)


def _same_lists(one: list[Any], other: list[Any], tolerance: float) -> bool:
    """Of lists of one length, ranked ones or others."""
    if all(map(_is_ranked, [*one, *other])):
        return _same_ranking(one, other, tolerance)
    return all(
        same_numbers(a, b, tolerance) for a, b in zip(one, other, strict=True)
    )


def _is_ranked(entry: Any) -> bool:
    """Whether an entry of a list is a label with its score."""
    return isinstance(entry, dict) and {"label", "score"} <= entry.keys()


def _same_ranking(one: list[Json], other: list[Json], tolerance: float) -> bool:
    """Whether the scores agree rank by rank, and label by label; a label that only one list has is
    taken for the last of the other.
    """
    pairs = zip(one, other, strict=True)
    if not all(
        same_numbers(a["score"], b["score"], tolerance) for a, b in pairs
    ):
        return False
    scores = {entry["label"]: entry["score"] for entry in other}
    least = min((entry["score"] for entry in other), default=0.0)
    return all(
        same_numbers(
            entry["score"], scores.get(entry["label"], least), tolerance
        )
        for entry in one
    )


class Recipe(Protocol):
    """A way to train a task: defaults, and either `network` (trained by the loop) or `fit` (trains
    itself).

    What is trained for and how is the task's `training`; a recipe that has one of its names
    overrides it.

    `Settings` are the network's own; `INPUT`, `TRAIN` and (optional) `AUGMENT` are instances that
    change the defaults of the task's preprocessing, the loop and the augmentation. All names share
    one flat space. A recipe with `fit(plan, signature, arrays, targets) -> (model, weights)` has no
    `TRAIN`: the loop is not for it.

    A recipe may have `fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]`: what it chooses for a
    data set. It counts where the user left it open, is said in the job's log and is written into
    the lineage like any setting.
    """

    SUMMARY: str
    Settings: type[Struct]
    INPUT: Any
    TRAIN: TrainSettings

    def network(self, settings: Any, signature: Signature) -> Any:
        """A torch module: the inputs in their order, what `loss` and `deployed` expect out."""


def task_named(name: str) -> Task:
    """The task; raises `NotFound` naming those that exist, `InvalidInput` for a plugin that is no
    task.
    """
    task = getattr(plugins.load("tasks", name), "TASK", None)
    if not isinstance(task, Task):
        raise InvalidInput(
            f"the task '{name}' has no TASK: an object of a subclass of "
            "modelmill.tasks.base.Task"
        )
    return task


class Interface(NamedTuple):
    """What serving needs to know of a model."""

    takes: str
    also: Sequence[str]
    gives: str
    streams: bool


def interface_of(manifest: Manifest) -> Interface:
    """What a manifest says, and of a bundle of before what its task says; raises `NotFound` where
    that is not installed.
    """
    if not manifest.task:
        return Interface(TENSOR, (), "json", streams=False)
    if manifest.takes:
        also = _also_taken(manifest)
        return Interface(manifest.takes, also, manifest.gives, manifest.streams)
    task = task_named(manifest.task)
    return Interface(task.takes, task.ALSO_TAKES, task.GIVES, task.streams)


def _also_taken(manifest: Manifest) -> Sequence[str]:
    """Further kinds of input; where a manifest of before names none, those of the task."""
    if manifest.also_takes is not None:
        return manifest.also_takes
    known = manifest.task in plugins.names("tasks")
    return task_named(manifest.task).ALSO_TAKES if known else ()


ALSO = {
    "sentence-similarity": "feature-extraction",
    "sentiment-analysis": "text-classification",
}
"""Names of the Hugging Face hub that mean another task here: one model answers for both."""


def usual_name(task: str) -> str:
    """The name of a task that may be called otherwise, too."""
    return ALSO.get(task, task)


def recipe_named(task: str, name: str) -> ModuleType:
    """The recipe of a task; an empty name takes the task's default one."""
    default = task_named(task).RECIPE
    return plugins.load(plugins.recipes_of(task), name or default)


__all__ = [
    "MOST_EPOCHS",
    "Arrays",
    "Choice",
    "Context",
    "Evaluation",
    "Facts",
    "Fraction",
    "GeneratingTask",
    "Graph",
    "Item",
    "Items",
    "Measured",
    "Model",
    "Plan",
    "Positive",
    "Raw",
    "Recipe",
    "Run",
    "Signature",
    "StreamingTask",
    "Task",
    "TrainSettings",
    "describe",
    "fitted",
    "names",
    "plan",
    "recipe_named",
    "task_named",
]
