"""How vectors are measured: each item searches for its like among all others."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelmill.tasks.base import Evaluation, Measured, Raw
from modelmill.tasks.decoding import image_decoder
from modelmill.types import Json

QUERIES = 5000
"""Most items that search; more of them are taken evenly. All are searched in."""
AT_ONCE = 512
NEIGHBOURS = 5
SHOWN = 8
"""Queries in the picture, half of them wrong ones where there are so many."""
PAIRS = 200_000
"""Most similarities of each kind in the histogram."""
RIGHT, WRONG = "#2a9d3a", "#d03030"

Floats = NDArray[np.float32]


def evaluate(measured: Measured) -> Evaluation:
    """Leave-one-out retrieval: recall at 1 and at 5, mean average precision, and the separation of
    similarities.

    Outputs are unit vectors, truths are labels. An item searches when there is another one of its
    label; `recall_at_k` is the share of searches with one of them among the first k, `map` the mean
    over the searches of the average precision (Manning et al., Introduction to Information
    Retrieval, 8.4).
    """
    metrics, pictures, found = figures(
        np.asarray(measured.outputs, np.float32), measured.truths
    )
    if len(found.queries):
        pictures["neighbours.png"] = _sheet(measured, found)
    return Evaluation(metrics=metrics, pictures=pictures)


def figures(
    vectors: Floats, truths: Sequence[Any]
) -> tuple[Json, dict[str, bytes], "_Found"]:
    """Metrics, a histogram, and what the searches found."""
    names, codes = np.unique(np.asarray(truths), return_inverse=True)
    able = np.flatnonzero(np.bincount(codes)[codes] > 1)
    queries = (
        able[np.linspace(0, len(able) - 1, min(QUERIES, len(able))).astype(int)]
        if len(able)
        else able
    )
    found = _searched(vectors, codes, queries)
    metrics: Json = {
        "recall_at_1": float(found.hits[:, 0].mean()) if len(queries) else 0.0,
        "recall_at_5": float(found.hits.any(axis=1).mean()) if len(queries) else 0.0,
        "map": float(found.precision.mean()) if len(queries) else 0.0,
        "items": len(codes),
        "queries": len(queries),
        "classes": len(names),
    }
    return (
        metrics,
        {"similarities.png": histogram(found.same, found.different, "same label")},
        found,
    )


class _Found:
    """What the searches found: the nearest items [queries, NEIGHBOURS], hits, average precision,
    similarities.
    """

    def __init__(self, queries: NDArray[np.intp], near: int) -> None:
        self.queries, count = queries, len(queries)
        self.nearest = np.zeros((count, near), np.intp)
        self.scores = np.zeros((count, near), np.float32)
        self.hits = np.zeros((count, near), bool)
        self.precision = np.zeros(count)
        self.same: Floats = np.zeros(0, np.float32)
        self.different: Floats = np.zeros(0, np.float32)


def _searched(
    vectors: Floats, codes: NDArray[np.intp], queries: NDArray[np.intp]
) -> _Found:
    found = _Found(queries, min(NEIGHBOURS, max(len(codes) - 1, 1)))
    rng = np.random.default_rng(0)
    kept: tuple[list[Floats], list[Floats]] = ([], [])
    room = PAIRS * AT_ONCE // max(len(queries), 1) + 1
    for at in range(0, len(queries), AT_ONCE):
        rows = queries[at : at + AT_ONCE]
        scores = vectors[rows] @ vectors.T
        alike = codes[rows][:, None] == codes[None, :]
        scores[np.arange(len(rows)), rows] = -np.inf  # an item does not find itself
        order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
        ranked = np.take_along_axis(alike, order, axis=1)
        part, near = slice(at, at + len(rows)), found.nearest.shape[1]
        found.nearest[part], found.hits[part] = order[:, :near], ranked[:, :near]
        found.scores[part] = np.take_along_axis(scores, order[:, :near], axis=1)
        precision = ranked.cumsum(axis=1) / np.arange(1, ranked.shape[1] + 1)
        found.precision[part] = (precision * ranked).sum(axis=1) / ranked.sum(axis=1)
        seen = np.isfinite(scores)
        for kind, which in zip(kept, (alike & seen, ~alike & seen), strict=True):
            values = scores[which]
            kind.append(
                rng.choice(values, room, replace=False)
                if len(values) > room
                else values
            )
    found.same, found.different = (
        np.concatenate(kind) if kind else found.same for kind in kept
    )
    return found


def histogram(same: Floats, different: Floats, name: str) -> bytes:
    """How similar pairs that belong together (called `name`) and those that do not are, as a
    PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for values, told, color in ((different, "others", WRONG), (same, name, RIGHT)):
        if len(values):
            axes.hist(
                values,
                bins=80,
                range=(-1, 1),
                density=True,
                alpha=0.6,
                color=color,
                label=told,
            )
    axes.set(xlabel="cosine similarity", ylabel="density", title="Pairs of test items")
    if len(same) or len(different):
        axes.legend()
    return as_png(figure)


def _sheet(measured: Measured, found: _Found) -> bytes:
    """Some queries with their nearest neighbours, right ones framed green and wrong ones red, as a
    PNG.
    """
    from matplotlib.figure import Figure

    chosen = _chosen(found.hits[:, 0])
    columns = 1 + found.nearest.shape[1]
    places = [
        int(row)
        for number in chosen
        for row in (found.queries[number], *found.nearest[number])
    ]
    distinct = sorted(set(places))
    raw: dict[int, Raw] = dict(zip(distinct, measured.show(distinct), strict=True))
    figure = Figure(figsize=(1.5 * columns, 1.75 * len(chosen)), layout="constrained")
    grid = figure.subplots(len(chosen), columns, squeeze=False)
    for place, (axes, row) in enumerate(zip(grid.flat, places, strict=True)):
        number, column = chosen[place // columns], place % columns
        pixels = image_decoder.read_pixels(raw[row])
        axes.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None, vmin=0, vmax=255)
        axes.set_xticks([])
        axes.set_yticks([])
        label = str(measured.truths[row])
        name = label if len(label) <= 18 else f"…{label[-17:]}"
        title = (
            name if not column else f"{name}\n{found.scores[number, column - 1]:.2f}"
        )
        axes.set_title(title, fontsize=6, parse_math=False)
        color = (
            "black"
            if not column
            else RIGHT
            if found.hits[number, column - 1]
            else WRONG
        )
        for spine in axes.spines.values():
            spine.set(color=color, linewidth=1 if not column else 3)
    return as_png(figure)


def _chosen(right: NDArray[np.bool_]) -> list[int]:
    """The queries to show: wrong ones up to half, the others spread evenly."""
    wrong, good = np.flatnonzero(~right), np.flatnonzero(right)
    shown = _spread(wrong, max(SHOWN // 2, SHOWN - len(good)))
    return [*_spread(good, SHOWN - len(shown)), *shown]


def _spread(values: NDArray[np.intp], most: int) -> list[int]:
    places = np.linspace(0, len(values) - 1, min(most, len(values))).astype(int)
    return [int(values[place]) for place in places]


def as_png(figure: Any) -> bytes:
    """A matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return buffer.getvalue()
