"""The kinds of what models take and give, which all protocols, the SDK and the command line read.

A task names the kind of its items (`Task.INPUT`), of what callers send (`Task.TAKES` and
`Task.ALSO_TAKES`) and of its answers (`Task.GIVES`). Each kind is a module of this folder, or of an
installed package with an entry point in the group `modelmill.tasks.kinds`; its contract is in
`base`. A kind that has no module, as a plug-in may have it, is sent as a file and answered as JSON.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from modelmill import plugins
from modelmill.errors import InvalidInput
from modelmill.tasks.kinds.base import InputKind, OutputKind

PLUGINS = "tasks.kinds"
TENSOR = "tensor"
"""What a model without a task takes."""
IMAGE = "image"


@cache
def input_kind(name: str) -> InputKind:
    """A kind of input, also one that only a plug-in knows."""
    found = getattr(_module(name), "INPUT", None)
    if isinstance(found, InputKind):
        return found
    return InputKind(
        name=name, article=f"an input of the kind '{name[:40]}'", example=bytes
    )


@cache
def output_kind(name: str) -> OutputKind:
    """A kind of answer, also one that only a plug-in knows."""
    found = getattr(_module(name), "OUTPUT", None)
    if isinstance(found, OutputKind):
        return found
    return OutputKind(name=name, meaning="JSON of the task's own", example=dict)


def input_kinds() -> list[InputKind]:
    """All kinds of input that have a module."""
    found = (
        getattr(_module(name), "INPUT", None) for name in plugins.names(PLUGINS)
    )
    return [kind for kind in found if isinstance(kind, InputKind)]


def output_kinds() -> list[OutputKind]:
    """All kinds of answers that have a module."""
    found = (
        getattr(_module(name), "OUTPUT", None)
        for name in plugins.names(PLUGINS)
    )
    return [kind for kind in found if isinstance(kind, OutputKind)]


def _module(name: str) -> ModuleType | None:
    """The module of a kind; None where it has none."""
    file = name.replace("_", "-")
    known = file in plugins.names(PLUGINS)
    return plugins.load(PLUGINS, file) if known else None


class Sent(NamedTuple):
    """An input as it goes to a worker, and its kind; "" is the one that the task takes first."""

    data: bytes
    kind: str = ""


def sent(name: str, value: Any, field: str) -> Sent:
    """A value of JSON as an input of this kind; raises `InvalidInput`."""
    return Sent(input_kind(name).encoded(value, field), name)


def from_parameters(
    parameters: Mapping[str, Any], kinds: Iterable[str]
) -> tuple[Sent | None, Mapping[str, Any]]:
    """The input that is sent as a parameter, and the other parameters; None where there is none.

    `kinds` are those that the task takes beside its first. Raises `InvalidInput`, also for two
    inputs.
    """
    names = {
        name: kind for kind in kinds if (name := input_kind(kind).parameter)
    }
    rest = {
        name: value for name, value in parameters.items() if name not in names
    }
    given = [name for name in names if parameters.get(name) is not None]
    if not given:
        return None, rest
    if len(given) > 1:
        raise InvalidInput(
            f"{' and '.join(given)} are two inputs: send one of them"
        )
    (name,) = given
    return sent(names[name], parameters[name], name), rest
