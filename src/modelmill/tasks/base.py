"""The contracts of a task and of a recipe.

A task is a package `tasks/<name>/` whose module has the names of `Task`; a recipe is a module in its
`recipes/` with the names of `Recipe`. Importing either is cheap: libraries for training (torch, scikit-learn)
are imported inside the functions that need them, so that a gateway can list and check recipes without them.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple, Protocol, cast, get_args, get_origin

import msgspec
import numpy as np

from modelmill import plugins
from modelmill.data.base import Item
from modelmill.errors import InvalidInput, unknown_setting
from modelmill.types import Fraction, Json, Positive, Struct, TensorSpec

Arrays = dict[str, np.ndarray[Any, Any]]
NOTE = "note:"
MOST_EPOCHS = 10_000
TIME = re.compile(r"(\d{1,6}(?:\.\d{1,6})?) ?([smh])")
SECONDS = {"s": 1, "m": 60, "h": 3600}
Raw = bytes | str | np.ndarray[Any, Any]
"""What a task decodes: an encoded picture, a text, or pixels that a reader already had as an array."""


class Context(Struct, frozen=True, kw_only=True):
    """What decode and encode know of a model: its preprocessing, its labels and its bundle's folder."""

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


class Evaluation(Struct, frozen=True, kw_only=True):
    """What a task makes of outputs and truths: numbers, and pictures as PNG by file name."""

    metrics: Json
    pictures: dict[str, bytes]


def nothing(most: int) -> list[Item]:
    """Where there are no training items to learn from."""
    return []


class Measured(Struct, frozen=True, kw_only=True):
    """The items of an evaluation, in one order: complete outputs of `encode`, and the truths.

    `show` gives the raw inputs of some rows, for pictures; `learn` at most so many training items of the data set,
    for figures that are measured by a model of the data.
    """

    outputs: Sequence[Any]
    truths: Sequence[Any]
    labels: Sequence[str]
    show: Callable[[Sequence[int]], list[Raw]]
    context: Context | None = None
    learn: Callable[[int], list[Item]] = nothing


