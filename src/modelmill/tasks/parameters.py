"""The parameters of a call: a struct for each task, checked once before an input is decoded."""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta
from msgspec.inspect import (
    BoolType,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    Metadata,
    NoneType,
    StrType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from modelmill.errors import InvalidInput, unknown_setting
from modelmill.types import Json, Struct

P = TypeVar("P", bound=Struct)


class NoParameters(Struct, frozen=True, kw_only=True):
    """Of a task whose answers leave nothing to choose."""


Ignored = Annotated[
    Any, Meta(description="accepted and ignored", extra={"hidden": True})
]
"""What clients send as a rule, and what changes nothing here."""
HIDDEN = {"hidden": True}
"""In the `extra` of a `Meta`: a parameter that protocols set, and that no list shows."""


def checked(kind: type[P], given: Mapping[str, Any]) -> P:
    """The parameters of a call; those that are null keep their defaults.

    Raises `InvalidInput` for a name that nothing reads (naming the near one) and for a value that
    is out of range.
    """
    fields = _fields(kind)
    for name in given:
        if name not in fields:
            raise unknown_setting(name, listed(kind), "parameter")
    changed = {
        name: _converted(name, value, fields[name].type)
        for name, value in given.items()
        if value is not None
    }
    try:
        return kind(**changed)
    except (
        ValueError
    ) as error:  # what a struct says of values that do not go together
        raise InvalidInput(str(error)) from error


def listed(kind: type[Struct]) -> list[str]:
    """The names that errors list."""
    return [
        name for name, field in _fields(kind).items() if not hidden(field.type)
    ]


def describe_parameters(kind: type[Struct]) -> Iterator[Json]:
    """The listed fields as rows for people: name, default, what is allowed, help."""
    usual = kind()
    for name in listed(kind):
        noted = _fields(kind)[name].type
        yield {
            "name": name,
            "default": getattr(usual, name),
            "allowed": wanted(noted),
            "help": "; ".join(
                n.description for n in notes_of(noted) if n.description
            ),
        }


def hidden(kind: Any) -> bool:
    """Whether a field of this type is shown to nobody."""
    return any((note.extra or {}).get("hidden") for note in notes_of(kind))


def notes_of(kind: Any) -> Iterator[Meta]:
    """What is said of a type, also inside `... | None`."""
    parts = [kind, *getattr(kind, "__args__", ())]
    for part in parts:
        for note in getattr(part, "__metadata__", ()):
            if isinstance(note, Meta):
                yield note


@cache
def _fields(kind: type[Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(kind)}


def _converted(name: str, value: Any, kind: Any) -> Any:
    try:
        found = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _refusal(name, value, kind) from error
    if isinstance(found, float) and not math.isfinite(found):
        raise _refusal(name, value, kind)
    return found


def _refusal(name: str, value: Any, kind: Any) -> InvalidInput:
    reason = _said(kind, "reason")
    found = "a truth value" if isinstance(value, bool) else f"{value!r:.40}"
    because = f": {reason}" if reason else ""
    return InvalidInput(f"{name} is {wanted(kind)}, not {found}{because}")


def _said(kind: Any, name: str) -> str:
    """What the `extra` of a field's notes say under a name; nothing where they do not."""
    extras = (note.extra or {} for note in notes_of(kind))
    return next((str(extra[name]) for extra in extras if name in extra), "")


def wanted(kind: Any) -> str:
    """What a field takes, in words: "a whole number from 1 to 20", "one of png, classes"."""
    if said := _said(kind, "wanted"):
        return said
    bare = kind.__origin__ if hasattr(kind, "__metadata__") else kind
    if get_origin(bare) is Literal and len(choices := get_args(bare)) > 1:
        return f"one of {', '.join(map(str, choices))}"
    return _in_words(type_info(kind))


NAMES = {BoolType: "true or false", StrType: "a text"}


def _in_words(info: Type) -> str:
    if isinstance(info, Metadata):
        return _in_words(info.type)
    if isinstance(info, UnionType):
        parts = [part for part in info.types if not isinstance(part, NoneType)]
        return " or ".join(map(_in_words, parts))
    if isinstance(info, LiteralType):
        return f"'{', '.join(map(str, info.values))}'"
    if isinstance(info, IntType | FloatType):
        return _range(info)
    if isinstance(info, ListType | VarTupleType):
        return f"a list: {_in_words(info.item_type)}"
    return NAMES.get(type(info), "another value")


def _range(info: IntType | FloatType) -> str:
    """A number with its limits, as far as it has any."""
    name = "a whole number" if isinstance(info, IntType) else "a number"
    words = (("from", info.ge), ("above", info.gt), ("to", info.le))
    limits = [
        f"{word} {limit:g}" if isinstance(limit, float) else f"{word} {limit}"
        for word, limit in words
        if limit is not None
    ]
    return " ".join([name, *limits])
