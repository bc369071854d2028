"""A classifier by nearest neighbours: a model that answers vectors, with the items of an index
inside its graph.

It is a version like any other: every worker and every protocol serves it. It knows the items of the
moment at which it was made; made again it becomes the next version.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from modelmill import __version__
from modelmill.artifacts import sha256_of
from modelmill.bundle import open_bundle
from modelmill.errors import InvalidInput
from modelmill.predictor import Predictor, read_golden, write_golden
from modelmill.tasks.base import task_named
from modelmill.tasks.decoding.tokenizer import TOKENIZER
from modelmill.types import JobSpec, Lineage, Manifest, TensorSpec

CLASSIFIERS = {"image": "image-classification", "text": "text-classification"}
"""The task of a classifier, by what it takes."""
RECIPE = "neighbours"
SHARPNESS = 20.0
"""Factor of the cosines when neighbours are weighed: one that is 0.1 nearer counts 7 times as
much.
"""
ENGINE, MODEL = "onnx", "model.onnx"


def assemble(upload: Path, draft: Path, spec: JobSpec) -> Manifest:
    """Leaves the files of the classifier in `draft`; `upload` holds `vectors` [items, numbers] and
    their `labels`.
    """
    source = Path(spec.settings["source"])
    base = open_bundle(source)
    with np.load(upload, allow_pickle=False) as kept:
        vectors, said = kept["vectors"].astype(np.float32), kept["labels"]
    labels, codes = np.unique(said, return_inverse=True)
    if len(labels) < 2:
        raise InvalidInput(
            f"the index has items of {len(labels)} labels: a classifier needs at least 2"
        )
    if base.engine != ENGINE:
        raise InvalidInput(
            f"a classifier of an index is made from {MODEL}, and the index's model runs on the "
            f"engine {base.engine}"
        )
    neighbours = min(spec.settings["k"], len(vectors))
    write_graph(source / MODEL, draft / MODEL, vectors, codes, len(labels), neighbours)
    task = CLASSIFIERS[task_named(base.task).INPUT]
    classifier = task_named(task)
    how = msgspec.convert(base.preprocessing, classifier.PREPROCESSING)
    manifest = Manifest(
        task=task,
        engine=ENGINE,
        inputs=base.inputs,
        outputs=[TensorSpec(name="scores", datatype="FP32", shape=[-1, len(labels)])],
        preprocessing=msgspec.to_builtins(how),
        labels=labels.tolist(),
        takes=classifier.takes,
        also_takes=list(classifier.ALSO_TAKES),
        gives=classifier.GIVES,
        lineage=_lineage(spec, upload, neighbours),
    )
    for path in source.glob(TOKENIZER):
        (draft / path.name).write_bytes(path.read_bytes())
    model = Predictor(draft, manifest, spec.threads)
    inputs = [case["input"] for case in read_golden(source)]
    write_golden(draft, inputs, model.predict(inputs))
    return manifest


def write_graph(
    source: Path, target: Path, vectors: Any, codes: Any, classes: int, neighbours: int
) -> None:
    """The graph of `source`, whose one output are unit vectors, continued to `scores` [N, classes]
    that sum to 1.

    The `neighbours` items with the largest cosine share the score by a softmax of their cosines.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    graph, node = model.graph, helper.make_node
    constants = {
        "index.items": np.ascontiguousarray(vectors.T),
        "index.classes": codes.astype(np.int64),
        "index.k": np.array([neighbours], np.int64),
        "index.sharpness": np.array(SHARPNESS, np.float32),
        "index.depth": np.array(classes, np.int64),
        "index.off_on": np.array([0, 1], np.float32),
        "index.last": np.array([2], np.int64),
        "index.middle": np.array([1], np.int64),
    }
    graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in constants.items()
    )
    graph.node.extend(
        [
            node("MatMul", [graph.output[0].name, "index.items"], ["index.cosines"]),
            node(
                "TopK",
                ["index.cosines", "index.k"],
                ["index.near", "index.rows"],
                axis=1,
            ),
            node("Mul", ["index.near", "index.sharpness"], ["index.logits"]),
            node("Softmax", ["index.logits"], ["index.weights"], axis=1),
            node("Gather", ["index.classes", "index.rows"], ["index.labels"]),
            node(
                "OneHot",
                ["index.labels", "index.depth", "index.off_on"],
                ["index.votes"],
            ),
            node("Unsqueeze", ["index.weights", "index.last"], ["index.column"]),
            node("Mul", ["index.votes", "index.column"], ["index.shares"]),
            node("ReduceSum", ["index.shares", "index.middle"], ["scores"], keepdims=0),
        ]
    )
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, classes])
    )
    onnx.save(model, target)


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