class Task(Protocol):
    """A kind of model, named as on the Hugging Face hub.

    `TARGETS` are the targets of data formats it can be trained on, `CLASSES` how many classes a data set needs at
    least, `METRIC` the figure that sums up an evaluation, `RECIPE` the default recipe, `SAMPLES` how many training
    items `prepare` wants to see. How its recipes are trained is said by the module `training` in its folder
    (`jobs.objective`). A task whose inputs have no fixed size may have `infer(run, arrays, context)`: how a batch goes
    through the engine's `run`, such as in tiles; where it runs the network differently from how callers see the model,
    `graph(context) -> (inputs, outputs)` is the network's own signature. One whose items are not what it is asked may
    have `asked(item, context)`: the raw input that is sent to measure an item by. One whose answers are not plain
    numbers and labels may have `alike(one, other, tolerance)`: whether two answers are the same but for rounding; and
    where an answer is `{"image": base64}`, or a list of pictures as base64, OUTPUT is "image", and protocols may send
    the picture itself. One whose answers name no class has `SPLIT = "classes"`: whole classes are held out to measure
    it, and it may be measured on classes that it was not trained on.

    One whose `training.deployed` gives several graphs by name (`Graph`; "" is the model itself) names the others in
    GRAPHS: they lie in folders of the bundle, and `infer` gets what runs each of them by its name.

    One whose `prepare` learns from more than the data of its items has `shown(item)`, what it is to see of them.

    One whose answers grow token by token has `GROWS = True`: its model runs in steps (`engines._steps`). It has
    `begin(name, data, context, parameters) -> Text`, `part(piece, at, context)`, what a step adds to an answer behind
    so many characters, and `grown(text, pieces, parameters, context)`, the whole answer.

    One that is measured by what the model makes of texts, not by its answers, has `measure(run, items, context) ->
    Evaluation` in the place of `evaluate`.

    One whose parameters say what is fed has `request(data, context, parameters)`, which is `decode` that reads them.

    A task that is not asked about its items, but makes new ones, has `ASKED`, the kind of what callers send (`seed`: a
    whole number as a text, or nothing), and `questions(items) -> list of (raw input, parameters)`, what an evaluation
    asks to compare with that many items, of which it takes at most `EVALUATED`. One request may then ask for several
    rows: its arrays have an axis of their own for them, which `infer` knows to take away.
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
        """Preprocessing completed from training samples; files it needs are written into `folder`."""

    def inputs(self, context: Context) -> list[TensorSpec]:
        """The signature of what `decode` makes, the batch axis first."""

    def outputs(self, context: Context) -> list[TensorSpec]:
        """The signature of what the network answers, the batch axis first."""

    def decode(self, data: Raw, context: Context) -> Arrays:
        """One raw input as named arrays without the batch axis; raises `InvalidInput`.

        Names that begin with `NOTE` do not go to the model: `encode` finds them beside the outputs.
        """

    def encode(self, arrays: Arrays, context: Context, parameters: Mapping[str, Any]) -> Any:
        """One answer, in the shape of the Hugging Face API, from arrays without the batch axis."""

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """One item as it is trained on: what `decode` makes (or a part of it), and its targets by name."""

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


class TrainSettings(Struct, frozen=True, kw_only=True):
    """How the training loop runs; every recipe has its own defaults."""

    epochs: Annotated[int, msgspec.Meta(ge=1, le=MOST_EPOCHS, description="passes over the training data")] = 10
    time: Annotated[
        str,
        msgspec.Meta(
            description="how long to train, such as 90s, 10m or 1h: the learning rate falls to its end, and epochs "
            "count only where they are set too; empty: by epochs"
        ),
    ] = ""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65_536, description="items per step")] = 64
    epoch_steps: Annotated[
        int, msgspec.Meta(ge=0, le=1_000_000, description="steps in an epoch; 0: one pass over the training data")
    ] = 0
    optimiser: Annotated[
        Literal["adam", "adamw", "adadelta", "sgd", "muon"],
        msgspec.Meta(description="update rule; muon: orthogonal momentum for convolutions, AdamW for the rest"),
    ] = "adam"
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=100, description="peak learning rate")] = 1e-3
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=10, description="decay of weight matrices")] = 0.0
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1, description="of sgd (Nesterov)")] = 0.9
    beta1: Annotated[float, msgspec.Meta(ge=0, lt=1, description="of adam and adamw: memory of the gradient")] = 0.9
    beta2: Annotated[float, msgspec.Meta(ge=0, lt=1, description="of adam and adamw: memory of its square")] = 0.999
    schedule: Annotated[Literal["cosine", "constant"], msgspec.Meta(description="learning rate after warm-up")] = (
        "cosine"
    )
    warmup: Annotated[float, msgspec.Meta(ge=0, le=1, description="share of all steps spent warming up")] = 0.05
    label_smoothing: Annotated[float, msgspec.Meta(ge=0, lt=1, description="of the cross-entropy")] = 0.0
    clip: Annotated[float, msgspec.Meta(ge=0, description="largest gradient norm; 0: no clipping")] = 0.0
    ema: Annotated[float, msgspec.Meta(ge=0, lt=1, description="decay of averaged weights; 0: no averaging")] = 0.0
    patience: Annotated[
        int, msgspec.Meta(ge=0, description="epochs without a better validation before stopping; 0: never")
    ] = 0
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], msgspec.Meta(description="auto: bf16 where the device has it")
    ] = "auto"
    freeze: Annotated[
        str,
        msgspec.Meta(
            description="parts of the network that stay as they are, separated by commas, such as encoder.embedding; "
            "inherited: all that was taken from the version it starts from"
        ),
    ] = ""
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31, description="of weights, order and augmentation")] = 0

    def __post_init__(self) -> None:
        """Raises `ValueError` for a time that is none."""
        if self.time and not (TIME.fullmatch(self.time) and self.seconds > 0):
            raise ValueError(f"setting time={self.time:.60}: write a number and s, m or h, such as 90s, 10m or 1h")

    @property
    def seconds(self) -> float:
        """The time budget in seconds; 0 where there is none."""
        found = TIME.fullmatch(self.time)
        return float(found[1]) * SECONDS[found[2]] if found else 0.0


class Recipe(Protocol):
    """A way to train a task: defaults, and either `network` (trained by the loop) or `fit` (trains itself).

    What is trained for and how is the task's `training`; a recipe that has one of its names overrides it.

    `Settings` are the network's own; `INPUT`, `TRAIN` and (optional) `AUGMENT` are instances that change the
    defaults of the task's preprocessing, the loop and the augmentation. All names share one flat space. A recipe
    with `fit(plan, signature, arrays, targets) -> (model, weights)` has no `TRAIN`: the loop is not for it.

    A recipe may have `fit_to(facts: Facts, plan: Plan) -> Iterator[Choice]`: what it chooses for a data set. It counts
    where the user left it open, is said in the job's log and is written into the lineage like any setting.
    """

    SUMMARY: str
    Settings: type[Struct]
    INPUT: Any
    TRAIN: TrainSettings

    def network(self, settings: Any, signature: Signature) -> Any:
        """A torch module: the inputs in their order, what `loss` and `deployed` expect out."""


class Facts(Struct, frozen=True, kw_only=True):
    """What a data set is like before it is trained on.

    `counts` has the items of each split, `classes` the training items of each class, `inputs` what the task's
    `look(samples)` says, where it has one (of pictures, `tasks._image.Look`). `base` is the task of the version that
    the training starts from, or "".
    """

    counts: dict[str, int]
    classes: dict[str, int]
    inputs: Any = None
    base: str = ""

    def epochs(self, usual: int, enough: int, least: int = 8) -> "Choice":
        """The `usual` passes over up to `enough` training items, and fewer over more, so that they take as long."""
        count = self.counts["train"]
        epochs = max(least, round(usual * min(1.0, enough / count)))
        return Choice(why=f"{count:,} items are seen {count * epochs:,} times in all", settings={"epochs": epochs})


class Choice(Struct, frozen=True, kw_only=True):
    """Settings that fit a data set better than the defaults, and why, as the beginning of a sentence."""

    why: str
    settings: Json


class Plan(Struct, frozen=True, kw_only=True):
    """All settings of one training, complete and valid."""

    network: Any
    input: Any
    train: TrainSettings | None = None
    augment: Any = None

    @property
    def seed(self) -> int:
        """Of everything random; a recipe that fits by itself has nothing random."""
        return self.train.seed if self.train else 0

    def flat(self) -> Json:
        """The settings as one flat dictionary, as `--set` takes them."""
        merged: Json = {}
        for section in self.sections().values():
            merged |= {name: value for name, value in msgspec.to_builtins(section).items() if name in names(section)}
        return merged

    def sections(self) -> dict[str, Struct]:
        """The parts that exist, by name."""
        parts = {"network": self.network, "input": self.input, "train": self.train, "augment": self.augment}
        return {name: part for name, part in parts.items() if part is not None}


def kind_of(task: Task) -> str:
    """The kind of what callers send: that of the items, but for tasks that make new ones."""
    return str(getattr(task, "ASKED", task.INPUT))


def task_named(name: str) -> Task:
    """The task; raises `NotFound` naming those that exist."""
    return cast(Task, plugins.load("tasks", name))


def split_by(task: Task) -> str:
    """What goes to a split as a whole where a data set declares none: `items` or `classes`."""
    return getattr(task, "SPLIT", "items")


def recipe_named(task: str, name: str) -> ModuleType:
    """The recipe of a task; an empty name takes the task's default one."""
    default = task_named(task).RECIPE
    return plugins.load(plugins.recipes_of(task), name or default)


