"""The settings of a training: their fields, overrides, and choices that fit the data."""

import math
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import msgspec

from modelmill.errors import InvalidInput, unknown_setting
from modelmill.types import Json, Struct

MOST_EPOCHS = 10_000
TIME = re.compile(r"(\d{1,6}(?:\.\d{1,6})?) ?([smh])")
SECONDS = {"s": 1, "m": 60, "h": 3600}


class TrainSettings(Struct, frozen=True, kw_only=True):
    """Settings of the training loop; every recipe has its own defaults."""

    epochs: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=MOST_EPOCHS, description="passes over the training data"
        ),
    ] = 10
    time: Annotated[
        str,
        msgspec.Meta(
            description="how long to train, such as 90s, 10m or 1h: the learning rate falls to "
            "its end, and epochs "
            "count only where they are set too; empty: by epochs"
        ),
    ] = ""
    batch_size: Annotated[
        int, msgspec.Meta(ge=1, le=65_536, description="items per step")
    ] = 64
    epoch_steps: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=1_000_000,
            description="steps in an epoch; 0: one pass over the training data",
        ),
    ] = 0
    optimiser: Annotated[
        Literal["adam", "adamw", "adadelta", "sgd", "muon"],
        msgspec.Meta(
            description="update rule; muon: orthogonal momentum for convolutions, AdamW for the "
            "rest"
        ),
    ] = "adam"
    learning_rate: Annotated[
        float, msgspec.Meta(gt=0, le=100, description="peak learning rate")
    ] = 1e-3
    weight_decay: Annotated[
        float, msgspec.Meta(ge=0, le=10, description="decay of weight matrices")
    ] = 0.0
    momentum: Annotated[
        float, msgspec.Meta(ge=0, lt=1, description="of sgd (Nesterov)")
    ] = 0.9
    beta1: Annotated[
        float,
        msgspec.Meta(
            ge=0, lt=1, description="of adam and adamw: memory of the gradient"
        ),
    ] = 0.9
    beta2: Annotated[
        float,
        msgspec.Meta(
            ge=0, lt=1, description="of adam and adamw: memory of its square"
        ),
    ] = 0.999
    schedule: Annotated[
        Literal["cosine", "constant"],
        msgspec.Meta(description="learning rate after warm-up"),
    ] = "cosine"
    warmup: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=1, description="share of all steps spent warming up"
        ),
    ] = 0.05
    label_smoothing: Annotated[
        float, msgspec.Meta(ge=0, lt=1, description="of the cross-entropy")
    ] = 0.0
    clip: Annotated[
        float,
        msgspec.Meta(ge=0, description="largest gradient norm; 0: no clipping"),
    ] = 0.0
    ema: Annotated[
        float,
        msgspec.Meta(
            ge=0, lt=1, description="decay of averaged weights; 0: no averaging"
        ),
    ] = 0.0
    patience: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            description="epochs without a better validation before stopping; 0: never",
        ),
    ] = 0
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        msgspec.Meta(description="auto: bf16 where the device has it"),
    ] = "auto"
    freeze: Annotated[
        str,
        msgspec.Meta(
            description="parts of the network that stay as they are, separated by commas, such as "
            "encoder.embedding; "
            "inherited: all that was taken from the version it starts from"
        ),
    ] = ""
    seed: Annotated[
        int,
        msgspec.Meta(
            ge=0, le=2**31, description="of weights, order and augmentation"
        ),
    ] = 0

    def __post_init__(self) -> None:
        """Raises `ValueError` for a malformed time."""
        if self.time and not (TIME.fullmatch(self.time) and self.seconds > 0):
            raise ValueError(
                f"setting time={self.time:.60}: write a number and s, m or h, such as 90s, 10m or "
                "1h"
            )

    @property
    def seconds(self) -> float:
        """The time budget in seconds; 0 for none."""
        match = TIME.fullmatch(self.time)
        return float(match[1]) * SECONDS[match[2]] if match else 0.0


class Facts(Struct, frozen=True, kw_only=True):
    """Statistics of a data set, from which a recipe chooses settings.

    `counts` has the items of each split, `classes` the training items of each class, `inputs` what
    the task's `describe_inputs(samples)` says (of pictures, `image_decoder.Look`). `base` is
    the task of the version that the training starts from, or "".
    """

    counts: dict[str, int]
    classes: dict[str, int]
    inputs: Any = None
    base: str = ""

    def epochs(self, usual: int, enough: int, least: int = 8) -> "Choice":
        """The `usual` epochs for up to `enough` training items, fewer for more, so that training
        takes as long; at least `least`.
        """
        count = self.counts["train"]
        epochs = passes(count, usual, enough, least)
        return Choice(
            why=f"{count:,} items are seen {count * epochs:,} times in all",
            settings={"epochs": epochs},
        )


def passes(count: int, usual: int, enough: int, least: int) -> int:
    """`usual` epochs for a count of up to `enough`, proportionally fewer for more, at least
    `least`.
    """
    return max(least, round(usual * min(1.0, enough / max(1, count))))


class Choice(Struct, frozen=True, kw_only=True):
    """Settings that fit a data set better than the defaults, with the reason."""

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
        """The seed of everything random; 0 for a recipe without a training loop."""
        return self.train.seed if self.train else 0

    def flat(self) -> Json:
        """The settings as one flat dictionary, as `--set` takes them."""
        merged: Json = {}
        for section in self.sections().values():
            merged |= {
                name: value
                for name, value in msgspec.to_builtins(section).items()
                if name in names(section)
            }
        return merged

    def sections(self) -> dict[str, Struct]:
        """The parts that exist, by name."""
        parts = {
            "network": self.network,
            "input": self.input,
            "train": self.train,
            "augment": self.augment,
        }
        return {name: part for name, part in parts.items() if part is not None}


