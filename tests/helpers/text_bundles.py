"""Small real bundles of the tasks that take or give texts."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from modelmill import bundle
from modelmill.predictor import Predictor, write_golden
from modelmill.tasks import feature_extraction
from modelmill.tasks.decoding import lossless_tokenizer, text_tokenizer
from modelmill.tasks.decoding.tokenizer import TOKENIZER
from modelmill.types import (
    TensorSpec,
)
from tests.helpers.bundles import a_manifest
from tests.helpers.datasets import tones
from tests.helpers.pictures import png

WRITING: dict[str, Any] = {
    "labels": [],
    "inputs": [TensorSpec(name="ids", datatype="INT64", shape=[-1, -1])],
    "outputs": [TensorSpec(name="logits", datatype="FP32", shape=[-1, -1, 30])],
}


def writing_bundle(target: Path, context: int = 128) -> Path:
    """A sealed bundle that writes letters: a decoder of two blocks with weights by chance."""
    import onnx

    from modelmill.engines.onnx import INT8
    from modelmill.tasks.networks.decoder_graph import decoder

    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz "
    tokenizer = lossless_tokenizer.train([letters], lossless_tokenizer.Units())
    tokenizer.save(draft / TOKENIZER)
    rng, width = np.random.default_rng(0), 64
    assert tokenizer.size == 30

    def drawn(*shape: int) -> Any:
        return (rng.normal(size=shape) * 0.3).astype(np.float32)

    weights = {
        "embedding.weight": drawn(30, width),
        "last.weight": np.ones(width, np.float32),
        "last.bias": np.full(width, 0.2, np.float32),
    }
    for layer in range(2):
        for name, shape in {
            "first.weight": (width,),
            "first.bias": (width,),
            "second.weight": (width,),
            "second.bias": (width,),
            "attention.inside.weight": (3 * width, width),
            "attention.inside.bias": (3 * width,),
            "attention.outside.weight": (width, width),
            "attention.outside.bias": (width,),
            "body.0.weight": (4 * width, width),
            "body.0.bias": (4 * width,),
            "body.2.weight": (width, 4 * width),
            "body.2.bias": (width,),
        }.items():
            weights[f"blocks.{layer}.{name}"] = drawn(*shape)
    weights["embedding.weight"][:3] -= 5  # what is special is never said
    (draft / INT8).mkdir()
    for folder in (draft, draft / INT8):
        graph = decoder(
            weights, layers=2, heads=4, positions=context, int8=folder != draft
        )
        onnx.save(graph, folder / "model.onnx")
    how = {"units": "char", "context": context, "tokens": 30}
    manifest = a_manifest(task="text-generation", **WRITING, preprocessing=how)
    for precision, folder in (("", draft), (INT8, draft / INT8)):
        write_golden(
            folder,
            ["the mill"],
            Predictor(draft, manifest, precision=precision).predict(
                ["the mill"]
            ),
        )
    bundle.seal(draft, manifest, target)
    return target


def vector_bundle(target: Path) -> Path:
    """A sealed bundle whose vector is the 4 pixels of a 2x2 grey picture, 1 added to each, at
    length 1.
    """
    from onnx import TensorProto, helper, numpy_helper

    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        node("Reshape", ["floats", "shape"], ["flat"]),
        node("Add", ["flat", "one"], ["above"]),
        node("LpNormalization", ["above"], ["embedding"], axis=1, p=2),
    ]
    constants = [numpy_helper.from_array(np.array([-1, 4], np.int64), "shape")]
    constants.append(numpy_helper.from_array(np.array([1], np.float32), "one"))
    image = helper.make_tensor_value_info(
        "image", TensorProto.UINT8, ["batch", 2, 2, 1]
    )
    vector = helper.make_tensor_value_info(
        "embedding", TensorProto.FLOAT, ["batch", 4]
    )
    body = helper.make_graph(nodes, "pixels", [image], [vector], constants)
    graph = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    (draft / "model.onnx").write_bytes(graph.SerializeToString())
    manifest = a_manifest(
        **vector_signature(),
        preprocessing={**a_manifest().preprocessing, "dimensions": 4},
    )
    inputs = [png([[0, 255], [0, 255]]), png([[9, 9], [200, 0]])]
    write_golden(
        draft,
        inputs,
        [Predictor(draft, manifest).predict([raw])[0] for raw in inputs],
    )
    bundle.seal(draft, manifest, target)
    return target


def vector_signature() -> dict[str, Any]:
    """What a manifest says of a model that answers vectors of 4 numbers."""
    outputs = [TensorSpec(name="embedding", datatype="FP32", shape=[-1, 4])]
    return {"task": "image-feature-extraction", "outputs": outputs}


def text_vector_bundle(target: Path) -> Path:
    """A sealed bundle whose vector of a text is the sum of those of its words, at length 1."""
    from onnx import TensorProto, helper, numpy_helper

    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    how = feature_extraction.Preprocessing(max_length=6, dimensions=8)
    how = feature_extraction.TASK.prepare(
        [("a cat sat", "a dog sat")] * 3, how, draft
    )
    table = (
        np.random.default_rng(0).normal(size=(how.tokens, 8)).astype(np.float32)
    )
    table[0] = 0
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 6])
    vector = helper.make_tensor_value_info(
        "embedding", TensorProto.FLOAT, ["batch", 8]
    )
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["rows"]),
        node("ReduceSum", ["rows", "axes"], ["sum"], keepdims=0),
        node("LpNormalization", ["sum"], ["embedding"], axis=1, p=2),
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
    ]
    body = helper.make_graph(nodes, "words", [ids], [vector], constants)
    graph = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    (draft / "model.onnx").write_bytes(graph.SerializeToString())
    manifest = a_manifest(
        task="feature-extraction",
        inputs=[TensorSpec(name="ids", datatype="INT64", shape=[-1, 6])],
        outputs=[TensorSpec(name="embedding", datatype="FP32", shape=[-1, 8])],
        preprocessing=msgspec.to_builtins(how),
        labels=[],
    )
    write_golden(
        draft, ["a cat"], Predictor(draft, manifest).predict(["a cat"])
    )
    bundle.seal(draft, manifest, target)
    return target


def text_bundle(target: Path) -> Path:
    """A sealed bundle of texts whose graph fails on ids that are not in its table of `tokens`
    rows.
    """
    from onnx import TensorProto, helper, numpy_helper

    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    how = text_tokenizer.prepare(
        ["good film", "bad film"] * 3,
        text_tokenizer.Preprocessing(max_length=4),
        draft,
    )
    table = np.zeros((how.tokens, 2), np.float32)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 4])
    scores = helper.make_tensor_value_info(
        "scores", TensorProto.FLOAT, ["batch", 2]
    )
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["rows"]),
        node("ReduceSum", ["rows", "axes"], ["sum"], keepdims=0),
        node("Softmax", ["sum"], ["scores"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
    ]
    body = helper.make_graph(nodes, "table", [ids], [scores], constants)
    graph = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    (draft / "model.onnx").write_bytes(graph.SerializeToString())
    manifest = a_manifest(
        task="text-classification",
        inputs=[TensorSpec(name="ids", datatype="INT64", shape=[-1, 4])],
        preprocessing=msgspec.to_builtins(how),
        labels=["bad", "good"],
    )
    write_golden(
        draft, ["good film"], Predictor(draft, manifest).predict(["good film"])
    )
    bundle.seal(draft, manifest, target)
    return target


SPEECH: dict[str, Any] = {
    "labels": ["a", "b"],
    "inputs": [TensorSpec(name="audio", datatype="FP32", shape=[-1, -1])],
    "outputs": [TensorSpec(name="scores", datatype="FP32", shape=[-1, -1, 3])],
}


def speech_bundle(target: Path) -> Path:
    """A sealed bundle that hears `tones`: for every 160 samples nothing, a or b, by how often they
    change sign.
    """
    from onnx import TensorProto, helper, numpy_helper

    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    node = helper.make_node
    time = np.arange(160) / 8000
    waves = [
        wave(2 * np.pi * pitch * time)
        for pitch in (400, 1500)
        for wave in (np.cos, np.sin)
    ]
    constants = [
        numpy_helper.from_array(
            np.stack(waves).astype(np.float32)[:, None], "waves"
        ),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(
            np.array([[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]], np.float32).T,
            "sums",
        ),
        numpy_helper.from_array(np.array([50, 0, 0], np.float32), "nothing"),
    ]
    nodes = [
        node("Unsqueeze", ["audio", "one"], ["row"]),
        node(
            "Conv",
            ["row", "waves"],
            ["parts"],
            strides=[160],
            kernel_shape=[160],
        ),
        node("Mul", ["parts", "parts"], ["power"]),
        node("Transpose", ["power"], ["places"], perm=[0, 2, 1]),
        node("MatMul", ["places", "sums"], ["heard"]),
        node("Add", ["heard", "nothing"], ["levels"]),
        node("LogSoftmax", ["levels"], ["scores"], axis=2),
    ]
    audio = helper.make_tensor_value_info(
        "audio", TensorProto.FLOAT, ["batch", "samples"]
    )
    scores = helper.make_tensor_value_info(
        "scores", TensorProto.FLOAT, ["batch", "places", 3]
    )
    body = helper.make_graph(nodes, "tones", [audio], [scores], constants)
    graph = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    (draft / "model.onnx").write_bytes(graph.SerializeToString())
    how = {"rate": 8000, "seconds": 1.0}
    manifest = a_manifest(
        task="automatic-speech-recognition", **SPEECH, preprocessing=how
    )
    raw = tones("ab")
    write_golden(draft, [raw], Predictor(draft, manifest).predict([raw]))
    bundle.seal(draft, manifest, target)
    return target