def plan(recipe: ModuleType, overrides: Mapping[str, Any]) -> Plan:
    """The recipe's defaults with some settings overridden (values may be strings).

    Raises `InvalidInput` for a name that nothing reads (suggesting the near one) or a value out of range.
    """
    base = Plan(
        network=recipe.Settings(),
        train=getattr(recipe, "TRAIN", None),
        input=recipe.INPUT,
        augment=getattr(recipe, "AUGMENT", None),
    )
    sections = base.sections()
    home = {field: name for name, part in sections.items() for field in names(part)}
    for name in overrides:
        if name not in home:
            raise unknown_setting(name, home)
    changed = {
        section: _override(part, {k: v for k, v in overrides.items() if home[k] == section})
        for section, part in sections.items()
    }
    train = changed.get("train")
    if isinstance(train, TrainSettings) and train.time and "epochs" not in overrides:
        changed["train"] = msgspec.structs.replace(train, epochs=MOST_EPOCHS)  # the time alone decides
    return Plan(**cast(Any, changed))


def fitted(recipe: ModuleType, facts: Facts, given: Mapping[str, Any]) -> tuple[Plan, list[Choice]]:
    """The plan with what the recipe chooses for the data where nothing was `given`, and the choices that changed it."""
    chosen = plan(recipe, given)
    current, taken, told = chosen.flat(), dict[str, Any](), list[Choice]()
    for choice in recipe.fit_to(facts, chosen) if hasattr(recipe, "fit_to") else ():
        fixed = {*given, "epochs"} if given.get("time") else {*given}
        changes = {name: value for name, value in choice.settings.items() if name not in fixed}
        if changes := {name: value for name, value in changes.items() if value != current[name]}:
            taken |= changes
            told.append(Choice(why=choice.why, settings=changes))
    return plan(recipe, {**taken, **given}), told


