"""PyTorch programs: what they are called, what can't be served, and who has to trust them."""

import subprocess
import sys

import numpy as np
import pytest

from modelmill import bundle, predictor
from modelmill.engines.torch import ENGINE, FILE
from modelmill.errors import BundleCorrupt, InvalidInput, ModelFailed
from modelmill.predictor import Predictor, write_golden
from modelmill.types import TensorSpec
from tests.helpers.bundles import a_manifest
from tests.helpers.pictures import png

torch = pytest.importorskip("torch")


class Brightness(torch.nn.Module):
    """uint8 [N, H, W, 1] -> how dark and how bright [N, 2]."""

    def forward(self, pixels):
        bright = pixels.float().mean((1, 2, 3)) / 255
        return torch.stack([1 - bright, bright], 1)


class Two(torch.nn.Module):
    """Two inputs, one of them by name, and two outputs."""

    def forward(self, left, *, right):
        return left + right, left - right


class Marked(torch.nn.Module):
    """An output that is a number."""

    def forward(self, x):
        return {"y": x, "total": x.sum()}


def saved(folder, network, arguments, keywords=None, shapes=None):
    program = torch.export.export(
        network, arguments, keywords, dynamic_shapes=shapes
    )
    torch.export.save(program, folder / FILE)
    return folder


def rows(axis=0):
    return {axis: torch.export.Dim("rows", min=1)}


@pytest.fixture
def pictures(tmp_path):
    side = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 8, 8, 1, dtype=torch.uint8)
    shapes = ({**rows(), 1: side, 2: side},)
    (tmp_path / "draft").mkdir()
    return saved(tmp_path / "draft", Brightness(), (example,), shapes=shapes)


def manifest(**changes):
    return a_manifest(engine="torch", **changes)


def test_inputs_are_named_as_arguments_and_outputs_by_number(tmp_path):
    x = torch.zeros(2, 3)
    shapes = {"left": rows(), "right": rows()}
    saved(tmp_path, Two(), (x,), {"right": x.clone()}, shapes)
    inputs, outputs = ENGINE.signature(tmp_path)
    assert [spec.name for spec in inputs] == ["left", "right"]
    assert [spec.name for spec in outputs] == ["output_0", "output_1"]
    assert all(spec.shape == [-1, 3] for spec in (*inputs, *outputs))
    one, two = np.ones((4, 3), np.float32), np.full((4, 3), 2, np.float32)
    answer = ENGINE.open(tmp_path, 1).run({"right": one, "left": two})
    assert (answer["output_0"] == 3).all()
    assert (answer["output_1"] == 1).all()


def test_the_manifest_may_call_them_otherwise(pictures):
    wanted = a_manifest()
    session = ENGINE.open(
        pictures, 1, signature=(wanted.inputs, wanted.outputs)
    )
    white = np.full((3, 4, 5, 1), 255, np.uint8)
    assert session.run({"image": white})["scores"].tolist() == [[0, 1]] * 3
    several = [
        *wanted.inputs,
        TensorSpec(name="mask", datatype="BOOL", shape=[-1]),
    ]
    with pytest.raises(
        BundleCorrupt, match="inputs pixels, the manifest image, mask"
    ):
        ENGINE.open(pictures, 1, signature=(several, wanted.outputs))


def test_rows_that_do_not_belong_together_are_refused(tmp_path):
    x = torch.zeros(2, 3)
    saved(
        tmp_path,
        Two(),
        (x,),
        {"right": x.clone()},
        {"left": rows(), "right": rows()},
    )
    one, two = np.ones((1, 3), np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(ModelFailed, match="other numbers of rows"):
        ENGINE.open(tmp_path, 1).run({"left": one, "right": two})


def test_an_output_that_is_no_batch_is_named(tmp_path):
    saved(tmp_path, Marked(), (torch.zeros(2, 3),), shapes=(rows(),))
    with pytest.raises(
        InvalidInput, match=r"output .total. of model.pt2 has no axes"
    ):
        ENGINE.signature(tmp_path)
    with pytest.raises(BundleCorrupt, match="'total'"):
        ENGINE.open(tmp_path, 1)


def test_an_answer_that_is_its_input_is_a_copy(tmp_path):
    saved(tmp_path, torch.nn.Identity(), (torch.zeros(2, 3),), shapes=(rows(),))
    given = np.ones((2, 3), np.float32)
    (answer,) = ENGINE.open(tmp_path, 1).run({"input": given}).values()
    given[:] = 0
    assert (answer == 1).all()


def test_a_task_is_served_and_replays_its_golden_set(pictures, tmp_path):
    draft, trusted = pictures, manifest(trusted=True)
    inputs = [png(np.full((2, 2), 51)), png(np.full((2, 2), 204))]
    model = Predictor(draft, trusted)
    write_golden(draft, inputs, [model.predict([raw])[0] for raw in inputs])
    bundle.seal(draft, trusted, tmp_path / "b")
    answer = predictor.load(tmp_path / "b").predict(
        [png(np.full((2, 2), 204))]
    )[0]
    assert answer[0]["score"] == pytest.approx(0.8)


@pytest.mark.parametrize("engine", ["", "torch"])
def test_nobody_opens_what_nobody_trusts(pictures, monkeypatch, engine):
    monkeypatch.setattr(torch.export, "load", None)
    own = {"": manifest(), "torch": a_manifest()}[engine]
    with pytest.raises(
        InvalidInput, match=r"'torch' may run code.*model.pt2.*--trust"
    ):
        Predictor(pictures, own, engine=engine)


def test_without_torch_it_says_what_to_install(pictures):
    code = (
        "import sys\nfrom pathlib import Path\nsys.modules['torch'] = None\n"
        "from modelmill.engines.base import engine_named\n"
        "from modelmill.errors import NotInstalled\n"
        "try: engine_named('torch').open(Path(sys.argv[1]), 1)\n"
        "except NotInstalled as error: print(error.message)"
    )
    run = [sys.executable, "-c", code, str(pictures)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert "pip install 'modelmill[train]'" in done.stdout, done.stderr
