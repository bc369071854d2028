"""Metrics of text embeddings: retrieval, and rank correlation of similarities."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelmill.tasks.base import Context, Evaluation, Item, Run
from modelmill.tasks.evaluation import figures, retrieval
from modelmill.tasks.feature_extraction import TASK, score_of
from modelmill.types import Json

AT_ONCE = 64
"""Texts of a batch."""
Floats = NDArray[np.float32]


def measures(run: Run, items: Sequence[Item], context: Context) -> Evaluation:
    """The metrics of pairs, scored pairs or labelled texts, by what the items are."""
    texts = [str(item.data) for item in items]
    vectors = _vectors(run, [item.data for item in items], context)
    if not isinstance(items[0].target, tuple):
        return labelled(vectors, [item.label for item in items])
    others = [
        str(item.target[0]) for item in items if isinstance(item.target, tuple)
    ]
    near = _vectors(run, others, context)
    scores = [score_of(item) for item in items]
    if scores[0] is not None:
        return scored(vectors, near, np.array(scores, np.float64))
    return paired(vectors, near, texts, others)


def _vectors(run: Run, texts: Sequence[Any], context: Context) -> Floats:
    ids = [TASK.decode(text, context)["ids"] for text in texts]
    parts = [
        run({"ids": np.stack(ids[at : at + AT_ONCE])})["embedding"]
        for at in range(0, len(ids), AT_ONCE)
    ]
    return np.concatenate(parts).astype(np.float32)


def labelled(vectors: Floats, labels: Sequence[str]) -> Evaluation:
    """Leave-one-out retrieval among texts of the same label."""
    metrics, pictures, _ = retrieval.measures(vectors, labels)
    return Evaluation(metrics=metrics, pictures=pictures)


def scored(
    first: Floats, second: Floats, scores: NDArray[np.float64]
) -> Evaluation:
    """Spearman's correlation of the pairs' cosines with their scores in the data."""
    cosines = (first * second).sum(1)
    metrics: Json = {
        "spearman": spearman(cosines, scores),
        "items": len(scores),
    }
    picture = _scatter(scores, cosines)
    return Evaluation(metrics=metrics, pictures={"similarities.png": picture})


def spearman(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Spearman's rank correlation, -1..1; 0 where all values of one are equal. Ties share ranks."""
    from scipy.stats import spearmanr

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first, second).statistic)


def paired(
    queries: Floats,
    partners: Floats,
    texts: Sequence[str],
    others: Sequence[str],
) -> Evaluation:
    """Retrieval of each text's partner among all partners: recall at 1 and 5, mean reciprocal rank,
    and recall at 1 in the other direction.

    `queries` and `partners` [N, D] are the vectors of `texts` and `others`.
    """
    ranks = _ranks(queries, partners, others)
    back = _ranks(partners, queries, texts)
    metrics: Json = {
        "recall_at_1": float((ranks == 0).mean()),
        "recall_at_5": float((ranks < 5).mean()),
        "recall_at_1_back": float((back == 0).mean()),
        "mrr": float((1 / (1 + ranks)).mean()),
        "items": len(texts),
    }
    picture = _pairs_picture(queries, partners)
    return Evaluation(metrics=metrics, pictures={"similarities.png": picture})


def _pairs_picture(queries: Floats, partners: Floats) -> bytes:
    """Cosines of the pairs beside those of texts with a random partner, as a PNG."""
    random_order = np.random.default_rng(0).permutation(len(partners))
    random_pairs = (queries * partners[random_order]).sum(1)
    return retrieval.histogram(
        (queries * partners).sum(1), random_pairs, "pairs"
    )


def _ranks(
    queries: Floats, partners: Floats, texts: Sequence[str]
) -> NDArray[np.intp]:
    """The rank from 0 of each query's partner [N]; duplicates of a partner's text are left out."""
    _, codes = np.unique(np.asarray(texts), return_inverse=True)
    ranks = np.zeros(len(queries), np.intp)
    for at in range(0, len(queries), AT_ONCE):
        rows = np.arange(at, min(at + AT_ONCE, len(queries)))
        scores = queries[rows] @ partners.T
        own = scores[np.arange(len(rows)), rows]
        nearer = (scores >= own[:, None]) & (
            codes[None, :] != codes[rows][:, None]
        )
        ranks[rows] = nearer.sum(1)
    return ranks


def _scatter(scores: NDArray[np.float64], cosines: Floats) -> bytes:
    """A scatter plot of scores and cosines, as a PNG."""
    figure = figures.blank(5, 4)
    axes = figure.subplots()
    axes.scatter(scores, cosines, s=6, alpha=0.5)
    axes.set(
        xlabel="score in the data",
        ylabel="cosine similarity",
        title="Pairs of test items",
    )
    return figures.as_png(figure)
