"""Formats of data sets: one module each, found by its file name.

A format has INPUT ("image" or "text"), SUMMARY (a line for people), OPTIONS (option -> help), RANK (where
several fit, the highest is meant), `detect(source) -> bool`, and `read(source, options)`,
which yields items in a fixed order, one at a time.
"""

from types import ModuleType

from modelmill import plugins
from modelmill.data.base import Source
from modelmill.data.names import shown
from modelmill.errors import InvalidInput

KIND = "data.formats"


def detect(source: Source, input_kind: str) -> str:
    """The name of the format that fits; raises `InvalidInput` when none or several do."""
    known: dict[str, ModuleType] = {name: plugins.load(KIND, name) for name in plugins.names(KIND)}
    known = {name: module for name, module in known.items() if input_kind == module.INPUT}
    fitting = {name: getattr(module, "RANK", 0) for name, module in known.items() if module.detect(source)}
    best = [name for name, rank in fitting.items() if rank == max(fitting.values())]
    if len(best) == 1:
        return best[0]
    names = "; ".join(f"{name}: {known[name].SUMMARY}" for name in best or known)
    if best:
        raise InvalidInput(f"'{source.title}' could be several formats, say which: {names}")
    held = ", ".join(shown(name, 60) for name in source.names[:5])
    raise InvalidInput(f"'{source.title}' is in no known {input_kind} format ({names}); it holds {held}")
