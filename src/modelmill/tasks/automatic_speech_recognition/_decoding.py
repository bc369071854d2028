"""From the scores of each place to a text: connectionist temporal classification (Graves et al. 2006)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Scores = np.ndarray[Any, Any]
NEAR = 12
"""Characters that a beam considers at each place."""


class Heard(NamedTuple):
    """A text and the places at which it begins and ends (the end excluded)."""

    text: str
    start: int
    end: int


def greedy(scores: Scores, labels: Sequence[str]) -> list[Heard]:
    """The best character of each place of `scores` [places, characters + 1], repetitions and nothing (0) left out."""
    best = scores.argmax(axis=1)
    changes = np.flatnonzero(np.diff(best, prepend=-1, append=-1))
    return [Heard(labels[best[start] - 1], start, end) for start, end in pairwise(changes.tolist()) if best[start]]


def beam(scores: Scores, labels: Sequence[str], width: int) -> list[Heard]:
    """The likeliest text, summed over the ways to say it, of `width` that are followed (Hannun et al. 2014).

    Places are those of the likeliest way found.
    """
    beams: dict[tuple[int, ...], tuple[float, float, tuple[int, ...]]] = {(): (0.0, -np.inf, ())}
    for place, row in enumerate(scores):
        near = np.argpartition(-row, min(NEAR, len(row)) - 1)[:NEAR]
        grown: dict[tuple[int, ...], list[Any]] = {}
        for text, (blank, spoken, places) in beams.items():
            whole = float(np.logaddexp(blank, spoken))
            for number in near.tolist():
                value = float(row[number])
                if number == 0:
                    _add(grown, text, 0, whole + value, places)
                elif text and text[-1] == number:
                    _add(grown, text, 1, spoken + value, places)
                    _add(grown, (*text, number), 1, blank + value, (*places, place))
                else:
                    _add(grown, (*text, number), 1, whole + value, (*places, place))
        ranked = sorted(grown.items(), key=lambda one: -float(np.logaddexp(one[1][0], one[1][1])))[:width]
        beams = {text: (found[0], found[1], found[2]) for text, found in ranked}
    text, (_, _, places) = next(iter(beams.items()))
    ends = [*places[1:], len(scores)][: len(text)]
    return [Heard(labels[number - 1], start, end) for number, start, end in zip(text, places, ends, strict=True)]


def _add(grown: dict[tuple[int, ...], list[Any]], text: tuple[int, ...], kind: int, value: float, places: Any) -> None:
    """Count one more way to a text, whose last place says nothing (0) or its last character (1)."""
    found = grown.setdefault(text, [-np.inf, -np.inf, places])
    found[kind] = float(np.logaddexp(found[kind], value))


def words(heard: Sequence[Heard]) -> list[Heard]:
    """Characters put together to what stands between blanks."""
    found: list[Heard] = []
    fresh = True
    for one in heard:
        if not one.text.strip():
            fresh = True
        elif fresh:
            found.append(one)
            fresh = False
        else:
            last = found[-1]
            found[-1] = Heard(last.text + one.text, last.start, one.end)
    return found
