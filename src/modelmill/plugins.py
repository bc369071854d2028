"""The file name is the registry: a plugin is a module in its kind's folder, or an installed
package's entry point.

A kind's package names its modules that are no plugins in `SHARED`; `base` never is one.
`names("tasks")` lists, `load("tasks", "image-classification")` imports: nothing is imported before
it is asked for. Names are written with '-' by people and with '_' on disk; one that is a
word of Python's has a '_' at its end there, as in `import_.py`. An installed package
adds a plugin with an entry point in the group `modelmill.<kind>` (for a recipe:
`modelmill.tasks.<task>.recipes`).
"""

import importlib
import keyword
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from modelmill.errors import NotInstalled, unknown

WORD = {
    "tasks": "task",
    "tasks.kinds": "kind of input or output",
    "engines": "engine",
    "importers": "importer",
    "data.formats": "format",
    "protocols": "protocol",
    "cluster": "cluster",
    "jobs.kinds": "kind of jobs",
}


EXTRAS = {
    "openvino": "openvino",
    "faster_coco_eval": "train",
    **dict.fromkeys(
        (
            "matplotlib",
            "onnx",
            "onnxscript",
            "rapidfuzz",
            "sacrebleu",
            "safetensors",
            "scipy",
            "skimage",
            "sklearn",
            "threadpoolctl",
            "torch",
        ),
        "train",
    ),
}
"""The extra of modelmill that brings an optional package, by the name it is imported under."""


def recipes_of(task: str) -> str:
    """The plugin kind that holds the recipes of a task."""
    return f"tasks.{task.replace('-', '_')}.recipes"


@cache
def names(kind: str) -> tuple[str, ...]:
    """All plugins of a kind, sorted, under the names people type."""
    return tuple(sorted(_own_names(kind) | _installed(kind).keys()))


def _own_names(kind: str) -> set[str]:
    """Those in our own folder of a kind."""
    package = _package(kind)
    if package is None:
        return set()
    shared = {"base", *getattr(package, "SHARED", ())}
    return {
        module.name.rstrip("_").replace("_", "-")
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_") and module.name not in shared
    }


def load(kind: str, name: str) -> ModuleType:
    """The plugin's module; raises `NotFound` naming those that exist, `NotInstalled` when it needs
    an extra.
    """
    if name not in names(kind):
        raise unknown(WORD.get(kind, "recipe"), name, names(kind))
    try:
        point = _installed(kind).get(name)
        return point.load() if point else _own(kind, name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("modelmill"):
            raise
        raise missing(name, error) from error


def _own(kind: str, name: str) -> ModuleType:
    """The module of one of our own; one called like a word of Python has a mark at its end."""
    file = name.replace("-", "_")
    mark = "_" if keyword.iskeyword(file) else ""
    return importlib.import_module(f"modelmill.{kind}.{file}{mark}")


def missing(name: str, error: ModuleNotFoundError) -> NotInstalled:
    """The error for a plugin whose package is not installed: it says what to install."""
    package = (error.name or "").partition(".")[0]
    what = f"'modelmill[{EXTRAS[package]}]'" if package in EXTRAS else package
    return NotInstalled(
        f"'{name}' needs the package '{package}', which is not installed: pip install {what}"
    )


@cache
def _installed(kind: str) -> dict[str, EntryPoint]:
    """What other packages add, under the names people type."""
    return {
        point.name.replace("_", "-"): point
        for point in entry_points(group=f"modelmill.{kind}")
    }


@cache
def _package(kind: str) -> ModuleType | None:
    """Our own folder of a kind; a task from another package has none for its recipes."""
    try:
        return importlib.import_module(f"modelmill.{kind}")
    except ModuleNotFoundError:
        return None
