"""The file name is the registry."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from modelmill import plugins
from modelmill.errors import NotFound, NotInstalled

KINDS = [
    "tasks",
    "engines",
    "importers",
    "jobs.kinds",
    "data.formats",
    "protocols",
    "cluster",
    plugins.recipes_of("image-classification"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_that_is_listed_can_be_loaded(kind):
    assert plugins.names(kind)
    for name in plugins.names(kind):
        try:
            module = plugins.load(kind, name)
            assert module.__name__.rstrip("_").endswith(name.replace("-", "_"))
        except NotInstalled as missing:
            pytest.skip(str(missing))


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_sorted_and_written_as_people_write_them(kind):
    names = plugins.names(kind)
    assert list(names) == sorted(names)
    assert not any("_" in name or name == "base" for name in names)


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        (
            "tasks",
            "image-clasification",
            "unknown task .* did you mean 'image-classification'",
        ),
        (
            "tasks",
            "image_classification",
            "unknown task .* did you mean 'image-classification'",
        ),
        ("tasks", "_image", "unknown task"),
        ("tasks", "base", "unknown task"),
        ("tasks", "../errors", "unknown task"),
        ("tasks", "", "unknown task"),
        ("engines", "onyx", "unknown engine .* did you mean 'onnx'"),
        (
            "data.formats",
            "imagefolders",
            "unknown format .* did you mean 'imagefolder'",
        ),
        (
            plugins.recipes_of("image-classification"),
            "cnm",
            "unknown recipe .* did you mean 'cnn'",
        ),
    ],
)
def test_an_unknown_name_suggests_the_near_one(kind, name, says):
    with pytest.raises(NotFound, match=says):
        plugins.load(kind, name)


def test_a_recipe_belongs_to_its_task_under_either_spelling():
    assert plugins.recipes_of("image-classification") == plugins.recipes_of(
        "image_classification"
    )


def test_listing_imports_nothing():
    code = (
        "import sys; from modelmill import plugins; plugins.names('tasks'); "
        "plugins.names('engines');"
        "assert not {'onnxruntime', 'openvino', 'PIL', 'tokenizers', 'torch'} & "
        "sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("package", "says"),
    [
        ("a_package_that_nobody_has", "pip install a_package_that_nobody_has"),
        (
            "openvino.missing_part",
            r"the package 'openvino'.*pip install 'modelmill\[openvino\]'",
        ),
        (
            "torch.missing_part",
            r"the package 'torch'.*pip install 'modelmill\[train\]'",
        ),
    ],
)
def test_a_plugin_whose_package_is_missing_says_what_to_install(
    tmp_path, monkeypatch, package, says
):
    for name in ("openvino", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "needy.py").write_text(f"import {package}\n")
    monkeypatch.setattr(
        plugins._package("engines"), "__path__", [str(tmp_path)]
    )
    plugins.names.cache_clear()
    try:
        with pytest.raises(NotInstalled, match=says):
            plugins.load("engines", "needy")
    finally:
        monkeypatch.undo()
        plugins.names.cache_clear()


def test_every_extra_that_an_error_names_brings_its_package():
    project = tomllib.loads(
        (Path(__file__).parents[1] / "pyproject.toml").read_text()
    )["project"]
    other = {
        "sklearn": "scikit-learn",
        "skimage": "scikit-image",
        "faster_coco_eval": "faster-coco-eval",
    }
    for package, extra in plugins.EXTRAS.items():
        wanted = other.get(package, package)
        assert any(
            line.startswith(f"{wanted}>=")
            for line in project["optional-dependencies"][extra]
        ), package
