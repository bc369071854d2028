"""tfidf: n-grams weighted by TF-IDF and logistic regression, the classical baseline, as one ONNX
graph.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta

from modelmill.errors import InvalidInput
from modelmill.tasks.base import Plan, Signature
from modelmill.tasks.decoding.text_tokenizer import Preprocessing
from modelmill.types import Struct

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

SUMMARY = (
    "TF-IDF of words and pairs of words, logistic regression; trains in seconds"
)
INPUT = Preprocessing(vocabulary=10_000, length_limit=512)

Array = np.ndarray[Any, Any]
Gram = tuple[int, ...]
PADDING = 0
OPSET, IR = 18, 10
NEVER = -1e4
"""Logit of a class without training texts."""


class Settings(Struct, frozen=True, kw_only=True):
    """Options of the features and the regression."""

    features: Annotated[
        int,
        Meta(
            ge=10,
            le=1_000_000,
            description="most n-grams kept, the most frequent",
        ),
    ] = 30_000
    gram_count: Annotated[
        int,
        Meta(
            ge=1, description="texts that must hold an n-gram for it to be kept"
        ),
    ] = 2
    inverse_regularisation: Annotated[
        float, Meta(gt=0, description="larger fits the training texts closer")
    ] = 30.0


def fit(
    plan: Plan,
    signature: Signature,
    arrays: dict[str, Array],
    targets: dict[str, Array],
) -> tuple["ModelProto", dict[str, Array]]:
    """`ids` [N, L] padded with 0 and `label` [N] -> the ONNX graph and its weights by name.

    N-grams are weighted by how far the classes differ in using them (as in Wang and Manning 2012).
    Raises `InvalidInput` where no n-gram is frequent enough, or all texts are of one class.
    """
    from sklearn.feature_extraction.text import TfidfTransformer

    ids, labels = np.asarray(arrays["ids"]), np.asarray(targets["label"])
    classes = signature.classes
    names, counts = _counted(ids, plan.network)
    tfidf = TfidfTransformer(sublinear_tf=True)
    factor = contrast(counts, labels, classes)
    features = tfidf.fit_transform(counts).multiply(factor).tocsr()
    strength = plan.network.inverse_regularisation
    rows, bias = _regression(features, labels, strength, classes)
    found = {"idf": tfidf.idf_, "weight": rows * factor, "bias": bias}
    weights = {
        name: np.asarray(value, np.float32) for name, value in found.items()
    }
    return graph(names, weights, ids.shape[1]), weights


def _counted(ids: Array, settings: Settings) -> tuple[list[Gram], Any]:
    """The n-grams that are kept, and how often each text has each, sparse [N, features]."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(
        analyzer=grams,
        min_df=settings.gram_count,
        max_features=settings.features,
    )
    try:
        counts = counter.fit_transform(ids)
    except ValueError as error:
        raise InvalidInput(
            f"no n-gram occurs in {settings.gram_count} texts: the training texts are too few"
        ) from error
    numbers = counter.vocabulary_
    return sorted(numbers, key=numbers.__getitem__), counts


def _regression(
    features: Any, labels: Array, strength: float, classes: int
) -> tuple[Array, Array]:
    """Weights [classes, features] and biases [classes]."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if len(np.unique(labels)) < 2:
        raise InvalidInput(
            "all texts to train on are of one class; there is nothing to tell apart"
        )
    # The matrices are sparse: more threads only wait for one another.
    with threadpool_limits(1):
        linear = LogisticRegression(C=strength, max_iter=1000).fit(
            features, labels
        )
    return every_class(
        linear.coef_, linear.intercept_, linear.classes_, classes
    )


def grams(row: Array) -> list[Gram]:
    """Unigrams and bigrams of a row of token ids, without padding."""
    ids = [number for number in row.tolist() if number != PADDING]
    return [(number,) for number in ids] + list(pairwise(ids))


def every_class(
    rows: Array, bias: Array, trained: Array, classes: int
) -> tuple[Array, Array]:
    """Weights [classes, features] and biases [classes] of all classes, from those of the `trained`
    ones; the others are never answered.
    """
    if len(trained) == 2:  # sigmoid(z) is softmax(0, z)
        rows, bias = np.vstack([0 * rows, rows]), np.append(0, bias)
    weights, biases = (
        np.zeros((classes, rows.shape[1])),
        np.full(classes, NEVER),
    )
    weights[trained] = rows
    biases[trained] = bias
    return weights, biases


def contrast(counts: Any, labels: Array, classes: int) -> Array:
    """The deviation over classes of the log share of texts with each n-gram, [features]."""
    present = counts > 0
    share = np.stack(
        [
            1 + np.asarray(present[labels == c].sum(0)).ravel()
            for c in range(classes)
        ]
    )
    return np.asarray(np.log(share / share.sum(1, keepdims=True)).std(0))


def counts_node(names: list[Gram]) -> "NodeProto":
    """The ONNX node that counts n-grams; its pool lists the words, then the pairs."""
    from onnx import helper

    order = sorted(range(len(names)), key=lambda i: len(names[i]))
    words = sum(len(name) == 1 for name in names)
    pairs = words < len(names)
    return helper.make_node(
        "TfIdfVectorizer",
        ["ids"],
        ["counts"],
        mode="TF",
        min_gram_length=1,
        max_gram_length=2 if pairs else 1,
        max_skip_count=0,
        ngram_counts=[0, words] if pairs else [0],
        ngram_indexes=order,
        pool_int64s=[number for k in order for number in names[k]],
    )


def graph(
    names: list[Gram], weights: dict[str, Array], length: int
) -> "ModelProto":
    """scores = softmax(weight . normalised((1 + log count) * idf) + bias)."""
    from onnx import TensorProto, checker, helper

    ids = helper.make_tensor_value_info(
        "ids", TensorProto.INT64, ["batch", length]
    )
    scores = helper.make_tensor_value_info(
        "scores", TensorProto.FLOAT, ["batch", len(weights["bias"])]
    )
    body = helper.make_graph(
        [counts_node(names), *_nodes()],
        "tfidf",
        [ids],
        [scores],
        _tensors(weights),
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=IR)
    checker.check_model(model, full_check=True)
    return model


def _nodes() -> list["NodeProto"]:
    """From `counts` to `scores`."""
    from onnx import helper

    node = helper.make_node
    return [
        node("Max", ["counts", "one"], ["above"]),
        node("Log", ["above"], ["log"]),
        node("Min", ["counts", "one"], ["present"]),
        node("Add", ["log", "present"], ["tf"]),
        node("Mul", ["tf", "idf"], ["tfidf"]),
        node("ReduceL2", ["tfidf", "last"], ["norm"], keepdims=1),
        node("Max", ["norm", "tiny"], ["length"]),
        node("Div", ["tfidf", "length"], ["unit"]),
        node("Gemm", ["unit", "weight", "bias"], ["logits"], transB=1),
        node("Softmax", ["logits"], ["scores"], axis=1),
    ]


def _tensors(weights: dict[str, Array]) -> list["TensorProto"]:
    """The graph's constants."""
    from onnx import numpy_helper

    constants = {
        "one": np.float32(1),
        "tiny": np.float32(1e-12),
        "last": np.array([1], np.int64),
        **weights,
    }
    return [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
    ]
