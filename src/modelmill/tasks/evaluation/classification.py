"""Shared by all classifiers: scores to labels, metrics, and the pictures of an evaluation."""

import io
from abc import ABC
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from modelmill.tasks.base import (
    Arrays,
    Context,
    Evaluation,
    Item,
    Items,
    Measured,
    Model,
    Task,
)
from modelmill.types import Json, Struct, TensorSpec

BINS = 15


class Parameters(Struct, frozen=True, kw_only=True):
    """What of the labels is answered."""

    top_k: Annotated[
        int, Meta(ge=1, description="labels that are answered, the best first")
    ] = 5
    function_to_apply: Annotated[
        Literal["softmax"],
        Meta(
            description="what makes scores of the outputs",
            extra={"reason": "this model answers probabilities"},
        ),
    ] = "softmax"


class Classifier(Task, ABC):
    """A task whose answers are labels with scores."""

    GIVES = "labels"
    TARGETS = ("label",)
    CLASSES = 2
    METRIC = "accuracy"
    PARAMETERS = Parameters

    def outputs(self, context: Context) -> list[TensorSpec]:
        """`scores`: probabilities of all labels [-1, labels]."""
        shape = [-1, len(context.labels)]
        return [TensorSpec(name="scores", datatype="FP32", shape=shape)]

    def encode(
        self, arrays: Arrays, context: Context, parameters: Parameters
    ) -> list[Json]:
        """`[{label, score}]`, best first, `top_k` of them."""
        scores = arrays["scores"]
        best = np.argsort(-scores, kind="stable")[: parameters.top_k]
        return [
            {"label": context.labels[i], "score": round(float(scores[i]), 6)}
            for i in best
        ]

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """The arrays of `decode`, and `label`: its number."""
        number = np.asarray(context.labels.index(item.label), np.int64)
        return self.decode(item.data, context), {"label": number}

    def expected(self, item: Item) -> str:
        """The label."""
        return item.label

    def full_parameters(self, labels: Sequence[str]) -> Parameters:
        """Every label."""
        return Parameters(top_k=len(labels))

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """Accuracy, figures of each class and the confusion matrix."""
        return evaluate(self.measured(model, items))


def evaluate(measured: Measured) -> Evaluation:
    """Metrics and the confusion matrix.

    Outputs name every label. Accuracy, top-5 accuracy, precision, recall and F1 per class, macro
    and weighted, and the expected calibration error over 15 bins (Guo et al. 2017, arXiv
    1706.04599).
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    answers = measured.outputs
    truths = measured.truths
    labels = measured.labels
    column = {label: i for i, label in enumerate(labels)}
    scores = np.zeros((len(answers), len(labels)), np.float32)
    for row, answer in enumerate(answers):
        for entry in answer:
            scores[row, column[entry["label"]]] = entry["score"]
    truth = np.array([column[label] for label in truths])
    guess = scores.argmax(axis=1)
    indices = list(range(len(labels)))
    metrics: Json = {
        "accuracy": float((guess == truth).mean()),
        **({"top_5_accuracy": _top_k(scores, truth, 5)} if len(labels) > 5 else {}),
        "calibration_error": _calibration_error(scores, truth),
        "items": len(truth),
    }
    for average in ("macro", "weighted"):
        p, r, f, _ = precision_recall_fscore_support(
            truth, guess, average=average, zero_division=0.0
        )
        metrics |= {
            f"precision_{average}": float(p),
            f"recall_{average}": float(r),
            f"f1_{average}": float(f),
        }
    metrics["f1"] = metrics["f1_macro"]
    rows = precision_recall_fscore_support(
        truth, guess, labels=indices, zero_division=0.0
    )
    metrics["per_class"] = {
        label: {
            "precision": float(rows[0][i]),
            "recall": float(rows[1][i]),
            "f1": float(rows[2][i]),
            "items": int(rows[3][i]),
        }
        for i, label in enumerate(labels)
    }
    matrix = confusion_matrix(truth, guess, labels=indices)
    return Evaluation(
        metrics=metrics, pictures={"confusion.png": confusion_picture(matrix, labels)}
    )


def _top_k(scores: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], k: int) -> float:
    best = np.argpartition(-scores, k, axis=1)[:, :k]
    return float((best == truth[:, None]).any(axis=1).mean())


def _calibration_error(
    scores: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]
) -> float:
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean()
        for b in range(BINS)
        if (bins == b).any()
    ]
    return float(sum(gaps))


def confusion_picture(matrix: np.ndarray[Any, Any], labels: Sequence[str]) -> bytes:
    """The confusion matrix as a PNG: rows are truths, shares of a row as colour, counts as text."""
    from matplotlib.figure import Figure

    side = min(4.5 + 0.35 * len(labels), 14)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(ticks, labels, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix (test)")
    if len(labels) <= 25:
        for (row, column), count in np.ndenumerate(matrix):
            ink = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, str(count), ha="center", va="center", color=ink, fontsize=8
            )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return buffer.getvalue()
