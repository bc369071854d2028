"""The file name is the registry."""

import subprocess
import sys

import pytest

from modelmill import plugins
from modelmill.errors import NotFound, NotInstalled

KINDS = ["tasks", "engines", "data.formats", "protocols", "cluster", plugins.recipes_of("image-classification")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_that_is_listed_can_be_loaded(kind):
    assert plugins.names(kind)
    for name in plugins.names(kind):
        assert plugins.load(kind, name).__name__.endswith(name.replace("-", "_"))


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_sorted_and_written_as_people_write_them(kind):
    names = plugins.names(kind)
    assert list(names) == sorted(names)
    assert not any("_" in name or name == "base" for name in names)


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("tasks", "image-clasification", "unknown task .* did you mean 'image-classification'"),
        ("tasks", "image_classification", "unknown task .* did you mean 'image-classification'"),
        ("tasks", "_image", "unknown task"),
        ("tasks", "base", "unknown task"),
        ("tasks", "../errors", "unknown task"),
        ("tasks", "", "unknown task"),
        ("engines", "onyx", "unknown engine .* did you mean 'onnx'"),
        ("data.formats", "imagefolders", "unknown format .* did you mean 'imagefolder'"),
        (plugins.recipes_of("image-classification"), "cnm", "unknown recipe .* did you mean 'cnn'"),
    ],
)
def test_an_unknown_name_suggests_the_near_one(kind, name, says):
    with pytest.raises(NotFound, match=says):
        plugins.load(kind, name)


def test_a_recipe_belongs_to_its_task_under_either_spelling():
    assert plugins.recipes_of("image-classification") == plugins.recipes_of("image_classification")


def test_listing_imports_nothing():
    code = (
        "import sys; from modelmill import plugins; plugins.names('tasks'); plugins.names('engines');"
        "assert not {'onnxruntime', 'PIL', 'tokenizers', 'torch'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_plugin_whose_package_is_missing_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.setattr(plugins._package("engines"), "__path__", [str(tmp_path)])
    plugins.names.cache_clear()
    try:
        with pytest.raises(NotInstalled, match="a_package_that_nobody_has"):
            plugins.load("engines", "needy")
    finally:
        monkeypatch.undo()
        plugins.names.cache_clear()
