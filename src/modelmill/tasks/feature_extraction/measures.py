"""How vectors of texts are measured: by what they find, and by the order of their similarities."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelmill.tasks.base import Context, Evaluation, Item, Run
from modelmill.tasks.evaluation import retrieval
from modelmill.tasks.feature_extraction import TASK, score_of
from modelmill.types import Json

AT_ONCE = 64
Floats = NDArray[np.float32]


def measures(run: Run, items: Sequence[Item], context: Context) -> Evaluation:
    """Of pairs, of scored pairs, or of labelled texts, as the items are."""
    vectors = _vectors(run, [item.data for item in items], context)
    if not isinstance(items[0].target, tuple):
        return labelled(vectors, [item.label for item in items])
    others = [str(item.target[0]) for item in items if isinstance(item.target, tuple)]
    near = _vectors(run, others, context)
    scores = [score_of(item) for item in items]
    if scores[0] is not None:
        return scored(vectors, near, np.array(scores, np.float64))
    return paired(vectors, near, [str(item.data) for item in items], others)


def _vectors(run: Run, texts: Sequence[Any], context: Context) -> Floats:
    parts = []
    for at in range(0, len(texts), AT_ONCE):
        ids = np.stack(
            [TASK.decode(text, context)["ids"] for text in texts[at : at + AT_ONCE]]
        )
        parts.append(run({"ids": ids})["embedding"])
    return np.concatenate(parts).astype(np.float32)


def labelled(vectors: Floats, labels: Sequence[str]) -> Evaluation:
    """Leave-one-out retrieval: texts of one label should find one another."""
    found, pictures, _ = retrieval.figures(vectors, labels)
    return Evaluation(metrics=found, pictures=pictures)


def scored(one: Floats, other: Floats, scores: NDArray[np.float64]) -> Evaluation:
    """Spearman's correlation of the cosines with the scores that people gave."""
    cosines = (one * other).sum(1)
    metrics: Json = {"spearman": spearman(cosines, scores), "items": len(scores)}
    return Evaluation(
        metrics=metrics, pictures={"similarities.png": _scatter(scores, cosines)}
    )


def spearman(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The correlation of two rankings, -1..1; 0 where one of them ranks nothing. Equal values share
    their ranks.
    """
    from scipy.stats import spearmanr

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(spearmanr(one, other).statistic)


def paired(
    one: Floats, other: Floats, texts: Sequence[str], others: Sequence[str]
) -> Evaluation:
    """How often a text finds its other among all others: at the first place, among the first five,
    and back.
    """
    there, back = _ranks(one, other, others), _ranks(other, one, texts)
    metrics: Json = {
        "recall_at_1": float((there == 0).mean()),
        "recall_at_5": float((there < 5).mean()),
        "recall_at_1_back": float((back == 0).mean()),
        "mrr": float((1 / (1 + there)).mean()),
        "items": len(texts),
    }
    rng = np.random.default_rng(0)
    wrong = (one * other[rng.permutation(len(other))]).sum(1)
    return Evaluation(
        metrics=metrics,
        pictures={
            "similarities.png": retrieval.histogram(
                (one * other).sum(1), wrong, "pairs"
            )
        },
    )


def _ranks(one: Floats, other: Floats, texts: Sequence[str]) -> NDArray[np.intp]:
    """How many texts of `other` lie nearer to each vector than its own one; the same text again is
    no other.
    """
    _, codes = np.unique(np.asarray(texts), return_inverse=True)
    found = np.zeros(len(one), np.intp)
    for at in range(0, len(one), AT_ONCE):
        rows = np.arange(at, min(at + AT_ONCE, len(one)))
        scores = one[rows] @ other.T
        own = scores[np.arange(len(rows)), rows]
        nearer = (scores >= own[:, None]) & (codes[None, :] != codes[rows][:, None])
        found[rows] = nearer.sum(1)
    return found


def _scatter(scores: NDArray[np.float64], cosines: Floats) -> bytes:
    """Each pair by its score and its cosine, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(scores, cosines, s=6, alpha=0.5)
    axes.set(
        xlabel="score in the data",
        ylabel="cosine similarity",
        title="Pairs of test items",
    )
    return retrieval.as_png(figure)