def plan(recipe: ModuleType, overrides: Mapping[str, Any]) -> Plan:
    """The recipe's defaults with some settings overridden (values may be strings).

    Raises `InvalidInput` for a name that nothing reads (suggesting the near one) or a value out of
    range.
    """
    sections = _defaults(recipe).sections()
    of_section = _by_section(sections, overrides)
    changed = {
        name: _override(part, of_section[name])
        for name, part in sections.items()
    }
    train = changed.get("train")
    if (
        isinstance(train, TrainSettings)
        and train.time
        and "epochs" not in overrides
    ):
        # The time alone ends the training.
        changed["train"] = msgspec.structs.replace(train, epochs=MOST_EPOCHS)
    return Plan(**cast(Any, changed))


def _defaults(recipe: ModuleType) -> Plan:
    return Plan(
        network=recipe.Settings(),
        train=getattr(recipe, "TRAIN", None),
        input=recipe.INPUT,
        augment=getattr(recipe, "AUGMENT", None),
    )


def _by_section(
    sections: Mapping[str, Struct], overrides: Mapping[str, Any]
) -> dict[str, Json]:
    """The overrides of each section; raises `InvalidInput` for a name that none has."""
    section_of = {
        field: name for name, part in sections.items() for field in names(part)
    }
    found: dict[str, Json] = {name: {} for name in sections}
    for name, value in overrides.items():
        if name not in section_of:
            raise unknown_setting(name, section_of)
        found[section_of[name]][name] = value
    return found


def fitted(
    recipe: ModuleType, facts: Facts, given: Mapping[str, Any]
) -> tuple[Plan, list[Choice]]:
    """The plan with the recipe's choices for the data, except for settings that were `given`, and
    the choices that changed it.
    """
    chosen = plan(recipe, given)
    current = chosen.flat()
    chosen_settings = dict[str, Any]()
    choices_made = list[Choice]()
    for choice in (
        recipe.fit_to(facts, chosen) if hasattr(recipe, "fit_to") else ()
    ):
        fixed = {*given, "epochs"} if given.get("time") else {*given}
        changes = {
            name: value
            for name, value in choice.settings.items()
            if name not in fixed and value != current[name]
        }
        if changes:
            chosen_settings |= changes
            choices_made.append(Choice(why=choice.why, settings=changes))
    return plan(recipe, {**chosen_settings, **given}), choices_made


def names(part: Struct) -> list[str]:
    """Names of the fields that a user may set; derived ones (`Meta(extra={"derived": True})`) are
    left out.
    """
    return [
        field.name
        for field in msgspec.structs.fields(type(part))
        if not any(map(_derived, _notes(field)))
    ]


def _notes(field: msgspec.structs.FieldInfo) -> list[msgspec.Meta]:
    return [
        note
        for note in getattr(field.type, "__metadata__", ())
        if isinstance(note, msgspec.Meta)
    ]


def _choices(field: msgspec.structs.FieldInfo) -> list[str]:
    """The values of a `Literal` field; empty for others."""
    kind = getattr(field.type, "__origin__", field.type)
    return (
        [str(value) for value in get_args(kind)]
        if get_origin(kind) is Literal
        else []
    )


def _derived(note: msgspec.Meta) -> bool:
    return bool((note.extra or {}).get("derived"))


def _override(part: Struct, values: Mapping[str, Any]) -> Struct:
    if not values:
        return part
    changed = {
        name: _convert(type(part), name, value)
        for name, value in values.items()
    }
    try:
        return msgspec.structs.replace(part, **changed)
    except ValueError as error:  # values that do not go together
        raise InvalidInput(str(error)) from error


def _convert(kind: type[Struct], name: str, value: Any) -> Any:
    """A value converted to the type of its field; raises `InvalidInput` that names the setting."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    field = fields[name]
    if isinstance(value, str) and "tuple" in str(field.type):
        value = value.split(",")
    try:
        converted = msgspec.convert(value, field.type, strict=False)
    except msgspec.ValidationError as error:
        wanted = _wanted(field, error)
        raise InvalidInput(f"setting {name}={value!s:.60}: {wanted}") from error
    if isinstance(converted, float) and not math.isfinite(converted):
        raise InvalidInput(
            f"setting {name}={value!s:.60}: a finite number is wanted"
        )
    return converted


def _wanted(field: msgspec.structs.FieldInfo, error: Exception) -> str:
    """What would be right for a field whose value is wrong."""
    if choices := _choices(field):
        return f"choose one of {', '.join(choices)}"
    reason = str(error)
    return f"{reason[0].lower()}{reason[1:]}"


def describe(part: Struct) -> Iterator[Json]:
    """The fields of a settings struct as rows for people: name, default, help."""
    for field in msgspec.structs.fields(type(part)):
        if field.name in names(part):
            notes = [
                note.description for note in _notes(field) if note.description
            ]
            if choices := _choices(field):
                notes.append(f"one of {', '.join(choices)}")
            yield {
                "name": field.name,
                "default": getattr(part, field.name),
                "help": "; ".join(notes),
            }
