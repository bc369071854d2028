"""Formats of data sets: one module each, found by its file name.

A format has INPUT ("image", "text", "audio" or "question"), TARGET (what its items bring beside the
input: `label` where it says nothing, `boxes`, `mask`, `picture`, `text`, `texts`, `answers`,
`scored` or `none`), SUMMARY (a line for people), OPTIONS (option -> help), RANK (where several fit,
the highest is meant), `detect(source) -> bool`, and `read(source, options)`, which yields items in
a fixed order, one at a time; those that lie in files of their own are read when they are asked for
(`source.item`). Where the order of the classes means something, `labels(source,
options)` names them all.
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
    known: dict[str, ModuleType] = {
        name: plugins.load(KIND, name) for name in plugins.names(KIND)
    }
    return {name: module for name, module in known.items() if fits(module, task)}


def fits(format: ModuleType, task: Trainable) -> bool:
    """Whether the items of a format bring what a task takes and is trained on."""
    return (
        format.INPUT == task.INPUT
        and getattr(format, "TARGET", "label") in task.TARGETS
    )


def labelled(format: ModuleType, task: Trainable) -> bool:
    """Whether each item is to have a class: the format brings one, and the task can't do
    without.
    """
    return getattr(format, "TARGET", "label") == "label" and "none" not in task.TARGETS


def labels(format: ModuleType, source: Source, options: Mapping[str, str]) -> list[str]:
    """The classes in the order that the data declare; none where the order means nothing."""
    return list(format.labels(source, options)) if hasattr(format, "labels") else []


def detect(source: Source, task: Trainable) -> str:
    """The name of the format that fits; raises `InvalidInput` when none or several do."""
    known = fitting(task)
    fit = {
        name: getattr(module, "RANK", 0)
        for name, module in known.items()
        if module.detect(source)
    }
    best = [name for name, rank in fit.items() if rank == max(fit.values())]
    if len(best) == 1:
        return best[0]
    names = "; ".join(f"{name}: {known[name].SUMMARY}" for name in best or known)
    if best:
        raise InvalidInput(
            f"'{source.title}' could be several formats, say which: {names}"
        )
    held = ", ".join(shown(name, 60) for name in source.names[:5])
    raise InvalidInput(
        f"'{source.title}' is in no known format for {task.name} ({names}); it holds {held}"
    )
