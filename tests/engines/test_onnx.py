"""ONNX Runtime: what its Python interface can't carry is refused in words."""

import ml_dtypes
import numpy as np
import pytest

from modelmill.engines import onnx
from modelmill.errors import InvalidInput, ModelFailed
from tests.helpers.bundles import identity_graph


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "model.onnx").write_bytes(
        identity_graph("BYTES").SerializeToString()
    )
    return onnx.ENGINE.open(tmp_path, 1)


@pytest.mark.parametrize(
    ("element", "says"),
    [
        (b"\xff", "not valid UTF-8 .byte 0"),
        (b"ab\xc3", "not valid UTF-8 .byte 2"),
        (b"\xed\xa0\x80", "not valid UTF-8"),  # half a surrogate pair
        ("a text", "have to be bytes"),
        (None, "have to be bytes"),
        (7, "have to be bytes"),
    ],
)
def test_an_element_that_no_onnx_string_can_hold_is_refused(
    texts, element, says
):
    with pytest.raises(InvalidInput, match=says):
        texts.run({"x": np.array([[b"good", element, b""]], object)})


@pytest.mark.parametrize(
    "array",
    [
        np.array([[b"a", b"b", b"c"]]),
        np.array([["a", "b", "c"]]),
        np.array([[1, 2, 3]]),
    ],
)
def test_bytes_come_as_objects_only(texts, array):
    with pytest.raises(ModelFailed, match="array of objects"):
        texts.run({"x": array})


def mixed(outputs):
    """Texts, bfloat16 and floats through one graph."""
    from onnx import TensorProto, helper

    kinds = {
        "s": TensorProto.STRING,
        "b": TensorProto.BFLOAT16,
        "f": TensorProto.FLOAT,
    }
    nodes = [
        helper.make_node("Identity", [name], [f"{name}_out"])
        for name in outputs
    ]
    inputs = [
        helper.make_tensor_value_info(name, kind, ["n"])
        for name, kind in kinds.items()
    ]
    results = [
        helper.make_tensor_value_info(f"{name}_out", kinds[name], ["n"])
        for name in outputs
    ]
    body = helper.make_graph(nodes, "mixed", inputs, results)
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


def test_one_model_can_take_texts_and_bfloat16(tmp_path):
    (tmp_path / "model.onnx").write_bytes(mixed("sf").SerializeToString())
    arrays = {
        "s": np.array([b"one", b"two"], object),
        "b": np.ones(2, ml_dtypes.bfloat16),
        "f": np.array([1, 2], np.float32),
    }
    answer = onnx.ENGINE.open(tmp_path, 1).run(arrays)
    assert answer["s_out"].tolist() == [b"one", b"two"]
    assert answer["f_out"].tolist() == [1, 2]


def test_texts_in_and_bfloat16_out_is_refused_before_it_is_served(tmp_path):
    (tmp_path / "model.onnx").write_bytes(mixed("sb").SerializeToString())
    for refused in (
        lambda: onnx.ENGINE.signature(tmp_path),
        lambda: onnx.ENGINE.open(tmp_path, 1),
    ):
        with pytest.raises(
            InvalidInput, match="BYTES inputs can't have BF16 outputs"
        ):
            refused()


def test_a_model_without_inputs_is_refused(tmp_path):
    from onnx import TensorProto, helper

    node = helper.make_node("RandomNormal", [], ["y"], shape=[1, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    graph = helper.make_model(
        helper.make_graph([node], "g", [], [y]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(InvalidInput, match="no inputs"):
        onnx.ENGINE.signature(tmp_path)


def test_a_classifier_of_scikit_learn_gets_an_error_that_says_how_to_convert_it(
    tmp_path,
):
    from onnx import TensorProto, helper

    kind = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    node = helper.make_node(
        "ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[1, 2]
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_value_info("y", helper.make_sequence_type_proto(kind))
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_model(
        helper.make_graph([node], "g", [x], [y]),
        opset_imports=sets,
        ir_version=10,
    )
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(InvalidInput, match="zipmap=False"):
        onnx.ENGINE.signature(tmp_path)
