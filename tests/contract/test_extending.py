"""The complete examples of docs/extending.md: installed as packages of their own, and run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "extending.md").read_text("utf-8")


TASK = [
    "tasks/image_grading/__init__.py",
    "tasks/image_grading/training.py",
    "tasks/image_grading/recipes/linear.py",
]


def example(path):
    """The code that the document shows for a file."""
    found = re.search(
        rf"A complete \w+, `{re.escape(path)}`.*?```python\n(.*?)```",
        DOCUMENT,
        re.S,
    )
    assert found, f"docs/extending.md shows no {path}"
    return found[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of a process where the engine and its importer are installed."""
    folder = tmp_path_factory.mktemp("packages")
    information = folder / "examples-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: examples\nVersion: 1.0\n"
    )
    points = [
        "[modelmill.tasks]\nimage-grading = image_grading\n",
        "[modelmill.tasks.image_grading.recipes]\n"
        "linear = image_grading.recipes.linear\n",
    ]
    task = folder / "image_grading"
    (task / "recipes").mkdir(parents=True)
    (task / "recipes" / "__init__.py").write_text("")
    for path in TASK:
        (folder / path.removeprefix("tasks/")).write_text(example(path))
    (folder / "molecule.py").write_text(example("tasks/kinds/molecule.py"))
    points.append("[modelmill.tasks.kinds]\nmolecule = molecule\n")
    for kind in ("engines", "importers"):
        module = f"example_{kind}"
        (folder / f"{module}.py").write_text(example(f"{kind}/linear.py"))
        points.append(f"[modelmill.{kind}]\nlinear = {module}\n")
    (information / "entry_points.txt").write_text("\n".join(points))
    path = [str(folder), str(ROOT / "src"), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def test_the_engine_passes_the_contract_of_engines(environment):
    tests = "tests/contract/test_engines.py"
    words = ["-q", "-p", "no:cacheprovider", "-n", "0", "-k", "linear", tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-rA", "--no-header"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count("PASSED") > 20


def test_the_kind_passes_the_contract_of_kinds(environment):
    tests = "tests/contract/test_kinds.py"
    words = ["-q", "-p", "no:cacheprovider", "-n", "0", "-k", "molecule", tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-rA", "--no-header"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count("PASSED") >= 6


def test_the_task_passes_the_contract_and_its_recipe_trains(environment):
    tests = ["tests/contract/test_tasks.py", "tests/contract/test_recipes.py"]
    words = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        "-k",
        "image-grading",
        *tests,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-rA", "--no-header"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "PASSED tests/contract/test_recipes.py" in done.stdout
    assert done.stdout.count("PASSED") > 15


IMPORT = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from modelmill import predictor
from modelmill.jobs.registering import register
from modelmill.types import JobSpec

folder = Path(sys.argv[1])
weights = np.array([[0, 1], [1, 0], [0, 0]], np.float32)
np.savez(folder / "weights.npz", weights=weights)
spec = JobSpec(job=1, kind="register", folder=str(folder / "job"), threads=1, bundle=str(folder / "weights.npz"))
register(spec, SimpleNamespace(stage=print), SimpleNamespace(asked=False))
model = predictor.load(folder / "job" / "bundle")
assert model.manifest.engine == "linear"
answer = model.infer({"x": np.array([[9, 0, 0], [0, 9, 0]], np.float32)})["scores"]
assert answer.argmax(1).tolist() == [1, 0]
print("served")
"""


def test_the_importer_brings_a_model_that_is_served(environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.endswith("served\n"), done.stderr


@pytest.mark.parametrize(
    "path", [*TASK, "engines/linear.py", "importers/linear.py"]
)
def test_the_examples_are_written_as_our_own_code(path, tmp_path):
    (tmp_path / "linear.py").write_text(example(path))
    config = str(ROOT / "pyproject.toml")
    for words in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run(
            ["ruff", *words, "--config", config, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
        )
        assert done.returncode == 0, done.stdout + done.stderr
