"""From a JPEG of 1280x720 to the 224x224 pixels of a model, on one core: `python -m bench.decode`.

Ours is the decode of training and serving; beside it Pillow in full, as most servers have it. Both
in one process, in turns; the difference of what they give is told with the times.
"""

import io
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from bench.running import shared, table
from modelmill.tasks.decoding.image_decoder import Preprocessing, decode

SIZE, SIDE = (1280, 720), 224
ROUNDS, PICTURES = 9, 12
BAR, LEVELS = 1.8, 8.0
Array = np.ndarray[Any, Any]


def measure() -> str:
    """Medians of interleaved rounds; returns a Markdown table with the ratio and the difference in
    grey levels.
    """
    data = photograph()
    how = Preprocessing(height=SIDE, width=SIDE, color="rgb", dct_scaling=True)
    ways: dict[str, Callable[[], Array]] = {
        "ours": lambda: decode(data, how),
        "pillow": lambda: in_full(data),
    }
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        times = _times(ways)
    finally:
        os.sched_setaffinity(0, allowed)
    ratio = times["pillow"] / times["ours"]
    difference = np.abs(ways["ours"]().astype(int) - ways["pillow"]())
    mean, most = float(difference.mean()), float(np.percentile(difference, 95))
    rows = [
        ["modelmill, as in training and serving", f"{1 / times['ours']:,.0f}"],
        ["Pillow in full, then resized", f"{1 / times['pillow']:,.0f}"],
        [
            f"**ratio {ratio:.2f}** (bar {BAR}: {'met' if ratio >= BAR else 'MISSED'})",
            "",
        ],
        [
            f"difference: mean {mean:.2f}, 95th percentile {most:.0f} grey levels "
            f"(bar {LEVELS:.0f}: {'met' if most <= LEVELS else 'MISSED'})",
            "",
        ],
    ]
    return table(["way", "pictures/s of a core"], rows)


def _times(ways: dict[str, Callable[[], Array]]) -> dict[str, float]:
    """Seconds of a core that a picture takes by way, medians over rounds in turns: others may use
    the core too.
    """
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name in ways if number % 2 else reversed(list(ways)):
            started = time.thread_time()
            for _ in range(PICTURES):
                ways[name]()
            rounds[name].append((time.thread_time() - started) / PICTURES)
    return {name: statistics.median(values) for name, values in rounds.items()}


def in_full(data: bytes) -> Array:
    """What a Pillow tutorial would write, with the same filter."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(
            image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        )


def photograph() -> bytes:
    """A photograph of 1280x720 at quality 85; a made scene where the shared pictures are not
    here.
    """
    path = shared("request_samples/exif_orientation_1.jpg")
    if path is None:
        rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
        waves = np.stack(
            [
                np.sin(rows / 31),
                np.cos(columns / 23),
                np.sin((rows + columns) / 7),
            ],
            2,
        )
        image = Image.fromarray((127 + 90 * waves).astype(np.uint8))
    else:
        with Image.open(path) as photo:
            image = ImageOps.fit(photo.convert("RGB"), SIZE)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()


if __name__ == "__main__":
    print(measure())
