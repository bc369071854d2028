"""The test engine as an installed package: a folder for PYTHONPATH with a module and its entry
point.
"""

import shutil
from pathlib import Path
from typing import Any

import msgspec

from modelmill import bundle
from modelmill.types import Lineage, Manifest, TensorSpec
from tests.reference import engine

NAME = "reference"
MODULE = "modelmill_reference"

SIGNATURES = {
    "slow": (("seconds", "FP32"), ["slept"]),
    "echo": (("input", "BYTES"), ["output"]),
    "fails": (("value", "FP32"), ["value"]),
    "raises": (("value", "FP32"), ["value"]),
    "crashes": (("value", "FP32"), ["value"]),
    "hangs": (("value", "FP32"), ["value"]),
    "eats": (("value", "FP32"), ["value"]),
    "counts": (("id", "INT64"), ["id", "answer"]),
}
"""What each kind takes and gives: one column of any number of rows, any number of columns of
BYTES.
"""


def install(folder: Path) -> Path:
    """Leave in `folder` what `pip install` would: the module and its `.dist-info`; returns the
    folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(engine.__file__, folder / f"{MODULE}.py")
    information = folder / f"{MODULE}-1.0.dist-info"
    information.mkdir(exist_ok=True)
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {MODULE.replace('_', '-')}\nVersion: 1.0\n"
    )
    (information / "entry_points.txt").write_text(
        f"[modelmill.engines]\n{NAME} = {MODULE}\n"
    )
    return folder


def engine_bundle(target: Path, kind: str, **settings: Any) -> Path:
    """A sealed bundle of the test engine; `settings` such as `bytes` go to the model."""
    (given, datatype), answers = SIGNATURES[kind]
    shape = [-1, -1 if datatype == "BYTES" else 1]
    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    (draft / engine.FILE).write_bytes(
        msgspec.json.encode({"kind": kind, **settings})
    )
    manifest = Manifest(
        task="",
        engine=NAME,
        inputs=[TensorSpec(name=given, datatype=datatype, shape=shape)],
        outputs=[
            TensorSpec(name=name, datatype=datatype, shape=shape)
            for name in answers
        ],
        preprocessing={},
        labels=[],
        lineage=Lineage(
            dataset="",
            data_digest="",
            recipe="",
            settings={},
            seed=0,
            code_version="",
            job=0,
            created="",
        ),
    )
    bundle.seal(draft, manifest, target)
    return target
