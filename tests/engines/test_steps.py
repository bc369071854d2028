"""Models that answer in steps: their weights in 8 bits, and that company changes nothing."""

import numpy as np
import pytest

from modelmill import predictor
from modelmill.bundle import open_bundle
from modelmill.errors import InvalidInput
from modelmill.predictor import Predictor
from modelmill.tasks.networks.decoder_graph import quantised
from tests.helpers.text_bundles import text_bundle, writing_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return writing_bundle(tmp_path_factory.mktemp("writer") / "b")


def opened(folder, precision):
    return Predictor(folder, open_bundle(folder), precision=precision)


def test_packed_weights_are_half_a_step_off_at_most():
    weights = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    weights[0, :32] = 0
    whole, scales = quantised(weights)
    again = ((whole.astype(np.float32) - 128) * scales[:, :, None]).reshape(
        weights.shape
    )
    assert (np.abs(again - weights) <= scales.repeat(32, 1) / 2 + 1e-6).all()
    assert (whole[0, 0] == 128).all()


def test_int8_says_nearly_the_same_in_less_memory(folder):
    plain, small = opened(folder, "fp32"), opened(folder, "int8")
    ids = np.array([[3, 9, 12, 7, 20, 4]])
    one, other = (
        model.session.run({"ids": ids})["logits"] for model in (plain, small)
    )
    assert not np.array_equal(one, other)
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99
    sizes = [
        (folder / name / "model.onnx").stat().st_size for name in ("", "int8")
    ]
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_batch_mates_change_no_answer(folder, precision):
    model = opened(folder, precision)
    prompts = ["the mill", "a", "corn and", "zzzzzz", "the", "wind"]
    alone = [
        model.predict([prompt], {"max_new_tokens": 30})[0] for prompt in prompts
    ]
    assert model.predict(prompts, {"max_new_tokens": 30}) == alone


def test_int8_has_a_golden_set_of_its_own(folder):
    assert predictor.load(folder, precision="int8").golden.name == "int8"


def test_a_model_without_such_weights_says_so(folder, tmp_path):
    with pytest.raises(InvalidInput, match="fp32"):
        predictor.load(text_bundle(tmp_path / "b"), precision="int8")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        (bare / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InvalidInput, match="without weights in int8"):
        Predictor(bare, open_bundle(folder), precision="int8")


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (np.array([[3, 30]]), "ids are whole numbers from 0 to 29"),
        (np.array([[-1]]), "ids are whole numbers from 0 to 29"),
        (np.zeros((0, 4), np.int64), "shape"),
        (np.zeros((1, 0), np.int64), "shape"),
        (np.zeros((1, 999), np.int64), "1 to 128"),
        (
            np.zeros((30_000, 100), np.int64),
            "the logits of 3,000,000 tokens are too large",
        ),
    ],
)
def test_ids_that_can_not_be_read_are_refused_in_words(folder, ids, says):
    with pytest.raises(InvalidInput, match=says):
        opened(folder, "fp32").session.run({"ids": ids})
