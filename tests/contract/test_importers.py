"""Every importer: says what it takes, knows it without running it, and is one of several."""

import subprocess
import sys
import zipfile

import pytest

from modelmill import plugins
from modelmill.errors import InvalidInput, NotFound
from modelmill.importers.base import Importer, importer_for, importer_named
from tests.helpers.bundles import brightness_graph, picture_bundle

IMPORTERS = plugins.names("importers")


@pytest.fixture(params=IMPORTERS)
def importer(request):
    return importer_named(request.param)


def test_what_it_takes_is_said(importer):
    assert importer.SUMMARY
    assert not importer.SUMMARY.endswith(".")


def zipped(folder, target):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, str(path.relative_to(folder)))
    return target


@pytest.fixture
def files(tmp_path):
    """A file of each kind that comes from outside, by its importer."""
    torch = pytest.importorskip("torch")
    from modelmill.engines.torch import ENGINE

    (tmp_path / "a.onnx").write_bytes(brightness_graph().SerializeToString())
    ENGINE.sample(tmp_path, "FP32")
    zipped(picture_bundle(tmp_path / "b"), tmp_path / "b.zip")
    assert torch
    names = {"onnx": "a.onnx", "torch": "model.pt2", "bundle": "b.zip"}
    return {name: tmp_path / file for name, file in names.items()}


def test_each_file_has_one_importer(files):
    assert {name: importer_for(path) for name, path in files.items()} == {
        name: importer_named(name) for name in files
    }


def test_only_the_last_resorts_take_what_they_do_not_know(importer, tmp_path):
    (tmp_path / "nothing").write_bytes(b"")
    (tmp_path / "text").write_text("a text")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes.txt", "a text")
    if importer.RANK > 0:
        for name in ("nothing", "text", "other.zip"):
            assert not importer.detect(tmp_path / name)


def test_to_look_at_a_file_needs_no_library(files):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from modelmill.importers.base import importer_for\n"
        "for path in sys.argv[1:]: importer_for(Path(path))\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'sklearn', 'transformers'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    run = [sys.executable, "-c", code, *map(str, files.values())]
    subprocess.run(run, check=True, timeout=60)


def test_an_unknown_importer_is_answered_with_those_that_exist():
    with pytest.raises(NotFound, match="onnx"):
        importer_named("caffe")


def test_a_plugin_without_an_importer_says_what_it_needs(tmp_path, monkeypatch):
    (tmp_path / "hollow.py").write_text("IMPORTER = 'none'\n")
    package = plugins._package("importers")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    plugins.names.cache_clear()
    try:
        with pytest.raises(
            InvalidInput, match=r"'hollow' is not an importer.*IMPORTER"
        ):
            importer_named("hollow")
    finally:
        monkeypatch.undo()
        plugins.names.cache_clear()


def test_a_file_that_nothing_reads_is_answered_with_what_can_be_brought(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(Importer, "detect", lambda self, path: False)
    for name in IMPORTERS:
        monkeypatch.setattr(
            type(importer_named(name)), "detect", Importer.detect
        )
    with pytest.raises(
        InvalidInput,
        match=r"nothing here reads.*bundle.*model\.onnx.*model\.pt2",
    ):
        importer_for(tmp_path / "x")
