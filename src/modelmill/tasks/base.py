"""The contracts of a task and of a recipe.

A task is a package `tasks/<name>/` whose module has the names of `Task`; a recipe is a module in
its `recipes/` with the names of `Recipe`. Importing either is cheap: libraries for training (torch,
scikit-learn) are imported inside the functions that need them, so that a gateway can list and check
recipes without them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np

from modelmill import plugins
from modelmill.data.base import Item
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
from modelmill.types import Fraction, Json, Positive, Struct, TensorSpec

Arrays = dict[str, np.ndarray[Any, Any]]
NOTE = "note:"
Raw = bytes | str | np.ndarray[Any, Any]
"""What a task decodes: an encoded picture, a text, or pixels that a reader already had as an
array.
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


class Task(Protocol):
    """A kind of model, named as on the Hugging Face hub.

    `TARGETS` are the targets of data formats it can be trained on, `CLASSES` how many classes a
    data set needs at least, `METRIC` the figure that sums up an evaluation, `RECIPE` the default
    recipe, `SAMPLES` how many training items `prepare` wants to see. How its recipes are trained is
    said by the module `training` in its folder (`jobs.objective`). A task whose inputs have no
    fixed size may have `infer(run, arrays, context)`: how a batch goes through the engine's `run`,
    such as in tiles; where it runs the network differently from how callers see the model,
    `graph(context) -> (inputs, outputs)` is the network's own signature. One whose items are not
    what it is asked may have `asked(item, context)`: the raw input that is sent to measure an item
    by. One whose answers are not plain numbers and labels may have `alike(one, other, tolerance)`:
    whether two answers are the same but for rounding; and where an answer is `{"image": base64}`,
    or a list of pictures as base64, OUTPUT is "image", and protocols may send the picture itself.
    One whose answers name no class has `SPLIT = "classes"`: whole classes are held out to measure
    it, and it may be measured on classes that it was not trained on.

    One whose `training.deployed` gives several graphs by name (`Graph`; "" is the model itself)
    names the others in GRAPHS: they lie in folders of the bundle, and `infer` gets what runs each
    of them by its name.

    One whose `prepare` learns from more than the data of its items has `shown(item)`, what it is to
    see of them. One whose items belong together has `together(data)`, a sha256: those of which it
    is the same stay in one split.

    One whose answers grow token by token has `GROWS = True`: its model is a writer
    (`engines.base`). It has `begin(name, data, context, parameters) -> Text`, `part(piece, at,
    context)`, what a step adds to an answer behind so many characters, and `grown(text, pieces,
    parameters, context)`, the whole answer.

    One that is measured by what the model makes of texts, not by its answers, has `measure(run,
    items, context) -> Evaluation` in the place of `evaluate`, and `written(predict, items,
    context)`, samples, if it writes any.

    One whose parameters say what is fed has `request(data, context, parameters)`, which is `decode`
    that reads them.

    A task that is not asked about its items, but makes new ones, has `ASKED`, the kind of what
    callers send (`seed`: a whole number as a text, or nothing), and `questions(items) -> list of
    (raw input, parameters)`, what an evaluation asks to compare with that many items, of which it
    takes at most `EVALUATED`. One request may then ask for several rows: its arrays have an axis of
    their own for them, which `infer` knows to take away.
    """

    SUMMARY: str
    INPUT: Literal["image", "text", "audio", "question"]
    TARGETS: tuple[str, ...]
    CLASSES: int
    METRIC: str
    RECIPE: str
    SAMPLES: int
    Preprocessing: type[Struct]

    def fingerprint(self, data: Raw) -> str:
        """The sha256 of the decoded content; raises `InvalidInput` when it can't be decoded."""

    def prepare(self, samples: Sequence[Raw], preprocessing: Any, folder: Path) -> Any:
        """Preprocessing completed from training samples; files it needs are written into
        `folder`.
        """

    def inputs(self, context: Context) -> list[TensorSpec]:
        """The signature of what `decode` makes, the batch axis first."""

    def outputs(self, context: Context) -> list[TensorSpec]:
        """The signature of what the network answers, the batch axis first."""

    def decode(self, data: Raw, context: Context) -> Arrays:
        """One raw input as named arrays without the batch axis; raises `InvalidInput`.

        Names that begin with `NOTE` do not go to the model: `encode` finds them beside the outputs.
        """

    def encode(
        self, arrays: Arrays, context: Context, parameters: Mapping[str, Any]
    ) -> Any:
        """One answer, in the shape of the Hugging Face API, from arrays without the batch axis."""

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """One item as it is trained on: what `decode` makes (or a part of it), and its targets by
        name.
        """

    def truth(self, item: Item) -> Any:
        """What an item's answer is measured by."""

    def complete(self, labels: Sequence[str]) -> Json:
        """The parameters with which `encode` leaves nothing out."""

    def evaluate(self, measured: Measured) -> Evaluation:
        """Metrics (with the number of `items`) and pictures."""

    def as_sent(self, data: Raw) -> bytes | str:
        """An item of a data set as a caller would send it."""

    def example(self) -> Raw:
        """A valid input, for tests and documentation."""


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


def kind_of(task: Task) -> str:
    """The kind of what callers send: that of the items, but for tasks that make new ones."""
    return str(getattr(task, "ASKED", task.INPUT))


def task_named(name: str) -> Task:
    """The task; raises `NotFound` naming those that exist."""
    return cast(Task, plugins.load("tasks", name))


ALSO = {
    "sentence-similarity": "feature-extraction",
    "sentiment-analysis": "text-classification",
}
"""Names of the Hugging Face hub that mean another task here: one model answers for both."""


def usual_name(task: str) -> str:
    """The name of a task that may be called otherwise, too."""
    return ALSO.get(task, task)


def split_by(task: Task) -> str:
    """What goes to a split as a whole where a data set declares none: `items` or `classes`."""
    return getattr(task, "SPLIT", "items")


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
    "Graph",
    "Item",
    "Measured",
    "Plan",
    "Positive",
    "Raw",
    "Recipe",
    "Signature",
    "Task",
    "TrainSettings",
    "describe",
    "fitted",
    "kind_of",
    "names",
    "plan",
    "recipe_named",
    "split_by",
    "task_named",
]
