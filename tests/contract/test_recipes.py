"""Every recipe: cheap to list, and trains a sealed bundle that answers as it did in training."""

import json
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import closing

import numpy as np
import pytest

from modelmill import __version__, bundle, plugins, predictor
from modelmill.bundle import open_bundle
from modelmill.engines.base import engine_named
from modelmill.errors import BundleCorrupt, InvalidInput, NotInstalled
from modelmill.jobs.process import Events
from modelmill.jobs.train import train_version
from modelmill.tasks.base import describe, plan, recipe_named, task_named
from modelmill.types import JobSpec
from tests.helpers.datasets import TINY, dataset
from tests.helpers.workers import going

RECIPES = [
    (task, recipe)
    for task in plugins.names("tasks")
    for recipe in plugins.names(plugins.recipes_of(task))
]
ENGINES = [
    (name, precision)
    for name in plugins.names("engines")
    for precision in (
        *engine_named(name).PRECISIONS,
        *engine_named(name).VARIANTS,
    )
]
QUICK = {"epochs": "1", "batch_size": "16", "epoch_steps": "2"}


def classifies(task):
    """Whether its answers are scores of labels."""
    return task_named(task).METRIC == "accuracy"


def quick(task, recipe):
    """Settings for a short training: those of the loop that the recipe has."""
    known = plan(recipe_named(task, recipe), {}).flat()
    return {name: value for name, value in QUICK.items() if name in known}


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(
            one, id="/".join(one), marks=pytest.mark.xdist_group("/".join(one))
        )
        for one in RECIPES
    ],
)
def trained(request, tmp_path_factory):
    """The recipe's task, its name, the job's folder and what the job said."""
    import torch

    task, recipe = request.param
    home = tmp_path_factory.mktemp(recipe)
    folder = home / "job"
    folder.mkdir()
    module = task_named(task)
    known = [TINY.get((module.INPUT, target)) for target in module.TARGETS]
    maker = next(filter(None, known), None)
    if maker is None:
        pytest.skip(
            f"no tiny data set has {module.INPUT} with {module.TARGETS}"
        )
    data = dataset(maker(home / "tiny"), task, home / "store")
    spec = JobSpec(
        job=7,
        kind="train",
        folder=str(folder),
        threads=1,
        name="tiny",
        task=task,
        dataset=data,
        recipe=recipe,
        settings=quick(task, recipe),
        cache=str(home / "cache"),
    )
    threads = torch.get_num_threads()
    with (
        warnings.catch_warnings(),
        closing(Events(folder / "events.jsonl")) as events,
    ):
        warnings.simplefilter("ignore")  # as in a job's process
        result = train_version(spec, events, going())
    torch.set_num_threads(threads)
    return task, recipe, folder, result


