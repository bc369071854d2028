"""Retrieval metrics of embeddings: each item is a query among all others."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelmill.tasks.base import Evaluation, Measured, Raw
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.evaluation import figures
from modelmill.types import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
Flags = NDArray[np.bool_]
Codes = NDArray[np.intp]


def evaluate(measured: Measured) -> Evaluation:
    """Leave-one-out retrieval: recall at 1 and at 5, mean average precision, and the separation of
    similarities.

    Outputs are unit vectors, truths are labels. An item is a query when another one has its label;
    `recall_at_k` is the share of queries with such an item among the first k, `map` the mean over
    the queries of the average precision (Manning et al., Introduction to Information Retrieval,
    8.4).
    """
    vectors = np.asarray(measured.outputs, np.float32)
    metrics, pictures, retrieved = measures(vectors, measured.truths)
    if len(retrieved.queries):
        pictures["neighbours.png"] = _sheet(measured, retrieved)
    return Evaluation(metrics=metrics, pictures=pictures)


def measures(
    vectors: Floats, truths: Sequence[Any]
) -> tuple[Json, dict[str, bytes], "_Retrieved"]:
    """Metrics, pictures and results of retrieval; `vectors` [items, D] are unit vectors, `truths`
    their labels.
    """
    names, codes = np.unique(np.asarray(truths), return_inverse=True)
    retrieved = _search(vectors, codes, _queries(codes))
    metrics = {**retrieved.metrics(), "classes": len(names)}
    picture = histogram(retrieved.same, retrieved.different, "same label")
    return metrics, {"similarities.png": picture}, retrieved


def _queries(codes: Codes) -> Codes:
    """The items whose label another one has, `QUERIES` of them where there are more."""
    answerable: Codes = np.flatnonzero(np.bincount(codes)[codes] > 1)
    if len(answerable) > QUERIES:
        spread = np.linspace(0, len(answerable) - 1, QUERIES).astype(int)
        answerable = answerable[spread]
    return answerable


class _Retrieved:
    """Results of all queries: nearest items and their scores [queries, NEIGHBOURS], whether they
    have the query's label, average precision [queries], and samples of similarities.
    """

    def __init__(self, items: int, queries: Codes) -> None:
        self.items, self.queries = items, queries
        shape = (len(queries), min(NEIGHBOURS, max(items - 1, 1)))
        self.nearest = np.zeros(shape, np.intp)
        self.scores = np.zeros(shape, np.float32)
        self.hits = np.zeros(shape, bool)
        self.precision = np.zeros(len(queries))
        self.same: Floats = np.zeros(0, np.float32)
        self.different: Floats = np.zeros(0, np.float32)

    def add(self, batch: slice, scores: Floats, same_label: Flags) -> None:
        """Rank the items for a batch of queries by scores [queries, items]; -inf is left out."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
        matches = np.take_along_axis(same_label, order, axis=1)
        nearest = order[:, : self.nearest.shape[1]]
        self.nearest[batch] = nearest
        self.hits[batch] = matches[:, : nearest.shape[1]]
        self.scores[batch] = np.take_along_axis(scores, nearest, axis=1)
        self.precision[batch] = _average_precision(matches)

    def metrics(self) -> Json:
        """Recall and mean average precision over the queries; 0 without any."""
        some = len(self.queries) > 0
        return {
            "recall_at_1": float(self.hits[:, 0].mean()) if some else 0.0,
            "recall_at_5": float(self.hits.any(1).mean()) if some else 0.0,
            "map": float(self.precision.mean()) if some else 0.0,
            "items": self.items,
            "queries": len(self.queries),
        }

    def found_by(self, query: int) -> list[int]:
        """The item that a query is, and its neighbours, the nearest first."""
        return [int(row) for row in (self.queries[query], *self.nearest[query])]


def _average_precision(matches: Flags) -> NDArray[np.float64]:
    """The average precision [queries] of ranked items that are right or wrong."""
    precision = matches.cumsum(1) / np.arange(1, matches.shape[1] + 1)
    return np.asarray((precision * matches).sum(1) / matches.sum(1))


class _Pairs:
    """Samples of the similarities of pairs, at most `limit` of each batch and kind."""

    def __init__(self, rng: np.random.Generator, limit: int) -> None:
        self._rng, self._limit = rng, limit
        self.same: list[Floats] = []
        self.different: list[Floats] = []

    def add(self, scores: Floats, same_label: Flags) -> None:
        """Sample a batch of queries [queries, items]; scores of -inf are left out."""
        others = np.isfinite(scores)
        self.same.append(self._sampled(scores[same_label & others]))
        self.different.append(self._sampled(scores[~same_label & others]))

    def _sampled(self, values: Floats) -> Floats:
        if len(values) <= self._limit:
            return values
        return self._rng.choice(values, self._limit, replace=False)


