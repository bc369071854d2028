"""A platform's home with reference models in it: imported as anybody would import theirs."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from modelmill import Client
from tests.making import writing_bundle
from tests.reference import graphs
from tests.reference.plugin import SIGNATURES, engine_bundle, install

Maker = Callable[[Path], Path]

GRAPHS: dict[str, Maker] = {
    "addsub": lambda folder: graphs.addsub(folder / "addsub.onnx"),
    "classifier": lambda folder: graphs.classifier(folder / "classifier.onnx"),
    "colours": lambda folder: graphs.colour_bundle(folder / "colours"),
    "feelings": lambda folder: graphs.feeling_bundle(folder / "feelings"),
    "writer": lambda folder: writing_bundle(folder / "writer"),
}
LABELS = {"classifier": graphs.CLASSES}
MISBEHAVING = ("slow", "fails", "raises", "crashes", "hangs", "eats", "counts")
IDENTITIES = {f"identity-{datatype.lower()}": datatype for datatype in graphs.ONNX}


def make(folder: Path, name: str) -> Path:
    """The file or bundle of a reference model, made now."""
    if name in IDENTITIES:
        return graphs.identity(folder / f"{name}.onnx", IDENTITIES[name])
    if name in SIGNATURES:
        return engine_bundle(folder / name, name)
    return GRAPHS[name](folder)


def marked(folder: Path, mark: int) -> Path:
    """An addsub model that tells in `mark` which one it is."""
    return graphs.marked_addsub(folder / "marked.onnx", mark)


def bring(client: Client, folder: Path, names: Iterable[str]) -> None:
    """Make models and import them, each under its name; raises `MillError` for one that can't be served."""
    for name in names:
        client.import_model(name, make(folder, name), labels=LABELS.get(name, ()))


def with_engine(folder: Path) -> dict[str, str]:
    """Variables of a platform in which the test engine is installed."""
    paths = [str(install(folder)), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
