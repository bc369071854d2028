"""A classifier by nearest neighbours: a model that answers vectors, with the items of an index
inside its graph.

It is a version like any other: every worker and every protocol serves it. It knows the items of the
moment at which it was made; made again it becomes the next version.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelmill import __version__
from modelmill.artifacts import sha256_of
from modelmill.bundle import open_bundle
from modelmill.errors import InvalidInput
from modelmill.predictor import Predictor, read_golden, write_golden
from modelmill.tasks.base import task_named
from modelmill.tasks.decoding.tokenizer import TOKENIZER
from modelmill.types import JobSpec, Lineage, Manifest, TensorSpec

if TYPE_CHECKING:
    from onnx import NodeProto

CLASSIFIERS = {"image": "image-classification", "text": "text-classification"}
"""The task of a classifier, by what it takes."""
RECIPE = "neighbours"
SHARPNESS = 20.0
"""Factor of the cosines when neighbours are weighed: one that is 0.1 nearer counts 7 times as
much.
"""
ENGINE, MODEL = "onnx", "model.onnx"


class LabelledVectors(NamedTuple):
    """The items of an index: `vectors` [items, numbers], their labels without repetition, and the
    place [items] of each item's label among these.
    """

    vectors: NDArray[np.float32]
    labels: list[str]
    codes: NDArray[np.int64]


def assemble(upload: Path, draft: Path, spec: JobSpec) -> Manifest:
    """Leaves the files of the classifier in `draft`; `upload` holds `vectors` [items, numbers] and
    their `labels`.
    """
    source = Path(spec.settings["source"])
    base = open_bundle(source)
    items = _read(upload)
    _refuse(base, items)
    neighbours = min(spec.settings["k"], len(items.vectors))
    write_graph(source / MODEL, draft / MODEL, items, neighbours)
    manifest = _manifest(base, items.labels, _lineage(spec, upload, neighbours))
    for path in source.glob(TOKENIZER):
        (draft / path.name).write_bytes(path.read_bytes())
    model = Predictor(draft, manifest, spec.threads)
    inputs = [case["input"] for case in read_golden(source)]
    write_golden(draft, inputs, model.predict(inputs))
    return manifest


def _read(upload: Path) -> LabelledVectors:
    with np.load(upload, allow_pickle=False) as kept:
        vectors = kept["vectors"].astype(np.float32)
        labels, codes = np.unique(kept["labels"], return_inverse=True)
    return LabelledVectors(vectors, labels.tolist(), codes.astype(np.int64))


def _refuse(base: Manifest, items: LabelledVectors) -> None:
    """Raises `InvalidInput` for what no classifier can be made of."""
    if len(items.labels) < 2:
        raise InvalidInput(
            f"the index has items of {len(items.labels)} labels: a classifier needs at least 2"
        )
    if base.engine != ENGINE:
        raise InvalidInput(
            f"a classifier of an index is made from {MODEL}, and the index's model runs on the "
            f"engine {base.engine}"
        )


def _manifest(base: Manifest, labels: list[str], lineage: Lineage) -> Manifest:
    """That of a classifier which takes what the index's model takes."""
    task = CLASSIFIERS[task_named(base.task).INPUT]
    classifier = task_named(task)
    how = msgspec.convert(base.preprocessing, classifier.PREPROCESSING)
    return Manifest(
        task=task,
        engine=ENGINE,
        inputs=base.inputs,
        outputs=[
            TensorSpec(name="scores", datatype="FP32", shape=[-1, len(labels)])
        ],
        preprocessing=msgspec.to_builtins(how),
        labels=labels,
        takes=classifier.takes,
        also_takes=list(classifier.ALSO_TAKES),
        gives=classifier.GIVES,
        lineage=lineage,
    )


def write_graph(
    source: Path, target: Path, items: LabelledVectors, neighbours: int
) -> None:
    """The graph of `source`, whose one output are unit vectors, continued to `scores` [N, classes]
    that sum to 1.

    The `neighbours` items with the largest cosine share the score by a softmax of their cosines.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    graph.initializer.extend(
        numpy_helper.from_array(array, name)
        for name, array in _constants(items, neighbours).items()
    )
    graph.node.extend(_vote(graph.output[0].name))
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    shape = [batch, len(items.labels)]
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape)
    )
    onnx.save(model, target)


def _constants(
    items: LabelledVectors, neighbours: int
) -> dict[str, NDArray[np.generic]]:
    return {
        "index.items": np.ascontiguousarray(items.vectors.T),
        "index.classes": items.codes,
        "index.k": np.array([neighbours], np.int64),
        "index.sharpness": np.array(SHARPNESS, np.float32),
        "index.depth": np.array(len(items.labels), np.int64),
        "index.off_on": np.array([0, 1], np.float32),
        "index.last": np.array([2], np.int64),
        "index.middle": np.array([1], np.int64),
    }


def _vote(vectors: str) -> "list[NodeProto]":
    """From unit vectors to scores: the nearest items vote for their labels."""
    from onnx.helper import make_node as node

    near = ["index.near", "index.rows"]
    hot = ["index.labels", "index.depth", "index.off_on"]
    return [
        node("MatMul", [vectors, "index.items"], ["index.cosines"]),
        node("TopK", ["index.cosines", "index.k"], near, axis=1),
        node("Mul", ["index.near", "index.sharpness"], ["index.logits"]),
        node("Softmax", ["index.logits"], ["index.weights"], axis=1),
        node("Gather", ["index.classes", "index.rows"], ["index.labels"]),
        node("OneHot", hot, ["index.votes"]),
        node("Unsqueeze", ["index.weights", "index.last"], ["index.column"]),
        node("Mul", ["index.votes", "index.column"], ["index.shares"]),
        node(
            "ReduceSum",
            ["index.shares", "index.middle"],
            ["scores"],
            keepdims=0,
        ),
    ]


def _lineage(spec: JobSpec, upload: Path, neighbours: int) -> Lineage:
    return Lineage(
        dataset=spec.settings["index"],
        data_digest=sha256_of(upload),
        recipe=RECIPE,
        settings={"k": neighbours, "model": spec.settings["model"]},
        seed=0,
        code_version=__version__,
        job=spec.job,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
