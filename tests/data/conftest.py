"""Where the shared data sets lie, and small data made on the spot."""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from modelmill import plugins
from modelmill.data import formats
from modelmill.data.base import Item, open_source
from modelmill.data.check import Index, Report, examine
from modelmill.errors import InvalidInput
from modelmill.tasks.base import task_named

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """The path of a shared data set; skips the test when it is not on this machine."""
    root = (
        Path(os.environ.get("MODELMILL_SHARED", ROOT.parent / "shared"))
        / "data"
    )

    def path(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(
                f"needs {root / name}; MODELMILL_SHARED says where the shared data lie"
            )
        return root / name

    return path


def make_folder(root: Path, files: dict[str, bytes]) -> Path:
    """A folder with these files."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    """A zip with these members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def png(seed: int = 0, kind: str = "PNG") -> bytes:
    """An encoded picture of 6x5 pixels that differs with its seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def pixel_print(item: Item) -> str:
    """The sha256 of the pixels."""
    if isinstance(item.data, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(item.data)).hexdigest()
    assert isinstance(item.data, bytes)
    try:
        with Image.open(io.BytesIO(item.data)) as picture:
            head = f"{picture.size}{picture.mode}".encode()
            return hashlib.sha256(
                head + picture.convert("RGB").tobytes()
            ).hexdigest()
    except Exception as error:
        raise InvalidInput(f"not a picture: {error}") from error


def text_print(item: Item) -> str:
    """The sha256 of the stripped text."""
    assert isinstance(item.data, str)
    return hashlib.sha256(item.data.strip().encode()).hexdigest()


def read_with(path: Path, module: ModuleType) -> list[Item]:
    """All items at a path, read by the module of a format."""
    with open_source(path) as source:
        return [item.read() for item in module.read(source, {})]


TASKS = {"image": "image-classification", "text": "text-classification"}


def read_all(
    path: Path, kind: str, format: str = "", **options: str
) -> list[Item]:
    """All items at a path, with the format detected unless it is said."""
    with open_source(path) as source:
        module = plugins.load(
            "data.formats",
            format or formats.detect(source, task_named(TASKS[kind])),
        )
        return [item.read() for item in module.read(source, options)]


def check(
    path: Path, kind: str, fingerprint: Callable[[Item], str] | None = None
) -> tuple[Index, Report]:
    """The check of the data at a path."""
    with open_source(path) as source:
        module = plugins.load(
            "data.formats", formats.detect(source, task_named(TASKS[kind]))
        )
        prints = fingerprint or (pixel_print if kind == "image" else text_print)
        return examine(module.read(source, {}), prints, lambda done: None)


def kinds(report: Report) -> dict[str, int]:
    """The count of each finding."""
    return {finding.kind: finding.count for finding in report.findings}
