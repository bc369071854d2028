"""Shared by all classifiers: scores to labels, metrics, and the pictures of an evaluation."""

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from modelmill.tasks.evaluation import figures
from modelmill.types import Json, Struct, TensorSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 15
MOST_COUNTED = 25
"""Most labels for which the confusion matrix shows counts."""
Array = np.ndarray[Any, Any]


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
    from sklearn.metrics import confusion_matrix

    labels = measured.labels
    scores, truth = _as_arrays(measured)
    guess = scores.argmax(axis=1)
    metrics: Json = {
        **_figures(scores, truth),
        **_averages(truth, guess),
        "per_class": _per_class(truth, guess, labels),
    }
    matrix = confusion_matrix(truth, guess, labels=list(range(len(labels))))
    return Evaluation(
        metrics=metrics,
        pictures={"confusion.png": confusion_picture(matrix, labels)},
    )


def _as_arrays(measured: Measured) -> tuple[Array, Array]:
    """Scores [N, labels] of the answers, and the number of each true label [N]."""
    column = {label: i for i, label in enumerate(measured.labels)}
    scores = np.zeros((len(measured.outputs), len(column)), np.float32)
    for row, answer in enumerate(measured.outputs):
        for entry in answer:
            scores[row, column[entry["label"]]] = entry["score"]
    return scores, np.array([column[label] for label in measured.truths])


def _figures(scores: Array, truth: Array) -> Json:
    """Figures of all classes together."""
    labels = scores.shape[1]
    return {
        "accuracy": float((scores.argmax(axis=1) == truth).mean()),
        **({"top_5_accuracy": _top_k(scores, truth, 5)} if labels > 5 else {}),
        "calibration_error": _calibration_error(scores, truth),
        "items": len(truth),
    }


def _averages(truth: Array, guess: Array) -> Json:
    """Precision, recall and F1 over the classes: each the same (macro), or by its items."""
    from sklearn.metrics import precision_recall_fscore_support

    found: Json = {}
    for average in ("macro", "weighted"):
        p, r, f, _ = precision_recall_fscore_support(
            truth, guess, average=average, zero_division=0.0
        )
        found[f"precision_{average}"] = float(p)
        found[f"recall_{average}"] = float(r)
        found[f"f1_{average}"] = float(f)
    return {**found, "f1": found["f1_macro"]}


def _per_class(truth: Array, guess: Array, labels: Sequence[str]) -> Json:
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        truth, guess, labels=list(range(len(labels))), zero_division=0.0
    )
    return {
        label: {
            "precision": float(p),
            "recall": float(r),
            "f1": float(f),
            "items": int(n),
        }
        for label, p, r, f, n in zip(labels, *columns, strict=True)
    }


def _top_k(scores: Array, truth: Array, k: int) -> float:
    best = np.argpartition(-scores, k, axis=1)[:, :k]
    return float((best == truth[:, None]).any(axis=1).mean())


def _calibration_error(scores: Array, truth: Array) -> float:
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    inside = [bins == b for b in range(BINS)]
    return float(
        sum(_gap(right, confidence, rows) for rows in inside if rows.any())
    )


def _gap(right: Array, confidence: Array, rows: Array) -> float:
    """How far confidence and accuracy of a bin are apart, by its share of all items."""
    gap: float = abs(right[rows].mean() - confidence[rows].mean()) * rows.mean()
    return gap


def confusion_picture(matrix: Array, labels: Sequence[str]) -> bytes:
    """The confusion matrix as a PNG: rows are truths, shares of a row as colour, counts as text."""
    side = min(4.5 + 0.35 * len(labels), 14)
    figure = figures.blank(side, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(ticks, labels, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix (test)")
    if len(labels) <= MOST_COUNTED:
        _write_counts(axes, matrix, shares)
    return figures.as_png(figure)


def _write_counts(axes: "Axes", matrix: Array, shares: Array) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        ink = "white" if shares[row, column] > 0.5 else "black"
        axes.text(
            column,
            row,
            str(count),
            ha="center",
            va="center",
            color=ink,
            fontsize=8,
        )
