"""A platform's home with reference models in it: imported as anybody would import theirs."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from modelmill import Client
from tests.helpers.datasets import (
    box_folder,
    mask_folder,
    pairs_table,
    picture_folder,
    questions,
    sound_folder,
    speech_folder,
    text_table,
)
from tests.helpers.text_bundles import writing_bundle
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
IDENTITIES = {
    f"identity-{datatype.lower()}": datatype for datatype in graphs.ONNX
}


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
    """Make models and import them, each under its name; raises `MillError` for one that can't be
    served.
    """
    for name in names:
        client.import_model(
            name, make(folder, name), labels=LABELS.get(name, ())
        )


class Lesson(NamedTuple):
    """What a reference model is trained on here: they answer in the right shapes, and know next to
    nothing.
    """

    task: str
    data: Callable[[Path], Path]
    recipe: str = ""
    settings: Mapping[str, str] = {}


def conversations(root: Path) -> Path:
    """A greeting, again and again."""
    root.mkdir(parents=True, exist_ok=True)
    names = ["Ann", "Bob", "Cem", "Dan", "Eve"]
    rows = [
        [
            {"role": "user", "content": f"Say hello{to}."},
            {"role": "assistant", "content": f"Hello{to}."},
        ]
        for to in (
            "",
            *(f" {one} and {other}" for one in names for other in names),
        )
    ]
    lines = [json.dumps({"messages": row}) for row in rows * 4]
    (root / "train.jsonl").write_text("\n".join(lines[:-9]))
    (root / "test.jsonl").write_text("\n".join(lines[-9:]))
    return root


SMALL = {"width": "32", "layers": "1", "heads": "2"}
LESSONS = {
    "finder": Lesson("object-detection", box_folder),
    "painter": Lesson("image-segmentation", mask_folder),
    "mender": Lesson("image-to-image", picture_folder, "denoise"),
    "interpreter": Lesson(
        "translation",
        pairs_table,
        "transformer",
        {**SMALL, "epochs": "30", "learning_rate": "0.004"},
    ),
    "librarian": Lesson("question-answering", questions),
    "guesser": Lesson("fill-mask", text_table, "bert", SMALL),
    "thinker": Lesson(
        "feature-extraction",
        text_table,
        "encoder",
        {**SMALL, "dimensions": "16"},
    ),
    "talker": Lesson(
        "text-generation",
        conversations,
        settings={
            "width": "64",
            "layers": "2",
            "epochs": "3",
            "epoch_steps": "80",
            "learning_rate": "0.005",
        },
    ),
    "scribe": Lesson("automatic-speech-recognition", speech_folder),
    "listener": Lesson("audio-classification", sound_folder),
}


def teach(client: Client, folder: Path) -> list[str]:
    """Train a small model of each task whose answers have a shape of their own, and deploy it;
    their names.
    """
    for name, lesson in LESSONS.items():
        client.add_data(name, lesson.data(folder / name), task=lesson.task)
        settings = {"epochs": "2", "batch_size": "16", **lesson.settings}
        client.train(
            name,
            task=lesson.task,
            data=name,
            recipe=lesson.recipe,
            settings=settings,
            wait=True,
        )
        client.deploy(name, wait=True)
    return list(LESSONS)


def with_engine(folder: Path) -> dict[str, str]:
    """Variables of a platform in which the test engine is installed."""
    paths = [str(install(folder)), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
