"""The file name is the registry: a plugin is a module in its kind's folder, or an installed package's entry point.

`names("tasks")` lists, `load("tasks", "image-classification")` imports: nothing is imported before it is asked
for. Names are written with '-' by people and with '_' on disk. An installed package adds a plugin with an entry
point in the group `modelmill.<kind>` (for a recipe: `modelmill.tasks.<task>.recipes`).
"""

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType

from modelmill.errors import NotInstalled, unknown

WORD = {
    "tasks": "task",
    "engines": "engine",
    "data.formats": "format",
    "protocols": "protocol",
    "cluster": "cluster",
}


def recipes_of(task: str) -> str:
    """The plugin kind that holds the recipes of a task."""
    return f"tasks.{task.replace('-', '_')}.recipes"


@cache
def names(kind: str) -> tuple[str, ...]:
    """All plugins of a kind, sorted, under the names people type."""
    own = {module.name for module in pkgutil.iter_modules(_package(kind).__path__)}
    own |= {point.name for point in entry_points(group=f"modelmill.{kind}")}
    return tuple(sorted(name.replace("_", "-") for name in own if not name.startswith("_") and name != "base"))


def load(kind: str, name: str) -> ModuleType:
    """The plugin's module; raises `NotFound` naming those that exist, `NotInstalled` when it needs an extra."""
    if name not in names(kind):
        raise unknown(WORD.get(kind, "recipe"), name, names(kind))
    try:
        for point in entry_points(group=f"modelmill.{kind}", name=name):
            module: ModuleType = point.load()
            return module
        return importlib.import_module(f"modelmill.{kind}.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("modelmill"):
            raise
        raise NotInstalled(
            f"'{name}' needs the package '{error.name}', which is not installed: pip install 'modelmill[train]'"
        ) from error


@cache
def _package(kind: str) -> ModuleType:
    return importlib.import_module(f"modelmill.{kind}")
