"""How fast an index of vectors answers, one thread: `python -m bench.index`.

The vectors are like those of a model: clusters on the unit sphere. What is found is compared with
looking at all.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.running import table
from modelmill.control.vector_index import EXACT, NewItem, VectorIndex

DIMENSIONS = 128
K = 10
QUERIES = 500
AT_ONCE = 1000
BAR_MS = 5.0


def measure(sizes: list[int]) -> str:
    """Fill indexes of these sizes, search them, open them again; returns a Markdown table."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    rows = []
    try:
        for size in sizes:
            rows.append(_case(size))
            print("|", " | ".join(rows[-1]), "|", flush=True)
    finally:
        os.sched_setaffinity(0, allowed)
    return table(
        [
            "vectors",
            "search",
            "median, ms",
            "p99, ms",
            "bar",
            f"recall@{K}",
            "added/s",
            "opened, s",
            "graph made again, s",
            "command",
        ],
        rows,
    )


def _case(size: int) -> list[str]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(size // 50, 1), DIMENSIONS))
    vectors = (
        centres[rng.integers(0, len(centres), size)]
        + rng.normal(size=(size, DIMENSIONS)) * 0.6
    )
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(
        np.float32
    )
    queries = (
        vectors[rng.integers(0, size, QUERIES)]
        + rng.normal(size=(QUERIES, DIMENSIONS)).astype(np.float32) * 0.03
    )
    with tempfile.TemporaryDirectory() as folder:
        VectorIndex.create(Path(folder))
        index = VectorIndex(Path(folder), DIMENSIONS)
        started = time.perf_counter()
        for at in range(0, size, AT_ONCE):
            index.add(
                [
                    NewItem(vector, f"c{row}")
                    for row, vector in enumerate(vectors[at : at + AT_ONCE], at)
                ]
            )
        added = size / (time.perf_counter() - started)
        index.settle()
        taken, right = [], 0
        for query in queries:
            started = time.perf_counter()
            found = index.search(query, K)
            taken.append(1000 * (time.perf_counter() - started))
            best = np.argpartition(-(vectors @ query), K)[:K]
            right += len({hit.id - 1 for hit in found} & set(best.tolist()))
        opened = _opened(Path(folder), made=False)
        (Path(folder) / "graph").unlink(missing_ok=True)
        again = _opened(Path(folder), made=True)
    median, late = np.percentile(taken, [50, 99])
    return [
        f"{size:,}",
        "exact" if size <= EXACT else "HNSW",
        f"{median:.2f}",
        f"{late:.2f}",
        f"{BAR_MS:g} {'met' if median < BAR_MS else 'MISSED'}",
        f"{right / (K * QUERIES):.4f}",
        f"{added:,.0f}",
        f"{opened:.1f}",
        f"{again:.1f}",
        f"`python -m bench.index {size}`",
    ]


def _opened(folder: Path, *, made: bool) -> float:
    """Seconds until an index that is on disk answers, or until its graph is made."""
    started = time.perf_counter()
    index = VectorIndex(folder, DIMENSIONS)
    assert len(index)
    if made:
        index.settle()
    return time.perf_counter() - started


if __name__ == "__main__":
    measure([int(word) for word in sys.argv[1:]] or [EXACT, 100_000])
