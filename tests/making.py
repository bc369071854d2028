"""Small real things for tests: pictures, bundles, data sets, a worker's socket, a gateway to knock
at.
"""

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import numpy as np
from PIL import Image

from modelmill import bundle
from modelmill.data.base import open_source
from modelmill.data.check import examine
from modelmill.data.formats import detect, labelled, labels
from modelmill.data.pack import pack
from modelmill.plugins import load
from modelmill.predictor import Predictor, write_golden
from modelmill.predictor import load as load_bundle
from modelmill.protocols.app import App
from modelmill.serve.gateway import Gateway
from modelmill.serve.wire import HEAD, Answer, Batch, Call, frame, read_calls
from modelmill.serve.worker import Worker
from modelmill.settings import Limits
from modelmill.tasks import feature_extraction
from modelmill.tasks.base import task_named
from modelmill.tasks.decoding import audio_decoder, lossless_tokenizer, text_tokenizer
from modelmill.tasks.decoding.tokenizer import TOKENIZER
from modelmill.types import (
    KeyInfo,
    Lineage,
    Manifest,
    ServedVersion,
    Snapshot,
    TensorSpec,
)
from modelmill.wire.http1.server import guarded

Answering = Callable[[list[Call]], Awaitable[list[Answer] | Batch | None]]


def png(pixels: Any) -> bytes:
    """Pixels as a PNG file."""
    return encoded(Image.fromarray(np.asarray(pixels, np.uint8)))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def a_manifest(**changed: Any) -> Manifest:
    """A manifest of a classifier of 2x2 grey pictures."""
    lineage = Lineage(
        dataset="spots",
        data_digest="0" * 64,
        recipe="cnn",
        settings={},
        seed=0,
        code_version="0",
        job=1,
        created="",
    )
    values = {
        "task": "image-classification",
        "engine": "onnx",
        "inputs": [TensorSpec(name="image", datatype="UINT8", shape=[-1, 2, 2, 1])],
        "outputs": [TensorSpec(name="scores", datatype="FP32", shape=[-1, 2])],
        "preprocessing": {
            "height": 2,
            "width": 2,
            "color": "grey",
            "mean": [0.5],
            "std": [0.5],
        },
        "labels": ["dark", "bright"],
        "lineage": lineage,
        "metrics": {"accuracy": 1.0},
    }
    return Manifest(**(values | changed))


def plain_bundle(target: Path, **changed: Any) -> Path:
    """A sealed bundle that holds bytes only: enough for what never loads it."""
    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    (draft / "model.onnx").write_bytes(b"weights" * 10)
    (draft / "golden.json").write_text("[]")
    bundle.seal(draft, a_manifest(**changed), target)
    return target


def brightness_graph(gain: float = 1.0) -> Any:
    """scores = (1 - mean, mean) of uint8 pictures of any size, 0..1."""
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, *values: float) -> Any:
        return numpy_helper.from_array(np.array(values, np.float32), name)

    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        node("Mul", ["mean", "gain"], ["bright"]),
        node("Sub", ["one", "bright"], ["dark"]),
        node("Concat", ["dark", "bright"], ["scores"], axis=1),
    ]
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    image = helper.make_tensor_value_info(
        "image", TensorProto.UINT8, ["batch", "height", "width", 1]
    )
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])
    body = helper.make_graph(
        nodes,
        "brightness",
        [image],
        [scores],
        [axes, constant("gain", gain / 255), constant("one", 1.0)],
    )
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


def identity_graph(datatype: str, *shape: int | str) -> Any:
    """y = x, of any data type of the Open Inference Protocol."""
    from onnx import TensorProto, helper

    other = {
        "FP16": "FLOAT16",
        "BF16": "BFLOAT16",
        "FP32": "FLOAT",
        "FP64": "DOUBLE",
        "BYTES": "STRING",
    }
    kind = TensorProto.DataType.Value(other.get(datatype, datatype))
    axes = list(shape or ("batch", 3))
    x, y = (helper.make_tensor_value_info(name, kind, axes) for name in "xy")
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y]
    )
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


