"""Retrieval metrics of embeddings: each item is a query among all others."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelmill.tasks.base import Evaluation, Measured, Raw
from modelmill.tasks.decoding import image_decoder
from modelmill.types import Json

QUERIES = 5000
"""Most queries, spread evenly over the items; all items are searched."""
AT_ONCE = 512
"""Queries of a batch."""
NEIGHBOURS = 5
SHOWN = 8
"""Queries in the picture, up to half of them with a wrong nearest neighbour."""
PAIRS = 200_000
"""Most similarities of each kind that are sampled for the histogram."""
RIGHT, WRONG = "#2a9d3a", "#d03030"

Floats = NDArray[np.float32]


def evaluate(measured: Measured) -> Evaluation:
    """Leave-one-out retrieval: recall at 1 and at 5, mean average precision, and the separation of
    similarities.

    Outputs are unit vectors, truths are labels. An item is a query when another one has its label;
    `recall_at_k` is the share of queries with such an item among the first k, `map` the mean over
    the queries of the average precision (Manning et al., Introduction to Information Retrieval,
    8.4).
    """
    metrics, pictures, retrieved = figures(
        np.asarray(measured.outputs, np.float32), measured.truths
    )
    if len(retrieved.queries):
        pictures["neighbours.png"] = _sheet(measured, retrieved)
    return Evaluation(metrics=metrics, pictures=pictures)


def figures(
    vectors: Floats, truths: Sequence[Any]
) -> tuple[Json, dict[str, bytes], "_Retrieved"]:
    """Metrics, pictures and results of retrieval; `vectors` [items, D] are unit vectors, `truths`
    their labels.
    """
    names, codes = np.unique(np.asarray(truths), return_inverse=True)
    answerable = np.flatnonzero(np.bincount(codes)[codes] > 1)
    queries = answerable
    if len(answerable) > QUERIES:
        chosen = np.linspace(0, len(answerable) - 1, QUERIES).astype(int)
        queries = answerable[chosen]
    retrieved = _search(vectors, codes, queries)
    metrics: Json = {
        "recall_at_1": float(retrieved.hits[:, 0].mean()) if len(queries) else 0.0,
        "recall_at_5": float(retrieved.hits.any(1).mean()) if len(queries) else 0.0,
        "map": float(retrieved.precision.mean()) if len(queries) else 0.0,
        "items": len(codes),
        "queries": len(queries),
        "classes": len(names),
    }
    picture = histogram(retrieved.same, retrieved.different, "same label")
    return metrics, {"similarities.png": picture}, retrieved


class _Retrieved:
    """Results of all queries: nearest items and their scores [queries, NEIGHBOURS], whether they
    have the query's label, average precision [queries], and samples of similarities.
    """

    def __init__(self, queries: NDArray[np.intp], neighbours: int) -> None:
        self.queries = queries
        shape = (len(queries), neighbours)
        self.nearest = np.zeros(shape, np.intp)
        self.scores = np.zeros(shape, np.float32)
        self.hits = np.zeros(shape, bool)
        self.precision = np.zeros(len(queries))
        self.same: Floats = np.zeros(0, np.float32)
        self.different: Floats = np.zeros(0, np.float32)

    def add(self, batch: slice, scores: Floats, same_label: NDArray[np.bool_]) -> None:
        """Rank the items for a batch of queries by scores [queries, items]; -inf is left out."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
        matches = np.take_along_axis(same_label, order, axis=1)
        nearest = order[:, : self.nearest.shape[1]]
        self.nearest[batch] = nearest
        self.hits[batch] = matches[:, : nearest.shape[1]]
        self.scores[batch] = np.take_along_axis(scores, nearest, axis=1)
        precision = matches.cumsum(1) / np.arange(1, matches.shape[1] + 1)
        self.precision[batch] = (precision * matches).sum(1) / matches.sum(1)


