"""Calls of several callers share a batch only if the rows of the model are independent."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from modelmill import bundle, independence, predictor
from modelmill.independence import can_be_tried, rows_independent
from modelmill.serve.tensors import array_of, tensor_of
from modelmill.serve.wire import Call
from modelmill.serve.worker import Worker
from modelmill.types import ALONE, TensorSpec
from tests.helpers.bundles import a_manifest, mask_bundle, picture_bundle
from tests.helpers.text_bundles import (
    text_bundle,
    text_vector_bundle,
    vector_bundle,
    writing_bundle,
)


def bundle_of(folder, nodes, shape, weights=(), kind=TensorProto.FLOAT):
    """A sealed bundle without a task that computes y from x."""
    draft = folder / "draft"
    draft.mkdir()
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", kind, shape)],
        [value("y", kind, shape)],
        list(weights),
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    (draft / "model.onnx").write_bytes(model.SerializeToString())
    datatype = "FP32" if kind == TensorProto.FLOAT else "INT64"
    spec = [-1 if isinstance(side, str) else side for side in shape]
    manifest = a_manifest(
        task="",
        engine="onnx",
        inputs=[TensorSpec(name="x", datatype=datatype, shape=spec)],
        outputs=[TensorSpec(name="y", datatype=datatype, shape=spec)],
        preprocessing={},
        labels=[],
    )
    bundle.seal(draft, manifest, folder / "bundle")
    return predictor.load(folder / "bundle")


def weights(name, array):
    return helper.make_tensor(
        name, TensorProto.FLOAT, array.shape, array.flatten().tolist()
    )


def whole_batch(folder):
    """Subtracts the largest value of the whole batch."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=1),
        helper.make_node("Sub", ["x", "most"], ["y"]),
    ]
    return bundle_of(folder, nodes, ["n", 3])


def time_first(folder):
    """A running sum along the first axis, as in a model of sequences without a batch."""
    axis = helper.make_tensor("axis", TensorProto.INT64, [], [0])
    return bundle_of(
        folder,
        [helper.make_node("CumSum", ["x", "axis"], ["y"])],
        ["n"],
        [axis],
    )


def dynamically_quantised(folder):
    """One scale for the whole batch, from its largest value."""
    nodes = [
        helper.make_node(
            "DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]
        ),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    return bundle_of(folder, nodes, ["n", 3])


def whole_batch_of_integers(folder):
    """Subtracts the largest of whole numbers."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=1),
        helper.make_node("Sub", ["x", "most"], ["y"]),
    ]
    return bundle_of(folder, nodes, ["n", 3], kind=TensorProto.INT64)


def scaled_by_the_batch(folder):
    """Multiplies whole numbers by the largest of the batch: ones alone would not show it."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=1),
        helper.make_node("Mul", ["x", "most"], ["y"]),
    ]
    return bundle_of(folder, nodes, ["n", 3], kind=TensorProto.INT64)


def few_words(folder):
    """Looks up token ids in a table of five."""
    table = helper.make_tensor("table", TensorProto.INT64, [5], [3, 1, 4, 1, 5])
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    return bundle_of(folder, [node], ["n", 3], [table], kind=TensorProto.INT64)


def linear(folder):
    """A matrix product: what nearly all networks are made of."""
    matrix = np.random.default_rng(1).normal(size=(3, 3))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return bundle_of(folder, [node], ["n", 3], [weights("w", matrix)])


DEPENDENT = [whole_batch, time_first, dynamically_quantised]


@pytest.mark.parametrize(
    "make", [*DEPENDENT, whole_batch_of_integers, scaled_by_the_batch]
)
def test_a_model_that_mixes_its_rows_is_found(make, tmp_path):
    assert not rows_independent(make(tmp_path))


@pytest.mark.parametrize(
    ("make", "why", "said"),
    [
        (linear, "", independence.SHARED),
        (whole_batch, independence.DEPENDENT, ALONE),
    ],
)
def test_why_calls_share_no_batch_is_said_in_words(make, why, said, tmp_path):
    model = make(tmp_path)
    assert independence.why_alone(model) == why
    assert independence.batches(model).startswith(said)
    assert independence.batches(model).endswith(why)


def test_text_generation_needs_no_proof_of_independence(tmp_path):
    model = predictor.load(writing_bundle(tmp_path / "bundle"))
    assert independence.why_alone(model) == ""
    assert "grow beside one another" in independence.batches(model)


def test_a_slow_row_is_not_tried_beside_others(tmp_path, monkeypatch):
    monkeypatch.setattr(independence, "SLOW_SECONDS", 0.0)
    assert independence.why_alone(linear(tmp_path)) == independence.SLOW


def test_a_matrix_product_is_independent(tmp_path):
    assert rows_independent(linear(tmp_path))


def test_a_model_of_few_token_ids_is_tried_with_small_ones(tmp_path):
    assert rows_independent(few_words(tmp_path))


@pytest.mark.parametrize(
    "make",
    [
        picture_bundle,
        text_bundle,
        vector_bundle,
        text_vector_bundle,
        mask_bundle,
    ],
)
def test_models_of_tasks_are_independent(make, tmp_path):
    assert rows_independent(predictor.load(make(tmp_path / "bundle")))


@pytest.mark.parametrize("make", DEPENDENT)
def test_answers_do_not_depend_on_other_calls_in_the_frame(make, tmp_path):
    model = make(tmp_path)
    worker = Worker(model, 1, rows_independent(model))
    rows = 3 if model.manifest.inputs[0].shape == [-1] else 1
    shape = (3,) if rows == 3 else (1, 3)
    calls = [
        Call(
            number,
            None,
            [tensor_of("x", np.full(shape, 10.0**number, np.float32))],
            {},
        )
        for number in range(-2, 4)
    ]
    together = worker.answer(calls).answers
    for call, answer in zip(calls, together, strict=True):
        alone = worker.answer([call]).answers[0]
        assert answer.code == "", answer.message
        np.testing.assert_array_equal(
            array_of(answer.tensors[0]), array_of(alone.tensors[0])
        )


class Panic(BaseException):
    """As pyo3 raises it."""


@pytest.mark.parametrize("failure", [OverflowError("no"), Panic("no")])
def test_an_engine_that_fails_on_extreme_values_is_not_proved(
    failure, tmp_path, caplog
):
    model = linear(tmp_path)
    run = model.infer

    def infer(batch):
        if np.abs(batch["x"]).max() > 100:
            raise failure
        return run(batch)

    model.infer = infer
    assert not rows_independent(model)
    assert "could not be tried" in caplog.text


def test_a_wish_to_end_is_not_held_up_by_the_proof(tmp_path):
    model = linear(tmp_path)

    def infer(batch):
        raise SystemExit

    model.infer = infer
    with pytest.raises(SystemExit):
        rows_independent(model)


def test_inputs_that_values_can_not_be_made_up_for_are_not_tried():
    def takes(shape, datatype):
        spec = TensorSpec(name="x", datatype=datatype, shape=shape)
        return can_be_tried(a_manifest(inputs=[spec]))

    assert takes([-1, 3], "FP32")
    assert not takes([-1], "BYTES")
    assert not takes([-1, 3], "QUATERNION")
    assert not takes([], "FP32")