def picture_bundle(target: Path, gain: float = 1.0) -> Path:
    """A sealed bundle that says how bright a 2x2 grey picture is."""
    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    (draft / "model.onnx").write_bytes(brightness_graph(gain).SerializeToString())
    manifest = a_manifest()
    inputs = [png(np.full((2, 2), 51)), png(np.full((2, 2), 204))]
    model = Predictor(draft, manifest)
    write_golden(draft, inputs, [model.predict([raw])[0] for raw in inputs])
    bundle.seal(draft, manifest, target)
    return target


def mask_bundle(target: Path) -> Path:
    """A sealed bundle that tells bright pixels from dark ones in grey pictures of 4x6 pixels."""
    from onnx import TensorProto, helper, numpy_helper

    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    node, grey = helper.make_node, ["batch", 4, 6]
    nodes = [
        node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        node("ReduceMax", ["floats", "axes"], ["grey"], keepdims=0),
        node("Div", ["grey", "top"], ["bright"]),
        node("Sub", ["one", "bright"], ["dark"]),
        node("Greater", ["bright", "dark"], ["more"]),
        node("Cast", ["more"], ["mask"], to=TensorProto.UINT8),
        node("Max", ["bright", "dark"], ["scores"]),
    ]
    values = {"axes": np.array([3]), "top": np.float32(255), "one": np.float32(1)}
    constants = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in values.items()
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [*grey, 1])
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, grey),
        helper.make_tensor_value_info("mask", TensorProto.UINT8, grey),
    ]
    body = helper.make_graph(nodes, "bright", [image], outputs, constants)
    graph = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    (draft / "model.onnx").write_bytes(graph.SerializeToString())
    manifest = a_manifest(
        task="image-segmentation",
        inputs=[TensorSpec(name="image", datatype="UINT8", shape=[-1, 4, 6, 1])],
        outputs=[
            TensorSpec(name="scores", datatype="FP32", shape=[-1, 4, 6]),
            TensorSpec(name="mask", datatype="UINT8", shape=[-1, 4, 6]),
        ],
        preprocessing={
            "height": 4,
            "width": 6,
            "color": "grey",
            "mean": [0.5],
            "std": [0.5],
        },
    )
    raw = png(np.full((8, 12), 204))
    write_golden(draft, [raw], Predictor(draft, manifest).predict([raw]))
    bundle.seal(draft, manifest, target)
    return target


HOLES: dict[str, Any] = {
    "inputs": [TensorSpec(name="image", datatype="UINT8", shape=[-1, -1, -1, 4])],
    "outputs": [TensorSpec(name="repaired", datatype="FP32", shape=[-1, -1, -1, 3])],
}


def hole_bundle(target: Path) -> Path:
    """A sealed bundle that fills pictures in: its answer is the mask it was given, white where
    pixels are missing.
    """
    from onnx import TensorProto, helper, numpy_helper

    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    image = helper.make_tensor_value_info(
        "image", TensorProto.UINT8, ["batch", "height", "width", 4]
    )
    repaired = helper.make_tensor_value_info(
        "repaired", TensorProto.FLOAT, ["batch", "height", "width", 3]
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["levels", "white"], ["values"]),
        helper.make_node("Gather", ["values", "planes"], ["repaired"], axis=3),
    ]
    constants = [
        numpy_helper.from_array(np.array(255, np.float32), "white"),
        numpy_helper.from_array(np.array([3, 3, 3], np.int64), "planes"),
    ]
    body = helper.make_graph(nodes, "holes", [image], [repaired], constants)
    graph = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    (draft / "model.onnx").write_bytes(graph.SerializeToString())
    how = {"repair": "inpaint", "color": "rgb", "multiple": 8}
    manifest = a_manifest(task="image-to-image", **HOLES, preprocessing=how, labels=[])
    hole = png(np.dstack([np.full((8, 8, 3), 90), np.eye(8) * 255]))
    write_golden(draft, [hole], Predictor(draft, manifest).predict([hole]))
    bundle.seal(draft, manifest, target)
    return target


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
            Predictor(draft, manifest, precision=precision).predict(["the mill"]),
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
    vector = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 4])
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
        draft, inputs, [Predictor(draft, manifest).predict([raw])[0] for raw in inputs]
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
    how = feature_extraction.TASK.prepare([("a cat sat", "a dog sat")] * 3, how, draft)
    table = np.random.default_rng(0).normal(size=(how.tokens, 8)).astype(np.float32)
    table[0] = 0
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 6])
    vector = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 8])
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
    write_golden(draft, ["a cat"], Predictor(draft, manifest).predict(["a cat"]))
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
        ["good film", "bad film"] * 3, text_tokenizer.Preprocessing(max_length=4), draft
    )
    table = np.zeros((how.tokens, 2), np.float32)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 4])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])
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