def names(part: Struct) -> list[str]:
    """The settings of a section; what is always learnt from the data is none (`Meta(extra={"derived": True})`)."""
    return [field.name for field in msgspec.structs.fields(type(part)) if not any(map(_derived, _notes(field)))]


def _notes(field: msgspec.structs.FieldInfo) -> list[msgspec.Meta]:
    return [note for note in getattr(field.type, "__metadata__", ()) if isinstance(note, msgspec.Meta)]


def _choices(field: msgspec.structs.FieldInfo) -> list[str]:
    """The values of a field that takes only some."""
    kind = getattr(field.type, "__origin__", field.type)
    return [str(value) for value in get_args(kind)] if get_origin(kind) is Literal else []


def _derived(note: msgspec.Meta) -> bool:
    return bool((note.extra or {}).get("derived"))


def _override(part: Struct, values: Mapping[str, Any]) -> Struct:
    if not values:
        return part
    changed = {name: _convert(type(part), name, value) for name, value in values.items()}
    try:
        return msgspec.structs.replace(part, **changed)
    except ValueError as error:  # what a section says of values that do not go together
        raise InvalidInput(str(error)) from error


def _convert(kind: type[Struct], name: str, value: Any) -> Any:
    """One value as its field wants it; the message of a wrong one names it."""
    wanted = next(field for field in msgspec.structs.fields(kind) if field.name == name)
    if isinstance(value, str) and "tuple" in str(wanted.type):
        value = value.split(",")
    try:
        converted = msgspec.convert(value, wanted.type, strict=False)
    except msgspec.ValidationError as error:
        if choices := _choices(wanted):
            raise InvalidInput(f"setting {name}={value!s:.60}: choose one of {', '.join(choices)}") from error
        raise InvalidInput(f"setting {name}={value!s:.60}: {str(error)[0].lower()}{str(error)[1:]}") from error
    if isinstance(converted, float) and not math.isfinite(converted):
        raise InvalidInput(f"setting {name}={value!s:.60}: a finite number is wanted")
    return converted


def describe(part: Struct) -> Iterator[Json]:
    """The fields of a settings struct as rows for people: name, default, help."""
    for field in msgspec.structs.fields(type(part)):
        if field.name in names(part):
            notes = [note.description for note in _notes(field) if note.description]
            if choices := _choices(field):
                notes.append(f"one of {', '.join(choices)}")
            yield {"name": field.name, "default": getattr(part, field.name), "help": "; ".join(notes)}


__all__ = [
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