def _search(
    vectors: Floats, codes: NDArray[np.intp], queries: NDArray[np.intp]
) -> _Retrieved:
    retrieved = _Retrieved(queries, min(NEIGHBOURS, max(len(codes) - 1, 1)))
    rng = np.random.default_rng(0)
    same: list[Floats] = []
    different: list[Floats] = []
    limit = PAIRS * AT_ONCE // max(len(queries), 1) + 1
    for at in range(0, len(queries), AT_ONCE):
        rows = queries[at : at + AT_ONCE]
        scores = vectors[rows] @ vectors.T
        scores[np.arange(len(rows)), rows] = -np.inf  # an item does not find itself
        same_label = codes[rows][:, None] == codes[None, :]
        retrieved.add(slice(at, at + len(rows)), scores, same_label)
        others = np.isfinite(scores)
        same.append(_sampled(rng, scores[same_label & others], limit))
        different.append(_sampled(rng, scores[~same_label & others], limit))
    if same:
        retrieved.same = np.concatenate(same)
        retrieved.different = np.concatenate(different)
    return retrieved


def _sampled(rng: np.random.Generator, values: Floats, limit: int) -> Floats:
    if len(values) <= limit:
        return values
    return rng.choice(values, limit, replace=False)


def histogram(same: Floats, different: Floats, name: str) -> bytes:
    """A histogram of cosines of pairs that belong together (labelled `name`) and of others, as a
    PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for values, name_of_values, color in (
        (different, "others", WRONG),
        (same, name, RIGHT),
    ):
        if len(values):
            axes.hist(
                values,
                bins=80,
                range=(-1, 1),
                density=True,
                alpha=0.6,
                color=color,
                label=name_of_values,
            )
    axes.set(xlabel="cosine similarity", ylabel="density", title="Pairs of test items")
    if len(same) or len(different):
        axes.legend()
    return as_png(figure)


def _sheet(measured: Measured, retrieved: _Retrieved) -> bytes:
    """Some queries with their nearest neighbours, right ones framed green and wrong ones red, as a
    PNG.
    """
    from matplotlib.figure import Figure

    chosen = _chosen(retrieved.hits[:, 0])
    columns = 1 + retrieved.nearest.shape[1]
    rows_shown = [
        int(row)
        for number in chosen
        for row in (retrieved.queries[number], *retrieved.nearest[number])
    ]
    distinct = sorted(set(rows_shown))
    raw: dict[int, Raw] = dict(zip(distinct, measured.show(distinct), strict=True))
    figure = Figure(figsize=(1.5 * columns, 1.75 * len(chosen)), layout="constrained")
    grid = figure.subplots(len(chosen), columns, squeeze=False)
    for cell, (axes, row) in enumerate(zip(grid.flat, rows_shown, strict=True)):
        number, column = chosen[cell // columns], cell % columns
        pixels = image_decoder.read_pixels(raw[row])
        axes.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None, vmin=0, vmax=255)
        axes.set_xticks([])
        axes.set_yticks([])
        label = str(measured.truths[row])
        name = label if len(label) <= 18 else f"…{label[-17:]}"
        title = (
            name
            if not column
            else f"{name}\n{retrieved.scores[number, column - 1]:.2f}"
        )
        axes.set_title(title, fontsize=6, parse_math=False)
        color, width = "black", 1
        if column:
            color = RIGHT if retrieved.hits[number, column - 1] else WRONG
            width = 3
        for spine in axes.spines.values():
            spine.set(color=color, linewidth=width)
    return as_png(figure)


def _chosen(right: NDArray[np.bool_]) -> list[int]:
    """The queries to show: wrong ones up to half, the others spread evenly."""
    wrong, correct = np.flatnonzero(~right), np.flatnonzero(right)
    chosen_wrong = _spread(wrong, max(SHOWN // 2, SHOWN - len(correct)))
    return [*_spread(correct, SHOWN - len(chosen_wrong)), *chosen_wrong]


def _spread(values: NDArray[np.intp], count: int) -> list[int]:
    chosen = np.linspace(0, len(values) - 1, min(count, len(values))).astype(int)
    return [int(value) for value in values[chosen]]


def as_png(figure: Any) -> bytes:
    """A matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return buffer.getvalue()