def picture_folder(root: Path, count: int = 40, side: int = 8) -> Path:
    """Pictures in folders `left` and `right`, after the half that is bright; no two are the
    same.
    """
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = ("left", "right")[number % 2]
        pixels = rng.integers(0, 60, (side, side), np.uint8)
        half = slice(0, side // 2) if kind == "left" else slice(side // 2, side)
        pixels[:, half] += 150
        path = root / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return root


def box_folder(root: Path, count: int = 40, side: int = 64) -> Path:
    """Pascal VOC: a `red` or a `blue` rectangle on grey noise in each picture; no two are the
    same.
    """
    rng = np.random.default_rng(0)
    for number in range(count):
        label = ("red", "blue")[number % 2]
        pixels = rng.integers(70, 110, (side, side, 3), np.uint8)
        width, height = rng.integers(side // 4, side // 2, 2).tolist()
        left, top = rng.integers(0, side - width), rng.integers(0, side - height)
        pixels[top : top + height, left : left + width] = (
            (220, 40, 40) if label == "red" else (40, 40, 220)
        )
        voc_picture(
            root,
            f"{number}",
            png(pixels),
            (side, side),
            [(label, left, top, left + width, top + height)],
        )
    return root


def voc_picture(
    root: Path,
    name: str,
    data: bytes,
    size: tuple[int, int],
    boxes: list[Any],
    kind: str = "png",
) -> None:
    """A picture and its XML; boxes are (label, xmin, ymin, xmax, ymax) from 0, the far corner
    excluded.
    """
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{xmin + 1}</xmin><ymin>{ymin + 1}</ymin>"
        f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
        for label, xmin, ymin, xmax, ymax in boxes
    )
    width, height = size
    xml = (
        f"<annotation><filename>{name}.{kind}</filename><size><width>{width}</width><height>{height}</height></size>"
        f"{objects}</annotation>"
    )
    for folder, file, content in (
        ("JPEGImages", f"{name}.{kind}", data),
        ("Annotations", f"{name}.xml", xml.encode()),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / file).write_bytes(content)


def mask_folder(root: Path, count: int = 40, side: int = 24) -> Path:
    """Bright boxes on dark ground, with masks of the classes `ground` and `shape`; no two are the
    same.
    """
    rng = np.random.default_rng(0)
    for place in ("images", "masks"):
        (root / place).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = rng.integers(0, 60, (side, side, 3), np.uint8)
        mask = np.zeros((side, side), np.uint8)
        top, left = rng.integers(1, side // 2, 2)
        box = np.s_[top : top + side // 2 - 1, left : left + side // 2 - 1]
        pixels[box] += 150
        mask[box] = 1
        (root / "images" / f"{number}.png").write_bytes(png(pixels))
        (root / "masks" / f"{number}.png").write_bytes(png(mask))
    (root / "classes.txt").write_text("ground\nshape\n")
    return root


def text_table(root: Path, count: int = 60) -> Path:
    """A CSV table of texts that their words give away."""
    rng = np.random.default_rng(0)
    words = {"good": ["fine", "warm", "lovely"], "bad": ["dull", "cold", "broken"]}
    rows = ["text,label"]
    for number in range(count):
        label = ("good", "bad")[number % 2]
        chosen = " ".join(rng.choice([*words[label], "film", "story", "the"], 6))
        rows.append(f"{chosen} number {number},{label}")
    root.mkdir(parents=True, exist_ok=True)
    (root / "reviews.csv").write_text("\n".join(rows) + "\n")
    return root


def book(root: Path, count: int = 60) -> Path:
    """A text file in which every line goes on like the one before."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [
        f"line {number}: the mill turns and turns, and grinds the corn of {number % 7} men.\n"
        for number in range(20 * count)
    ]
    (root / "book.txt").write_text("".join(lines))
    return root


def pairs_table(root: Path, count: int = 120) -> Path:
    """Sentences of two or three colours with their translations, in one table."""
    words = {
        "red": "rot",
        "blue": "blau",
        "green": "gruen",
        "black": "schwarz",
        "white": "weiss",
    }
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    seen: dict[str, str] = {}
    while len(seen) < count:
        said = rng.choice(list(words), rng.integers(2, 4))
        seen[" ".join(said)] = " ".join(words[word] for word in said)
    (root / "colours.txt").write_text(
        "".join(f"{one}\t{other}\n" for one, other in seen.items())
    )
    return root


def scored_table(root: Path, count: int = 120) -> Path:
    """Pairs of colours, and how many of them are the same."""
    words = ["red", "blue", "green", "black", "white", "grey", "pink"]
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = {
        " ".join(rng.choice(words, 4)): " ".join(rng.choice(words, 4))
        for _ in range(count)
    }
    lines = [
        f"{one},{other},{len({*one.split()} & {*other.split()})}"
        for one, other in rows.items()
    ]
    (root / "pairs.csv").write_text(
        "\n".join(["sentence1,sentence2,score", *lines]) + "\n"
    )
    return root


def questions(root: Path, count: int = 60) -> Path:
    """SQuAD's JSON: who has which thing, in passages of three sentences."""
    names = ("Ann", "Bob", "Cleo", "Dan", "Eve")
    things = ("cup", "hat", "key", "pen", "map")
    rng = np.random.default_rng(0)
    paragraphs = []
    for number in range(count):
        owners, owned = rng.permutation(names)[:3], rng.permutation(things)[:3]
        context = " ".join(
            f"{who} has the {what} in room {number}."
            for who, what in zip(owners, owned, strict=True)
        )
        place = int(rng.integers(3))
        answer = {
            "text": str(owners[place]),
            "answer_start": context.index(owners[place]),
        }
        question = {
            "id": str(number),
            "question": f"Who has the {owned[place]}?",
            "answers": [answer],
        }
        paragraphs.append({"context": context, "qas": [question]})
    root.mkdir(parents=True, exist_ok=True)
    (root / "questions.json").write_text(
        json.dumps({"data": [{"title": "rooms", "paragraphs": paragraphs}]})
    )
    return root


def tones(letters: str, rate: int = 8000) -> bytes:
    """A WAV file with a tone of a tenth of a second for each letter, higher for b than for a, and
    pauses between.
    """
    time = np.arange(rate // 10) / rate
    pieces = [np.zeros(rate // 20)]
    for letter in letters:
        pieces += [
            0.5 * np.sin(2 * np.pi * {"a": 400, "b": 1500}[letter] * time),
            np.zeros(rate // 20),
        ]
    return audio_decoder.wav(np.concatenate(pieces).astype(np.float32), rate)


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
        numpy_helper.from_array(np.stack(waves).astype(np.float32)[:, None], "waves"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(
            np.array([[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]], np.float32).T, "sums"
        ),
        numpy_helper.from_array(np.array([50, 0, 0], np.float32), "nothing"),
    ]
    nodes = [
        node("Unsqueeze", ["audio", "one"], ["row"]),
        node("Conv", ["row", "waves"], ["parts"], strides=[160], kernel_shape=[160]),
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


def sound_folder(root: Path, count: int = 40) -> Path:
    """Recordings of two classes, one tone each, no two alike."""
    for number in range(count):
        label = "ab"[number % 2]
        path = root / label / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tones(label, rate=8000 + number))
    return root


def speech_folder(root: Path, count: int = 40) -> Path:
    """Recordings of words of the letters a and b, and what is said in metadata.csv."""
    root.mkdir(parents=True, exist_ok=True)
    rows = ["file_name,transcription"]
    for number in range(count):
        word = f"{number % 8:03b}".replace("0", "a").replace("1", "b")
        (root / f"{number}.wav").write_bytes(tones(word, rate=8000 + number))
        rows.append(f"{number}.wav,{word}")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


TINY = {
    ("audio", "label"): sound_folder,
    ("audio", "text"): speech_folder,
    ("image", "label"): picture_folder,
    ("image", "boxes"): box_folder,
    ("image", "none"): picture_folder,
    ("image", "mask"): mask_folder,
    ("text", "label"): text_table,
    ("text", "none"): book,
    ("text", "texts"): pairs_table,
    ("question", "answers"): questions,
}
"""Makers of a tiny data set of two classes, by a task's input and the first of its targets."""


def dataset(folder: Path, task: str, home: Path) -> dict[str, Any]:
    """A folder as a job gets it: packed, checked, sorted into splits."""
    home.mkdir(parents=True, exist_ok=True)
    archive, index = home / "archive.zip", home / "index"
    pack(folder, archive)
    module = task_named(task)
    with open_source(archive) as source:
        format = detect(source, module)
        reader = load("data.formats", format)
        found, report = examine(
            reader.read(source, {}),
            lambda item: module.fingerprint(item.data),
            lambda _: None,
            labelled=labelled(reader, module),
            declared=labels(reader, source, {}),
            whole_classes=module.SPLIT == "classes",
            group_key=lambda item: module.group_key(item.data),
        )
    assert not report.findings
    found.save(index)
    return {
        "name": folder.name,
        "format": format,
        "options": {},
        "digest": "0" * 64,
        "archive": str(archive),
        "index": str(index),
        "strict": False,
    }


def going() -> Any:
    """A job that nobody asks to stop."""
    return SimpleNamespace(asked=False)


# ---- serving


class FakeWorker:
    """Listens where a worker would. What it answers is up to the test; None ends the connection."""

    def __init__(self, path: Path, answering: Answering) -> None:
        self.path, self._answering = str(path), answering
        self.got: list[list[Call]] = []
        self.open = 0
        self.writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> "FakeWorker":
        """Begin to listen."""
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def stop(self) -> None:
        """Listen no more."""
        assert self._server is not None
        self._server.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.open += 1
        self.writers.append(writer)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    size = int.from_bytes(await reader.readexactly(HEAD), "little")
                    calls = read_calls(await reader.readexactly(size))
                    self.got.append(calls)
                    answers = await self._answering(calls)
                    if answers is None:
                        return
                    writer.write(
                        frame(
                            answers
                            if isinstance(answers, Batch)
                            else Batch(answers, rows=len(calls))
                        )
                    )
        finally:
            self.open -= 1
            writer.close()


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait for something to become true."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "it did not happen"
        await asyncio.sleep(0.002)


def a_route(
    name: str = "spots", project: str = "default", **changed: Any
) -> ServedVersion:
    """A deployment that is ready."""
    values = {
        "deployment": name,
        "project": project,
        "model": name,
        "version": 1,
        "task": "image-classification",
        "kind": "image",
        "ready": True,
        "inputs": [TensorSpec(name="image", datatype="UINT8", shape=[-1, 2, 2, 1])],
        "outputs": [TensorSpec(name="scores", datatype="FP32", shape=[-1, 2])],
        "sockets": [],
    }
    return ServedVersion(**(values | changed))


def a_snapshot(
    *routes: ServedVersion, keys: Mapping[str, tuple[str, ...]] = {}
) -> Snapshot:
    """Served versions, and keys as `{key: (project, role)}`, or with their name as a third."""
    from modelmill.control.keys import digest_of

    known = [
        KeyInfo(digest=digest_of(key), project=p, role=r, name="".join(name))
        for key, (p, r, *name) in keys.items()
    ]
    return Snapshot(
        revision=(1, 1),
        routes={f"{route.project}/{route.deployment}": route for route in routes},
        keys={info.digest: info for info in known},
    )


class Reply(NamedTuple):
    """What came back over HTTP."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> str:
        """The line for people, in whichever shape it came."""
        error = self.json["error"]
        return str(error["message"] if isinstance(error, dict) else error)


async def nobody(scope: Any, receive: Any, send: Any) -> None:
    """An admin application that answers 204."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class Door:
    """The application, driven as an ASGI server would, from synchronous tests."""

    KEYS: Mapping[str, tuple[str, str]] = {
        "admin-key": ("default", "admin"),
        "user-key": ("default", "user"),
        "other-key": ("other", "user"),
    }

    def __init__(self, **limits: Any) -> None:
        self.runner = asyncio.Runner()
        self.gateway = Gateway(Limits(**limits))
        self.app = App(self.gateway, nobody)

    def update(self, *routes: ServedVersion) -> None:
        """Serve these deployments."""

        async def change() -> None:
            self.gateway.update(a_snapshot(*routes, keys=self.KEYS))

        self.runner.run(change())

    def worker(self, path: Path, answering: Answering) -> FakeWorker:
        """A worker that the gateway can reach."""
        return self.runner.run(FakeWorker(path, answering).start())

    def close(self) -> None:
        """Let go of everything."""
        self.runner.close()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | list[Any] = b"",
        headers: Mapping[str, str | bytes] | None = None,
        key: str | None = "admin-key",
    ) -> Reply:
        """One request; a list is a body in parts, in which a function is called when its turn
        comes.
        """
        return self.runner.run(self._ask(method, path, body, dict(headers or {}), key))

    async def _ask(
        self,
        method: str,
        path: str,
        body: Any,
        headers: dict[str, Any],
        key: str | None,
    ) -> Reply:
        if key is not None:
            headers.setdefault("authorization", f"Bearer {key}")
        parts = list(body) if isinstance(body, list) else [body]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            while parts and callable(parts[0]):
                parts.pop(0)()
            if not parts:
                return {"type": "http.disconnect"}
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [
                (
                    name.lower().encode(),
                    value if isinstance(value, bytes) else value.encode("latin-1"),
                )
                for name, value in headers.items()
            ],
        }
        await self.app(scope, receive, send)
        if not sent:
            return Reply(0, {}, b"")
        return Reply(
            sent[0]["status"],
            dict(sent[0]["headers"]),
            b"".join(m.get("body", b"") for m in sent[1:]),
        )


def answering_with(folder: Path) -> Answering:
    """What a real worker of this bundle answers."""
    worker = Worker(load_bundle(folder), 1)

    async def answering(calls: list[Call]) -> Batch:
        return worker.answer(calls)

    return answering


class LiveDoor:
    """The application on a real HTTP server, in a thread, for clients that others wrote."""

    def __init__(
        self, routes: Callable[["LiveDoor"], Awaitable[list[ServedVersion]]]
    ) -> None:
        """`routes` starts workers, in the server's loop, and returns the deployments."""
        import socket
        import threading

        import uvicorn

        # Named TCP, so that asyncio sends what is short at once.
        self._socket = socket.socket(
            socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
        )
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(128)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.gateway = Gateway(Limits(timeout_seconds=20))
        app: Any = App(self.gateway, nobody)
        http = guarded(self.gateway.limits)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=http,
                lifespan="off",
                log_config=None,
                timeout_graceful_shutdown=5,
            )
        )
        self._routes, self._workers = routes, list[FakeWorker]()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), daemon=True
        )
        self._thread.start()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.gateway.update(a_snapshot(*await self._routes(self), keys=Door.KEYS))
        await self._server.serve(sockets=[self._socket])
        self.gateway.update(a_snapshot())  # lets go of the workers
        for worker in self._workers:
            await worker.stop()
            await until(lambda worker=worker: not worker.open)

    def change(
        self, *routes: ServedVersion, keys: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        """Let the gateway serve other routes, or know other keys."""

        async def update() -> None:
            self.gateway.update(
                a_snapshot(*routes, keys=Door.KEYS if keys is None else keys)
            )

        asyncio.run_coroutine_threadsafe(update(), self._loop).result(10)

    async def worker(self, path: Path, answering: Answering) -> FakeWorker:
        """A worker that the gateway can reach, until the end."""
        self._workers.append(await FakeWorker(path, answering).start())
        return self._workers[-1]

    def close(self) -> None:
        """End the server."""
        self._server.should_exit = True
        self._thread.join(10)


def is_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        return True
