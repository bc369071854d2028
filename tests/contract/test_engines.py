"""Every engine: opens a folder, runs named arrays of any batch, and tells a bad model from a bad input."""

import numpy as np
import pytest

from modelmill import plugins
from modelmill.engines.base import NUMPY, engine_named
from modelmill.errors import BundleCorrupt, InvalidInput, ModelFailed, NotFound
from tests.making import brightness_graph

ENGINES = plugins.names("engines")


@pytest.fixture(params=ENGINES)
def engine(request):
    return engine_named(request.param)


@pytest.fixture
def folder(engine, tmp_path):
    """The files of a tiny model in the engine's form."""
    files = engine.convert(brightness_graph(), [], [], tmp_path)
    assert files
    assert all((tmp_path / name).is_file() for name in files)
    return tmp_path


def pictures(count, height=2, width=2):
    return {"image": np.arange(count * height * width, dtype=np.uint8).reshape(count, height, width, 1)}


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_named_arrays_go_in_and_come_out(engine, folder, batch):
    answer = engine.open(folder, 1).run(pictures(batch))
    assert answer.keys() == {"scores"}
    assert answer["scores"].shape == (batch, 2)
    assert answer["scores"].dtype == np.float32
    bright = pictures(batch)["image"].mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(answer["scores"][:, 1], bright, atol=1e-6)


def test_threads_change_nothing(engine, folder):
    one, two = (engine.open(folder, threads).run(pictures(5))["scores"] for threads in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(
    "arrays",
    [
        {"image": np.zeros((2, 2), np.uint8)},
        {"image": np.zeros((1, 2, 2, 3), np.uint8)},
        {"image": np.zeros((1, 2, 2, 1), np.float32)},
        {"picture": np.zeros((1, 2, 2, 1), np.uint8)},
        {},
    ],
)
def test_arrays_of_another_signature_fail_in_words(engine, folder, arrays):
    session = engine.open(folder, 1)
    with pytest.raises(ModelFailed, match="the model failed"):
        session.run(arrays)
    assert session.run(pictures(1))["scores"].shape == (1, 2)  # and the session lives on


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "garbage"])
def test_a_file_that_is_no_model_is_corrupt(engine, folder, how):
    for path in folder.iterdir():
        data = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "garbage": b"\xff" * 64}.get(how, b""))
        if how == "missing":
            path.unlink()
    with pytest.raises(BundleCorrupt):
        engine.open(folder, 1)


def test_a_device_that_it_can_not_use_is_refused(engine, folder):
    with pytest.raises(InvalidInput, match="abacus"):
        engine.open(folder, 1, "abacus")


def test_a_torch_network_is_converted_with_a_free_batch(engine, tmp_path):
    import warnings

    import torch

    from modelmill.types import TensorSpec

    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Softmax(1))
    inputs = [TensorSpec(name="x", datatype="FP32", shape=[-1, 3])]
    outputs = [TensorSpec(name="scores", datatype="FP32", shape=[-1, 2])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine.convert(network, inputs, outputs, tmp_path)
    session = engine.open(tmp_path, 1)
    for batch in (1, 7):
        x = np.random.default_rng(batch).normal(size=(batch, 3)).astype(np.float32)
        with torch.inference_mode():
            wanted = network(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(session.run({"x": x})["scores"], wanted, atol=1e-5)


def test_an_unknown_engine_is_answered_with_those_that_exist():
    with pytest.raises(NotFound, match="onnx"):
        engine_named("tensorrt9")


def test_every_datatype_has_one_numpy_type():
    assert len({np.dtype(kind) for kind in NUMPY.values()}) == len(NUMPY)