def _search(vectors: Floats, codes: Codes, queries: Codes) -> _Retrieved:
    retrieved = _Retrieved(len(codes), queries)
    limit = PAIRS * AT_ONCE // max(len(queries), 1) + 1
    pairs = _Pairs(np.random.default_rng(0), limit)
    for at in range(0, len(queries), AT_ONCE):
        rows = queries[at : at + AT_ONCE]
        scores = _cosines_with_others(vectors, rows)
        same_label = codes[rows][:, None] == codes[None, :]
        retrieved.add(slice(at, at + len(rows)), scores, same_label)
        pairs.add(scores, same_label)
    if pairs.same:
        retrieved.same = np.concatenate(pairs.same)
        retrieved.different = np.concatenate(pairs.different)
    return retrieved


def _cosines_with_others(vectors: Floats, rows: Codes) -> Floats:
    """[queries, items]; minus infinity for each item itself, which it does not find."""
    scores = vectors[rows] @ vectors.T
    scores[np.arange(len(rows)), rows] = -np.inf
    return scores


def histogram(same: Floats, different: Floats, name: str) -> bytes:
    """A histogram of cosines of pairs that belong together (labelled `name`) and of others, as a
    PNG.
    """
    figure = figures.blank(7, 3.6)
    axes = figure.subplots()
    _draw_histogram(axes, different, WRONG, "others")
    _draw_histogram(axes, same, RIGHT, name)
    axes.set(
        xlabel="cosine similarity",
        ylabel="density",
        title="Pairs of test items",
    )
    if len(same) or len(different):
        axes.legend()
    return figures.as_png(figure)


def _draw_histogram(
    axes: "Axes", values: Floats, color: str, name: str
) -> None:
    if len(values):
        axes.hist(
            values,
            bins=80,
            range=(-1, 1),
            density=True,
            alpha=0.6,
            color=color,
            label=name,
        )


def _sheet(measured: Measured, retrieved: _Retrieved) -> bytes:
    """Some queries with their nearest neighbours, right ones framed green and wrong ones red, as a
    PNG.
    """
    chosen = _chosen(retrieved.hits[:, 0])
    columns = 1 + retrieved.nearest.shape[1]
    rows = [retrieved.found_by(number) for number in chosen]
    raw = _raw_of(measured, rows)
    figure = figures.blank(1.5 * columns, 1.75 * len(chosen))
    grid = figure.subplots(len(chosen), columns, squeeze=False)
    for (line, column), axes in np.ndenumerate(grid):
        row = rows[line][column]
        _draw_item(axes, raw[row])
        name = _shortened(str(measured.truths[row]))
        if column:
            _frame_neighbour(axes, retrieved, (chosen[line], column - 1), name)
        else:
            _frame(axes, name, "black", 1)
    return figures.as_png(figure)


def _draw_item(axes: "Axes", raw: Raw) -> None:
    figures.show(axes, image_decoder.read_pixels(raw))
    axes.set_xticks([])
    axes.set_yticks([])


def _raw_of(
    measured: Measured, rows: Sequence[Sequence[int]]
) -> dict[int, Raw]:
    """The pictures of these items, each read once."""
    distinct = sorted({row for line in rows for row in line})
    return dict(zip(distinct, measured.show(distinct), strict=True))


def _shortened(label: str) -> str:
    return label if len(label) <= 18 else f"…{label[-17:]}"


def _frame_neighbour(
    axes: "Axes", retrieved: _Retrieved, place: tuple[int, int], name: str
) -> None:
    """Frame what a query found; `place` is the query's number and the neighbour's rank."""
    color = RIGHT if retrieved.hits[place] else WRONG
    _frame(axes, f"{name}\n{retrieved.scores[place]:.2f}", color, 3)


def _frame(axes: "Axes", title: str, color: str, width: float) -> None:
    axes.set_title(title, fontsize=6, parse_math=False)
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=width)


def _chosen(right: Flags) -> list[int]:
    """The queries to show: wrong ones up to half, the others spread evenly."""
    wrong, correct = np.flatnonzero(~right), np.flatnonzero(right)
    chosen_wrong = _spread(wrong, max(SHOWN // 2, SHOWN - len(correct)))
    return [*_spread(correct, SHOWN - len(chosen_wrong)), *chosen_wrong]


def _spread(values: Codes, count: int) -> list[int]:
    chosen = np.linspace(0, len(values) - 1, min(count, len(values))).astype(
        int
    )
    return [int(value) for value in values[chosen]]
