"""The serving options of a deployment, and their ranges."""

from typing import Any

import msgspec

from modelmill import plugins
from modelmill.control.db import Deployment
from modelmill.errors import InvalidInput, unknown
from modelmill.types import ServingOptions


def options_of(row: Deployment) -> ServingOptions:
    """The serving options of a deployment."""
    return msgspec.convert(
        {
            "min_replicas": row.replicas,
            "max_replicas": row.replicas,
            **row.options,
        },
        ServingOptions,
    )


def complete(row: Deployment, changed: dict[str, Any]) -> ServingOptions:
    """The options of a row with those of `changed` that are not None; raises `InvalidInput` for
    options that do not fit, and for an unknown engine.
    """
    before = options_of(row)
    given = {
        name: value for name, value in changed.items() if value is not None
    }
    options = msgspec.structs.replace(
        before, **_with_most_replicas(before, given)
    )
    if options.engine and options.engine not in plugins.names("engines"):
        raise unknown("engine", options.engine, plugins.names("engines"))
    if options.max_replicas < max(options.min_replicas, 1):
        raise InvalidInput(
            f"max_replicas is {options.max_replicas}: at least 1 and not below min_replicas "
            f"({options.min_replicas})"
        )
    return options


def _with_most_replicas(
    before: ServingOptions, given: dict[str, Any]
) -> dict[str, Any]:
    """What was given, where a fixed number means both ends, and more at least means more at
    most.
    """
    if (replicas := given.pop("replicas", None)) is not None:
        given = {"min_replicas": replicas, "max_replicas": replicas, **given}
    if "min_replicas" in given and "max_replicas" not in given:
        given["max_replicas"] = max(
            before.max_replicas, given["min_replicas"], 1
        )
    return given
