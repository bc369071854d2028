"""Formats of data sets: one module each, found by its file name.

A format has INPUT ("image", "text", "audio" or "question"), TARGET (what its items bring beside the
input: `label` by default, `boxes`, `mask`, `picture`, `text`, `texts`, `answers`, `scored` or
`none`), SUMMARY (a line for people), OPTIONS (option -> help), RANK (of several that fit the
highest is taken), `detect(source) -> bool`, and `read(source, options)`, which yields items in a
fixed order, one at a time; those of files of their own lazily (`source.item`). Where the order of
the classes matters, `labels(source, options)` names them all.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import ClassVar, Protocol

from modelmill import plugins
from modelmill.data.base import Source
from modelmill.data.names import shown
from modelmill.errors import InvalidInput

KIND = "data.formats"


class Trainable(Protocol):
    """A task as a format sees it (`tasks.base.Task`)."""

    INPUT: ClassVar[str]
    TARGETS: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str:
        """The name that people type."""


def fitting(task: Trainable) -> dict[str, ModuleType]:
    """The formats whose items a task can be trained on, by name."""
    formats: dict[str, ModuleType] = {
        name: plugins.load(KIND, name) for name in plugins.names(KIND)
    }
    return {
        name: module for name, module in formats.items() if fits(module, task)
    }


def fits(format: ModuleType, task: Trainable) -> bool:
    """Whether the items of a format have the input and target that a task is trained on."""
    return (
        format.INPUT == task.INPUT
        and getattr(format, "TARGET", "label") in task.TARGETS
    )


def labelled(format: ModuleType, task: Trainable) -> bool:
    """Whether each item needs a class: the format has labels, and the task needs them."""
    return (
        getattr(format, "TARGET", "label") == "label"
        and "none" not in task.TARGETS
    )


def labels(
    format: ModuleType, source: Source, options: Mapping[str, str]
) -> list[str]:
    """The classes in the order that the data declare; empty where the order does not matter."""
    return (
        list(format.labels(source, options))
        if hasattr(format, "labels")
        else []
    )


def detect(source: Source, task: Trainable) -> str:
    """The name of the format that fits; raises `InvalidInput` when none or several do."""
    formats = fitting(task)
    best = _best(formats, source)
    if len(best) == 1:
        return best[0]
    names = "; ".join(
        f"{name}: {formats[name].SUMMARY}" for name in best or formats
    )
    if best:
        raise InvalidInput(
            f"'{source.title}' could be several formats, say which: {names}"
        )
    raise _unknown(source, task, names)


def _best(formats: Mapping[str, ModuleType], source: Source) -> list[str]:
    """The formats of the highest rank that detect theirs."""
    ranks = {
        name: getattr(module, "RANK", 0)
        for name, module in formats.items()
        if module.detect(source)
    }
    return [name for name, rank in ranks.items() if rank == max(ranks.values())]


def _unknown(source: Source, task: Trainable, names: str) -> InvalidInput:
    files = ", ".join(shown(name, 60) for name in source.names[:5])
    return InvalidInput(
        f"'{source.title}' is in no known format for {task.name} ({names}); it holds {files}"
    )