def test_all_recipes_are_listed_without_a_training_library():
    code = (
        "import sys\nfrom modelmill import plugins\nfrom modelmill.tasks.base import "
        "recipe_named, plan\n"
        f"for task, recipe in {RECIPES!r}: plan(recipe_named(task, recipe), {{}})\n"
        "heavy = {'torch', 'sklearn', 'onnx', 'scipy', 'matplotlib'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("task", "recipe"), RECIPES)
def test_every_setting_has_one_meaning_and_a_help_text(task, recipe):
    module = recipe_named(task, recipe)
    assert module.SUMMARY
    rows = [
        row
        for part in plan(module, {}).sections().values()
        for row in describe(part)
    ]
    names = Counter(row["name"] for row in rows)
    assert [name for name, count in names.items() if count > 1] == []
    assert [row["name"] for row in rows if not row["help"]] == []


@pytest.mark.parametrize(("task", "recipe"), RECIPES)
def test_it_has_a_network_or_fits_itself(task, recipe):
    module = recipe_named(task, recipe)
    assert hasattr(module, "network") != hasattr(module, "fit")


def test_the_bundle_is_whole_and_answers_as_recorded(trained):
    _, _, folder, result = trained
    assert result["bundle"] == bundle.digest_of(folder / "bundle")
    model = predictor.load(folder / "bundle")
    assert len(predictor.read_golden(folder / "bundle")) >= 1
    assert model.manifest.metrics == result["metrics"]
    assert not (folder / "bundle.draft").exists()


@pytest.mark.parametrize(("engine", "precision"), ENGINES, ids="/".join)
def test_every_engine_answers_as_recorded(trained, engine, precision):
    try:
        predictor.load(
            trained[2] / "bundle", engine=engine, precision=precision
        )
    except (
        NotInstalled,
        InvalidInput,
    ) as error:  # an extra, or arithmetic that this processor does not have
        pytest.skip(error.message)


def test_its_manifest_says_all_that_is_needed(trained):
    task, recipe, folder, result = trained
    manifest = open_bundle(folder / "bundle")
    assert {
        "model.onnx",
        "model.safetensors",
        "golden.json",
        "README.md",
    } <= manifest.files.keys()
    assert manifest.task == task
    known = task_named(task)
    said = (manifest.takes, manifest.gives, manifest.streams)
    assert said == (known.takes, known.GIVES, known.streams)
    assert manifest.also_takes == list(known.ALSO_TAKES)
    assert sorted(manifest.labels) == manifest.labels
    assert len(manifest.labels) == (2 if task_named(task).CLASSES else 0)
    lineage = manifest.lineage
    assert (lineage.recipe, lineage.job, lineage.code_version) == (
        recipe,
        7,
        __version__,
    )
    module = recipe_named(task, recipe)
    kept = json.loads(json.dumps(plan(module, lineage.settings).flat()))
    assert kept == lineage.settings  # what the recipe chose for the data, too
    given = plan(module, quick(task, recipe)).flat()
    assert all(kept[name] == given[name] for name in quick(task, recipe))
    assert result["metrics"]["items"] > 0
    if classifies(task):
        assert manifest.outputs[0].shape == [-1, 2]
        assert result["metrics"]["items"] == sum(
            row["items"] for row in manifest.metrics["per_class"].values()
        )
    for name in manifest.files:
        if name.startswith("pictures/"):
            assert (folder / name).read_bytes() == (
                folder / "bundle" / name
            ).read_bytes()


def test_one_by_one_and_in_a_batch_it_answers_the_same(trained):
    folder = trained[2]
    model = predictor.load(folder / "bundle")
    raw = [
        case["input"] for case in predictor.read_golden(folder / "bundle")
    ] + [model.task.example()]
    inputs = (raw * 7)[:7]
    arrays = [model.decode(one) for one in inputs]
    together = model.run(arrays)
    for one, many in zip(
        [model.run([item])[0] for item in arrays], together, strict=True
    ):
        for name in one:
            np.testing.assert_allclose(
                one[name], many[name], rtol=1e-5, atol=1e-5
            )
            if classifies(trained[0]):
                assert many[name].sum() == pytest.approx(1, abs=1e-4)


def test_the_card_lists_the_metrics(trained):
    task, _, folder, result = trained
    card = (folder / "bundle" / "README.md").read_text()
    assert card.startswith("---\n")
    assert f"pipeline_tag: {task}" in card
    assert f"{result['metrics'][task_named(task).METRIC]:.4f}" in card


def test_a_job_that_was_stopped_after_sealing_reports_the_same(trained):
    task, recipe, folder, result = trained
    spec = JobSpec(
        job=7,
        kind="train",
        folder=str(folder),
        threads=1,
        task=task,
        recipe=recipe,
    )
    with closing(Events(folder / "events.jsonl")) as events:
        again = train_version(spec, events, going())
    assert again == {name: result[name] for name in ("metrics", "bundle")}


def test_changed_weights_are_found(trained, tmp_path):
    folder = shutil.copytree(trained[2] / "bundle", tmp_path / "copy")
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(BundleCorrupt):
        predictor.load(folder)
