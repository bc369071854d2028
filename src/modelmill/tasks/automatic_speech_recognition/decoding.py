"""From the scores of each place to a text: connectionist temporal classification (Graves et al.
2006).
"""

import heapq
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from modelmill.tasks.decoding.unspaced_scripts import UNSPACED

Scores = np.ndarray[Any, Any]
NEAR, FAR = 12, 12.0
"""Characters that a beam considers at each place, and how much less likely than the best (in nats)
they may be.
"""


class Heard(NamedTuple):
    """A text and the places at which it begins and ends (the end excluded)."""

    text: str
    start: int
    end: int


def greedy(scores: Scores, labels: Sequence[str]) -> list[Heard]:
    """The best character of each place of `scores` [places, characters + 1], repetitions and
    nothing (0) left out.
    """
    best = scores.argmax(axis=1)
    changes = np.flatnonzero(np.diff(best, prepend=-1, append=-1))
    return [
        Heard(labels[best[start] - 1], start, end)
        for start, end in pairwise(changes.tolist())
        if best[start]
    ]


def beam(scores: Scores, labels: Sequence[str], width: int) -> list[Heard]:
    """The likeliest text, summed over the ways to say it, of `width` that are followed (Hannun et
    al. 2014).

    Places are those at which a text was first followed.
    """
    texts = Texts()
    beams: dict[int, tuple[float, float]] = {0: (0.0, -math.inf)}
    for place, row in enumerate(scores):
        near = np.argpartition(-row, min(NEAR, len(row)) - 1)[:NEAR]
        near = near[~(row[near] < row.max() - FAR)]
        ways = list(zip(near.tolist(), row[near].tolist(), strict=True))
        grown: dict[Name, list[float]] = {}
        for text, (blank, spoken) in beams.items():
            whole = _both(blank, spoken)
            for number, value in ways:
                if number == 0:
                    _add(grown, text, 0, whole + value)
                elif number == texts.last(text):
                    _add(grown, text, 1, spoken + value)
                    _add(grown, texts.longer(text, number), 1, blank + value)
                else:
                    _add(grown, texts.longer(text, number), 1, whole + value)
        best = heapq.nlargest(width, grown.items(), key=lambda one: _both(*one[1]))
        beams = {texts.kept(text, place): (found[0], found[1]) for text, found in best}
    return texts.heard(next(iter(beams)), labels, len(scores))


Name = int | tuple[int, int]
"""A text by its number; one that is not kept yet by that of its beginning, and its last
character.
"""


class Texts:
    """Texts that are followed, each as the one before and a character: a long one costs no more
    than a short one.
    """

    def __init__(self) -> None:
        self._before = [0]
        self._number = [0]
        self._place = [0]
        self._longer: dict[tuple[int, int], int] = {}

    def last(self, text: int) -> int:
        """Its last character; 0 of the empty text."""
        return self._number[text]

    def longer(self, text: int, number: int) -> Name:
        """A text and one more character."""
        return self._longer.get((text, number), (text, number))

    def kept(self, text: Name, place: int) -> int:
        """The number of a text, which goes on at a place."""
        if isinstance(text, tuple):
            self._longer[text] = len(self._before)
            for column, value in zip(
                (self._before, self._number, self._place), (*text, place), strict=True
            ):
                column.append(value)
            return len(self._before) - 1
        return text

    def heard(self, text: int, labels: Sequence[str], end: int) -> list[Heard]:
        """Its characters, each up to the next one."""
        found = []
        while text:
            found.append(Heard(labels[self._number[text] - 1], self._place[text], end))
            text, end = self._before[text], self._place[text]
        return found[::-1]


def _add(grown: dict[Name, list[float]], text: Name, kind: int, value: float) -> None:
    """Count one more way to a text, whose last place says nothing (0) or its last character (1)."""
    found = grown.setdefault(text, [-math.inf, -math.inf])
    found[kind] = _both(found[kind], value)


def _both(one: float, other: float) -> float:
    """The logarithm of the sum of two numbers, of their logarithms."""
    more, less = (one, other) if one > other else (other, one)
    return more if less == -math.inf else more + math.log1p(math.exp(less - more))


def words(heard: Sequence[Heard]) -> list[Heard]:
    """Characters put together to what stands between blanks; in scripts without them each one is a
    word.
    """
    found: list[Heard] = []
    fresh = True
    for one in heard:
        alone = UNSPACED.match(one.text) is not None
        if not one.text.strip():
            fresh = True
        elif fresh or alone:
            found.append(one)
            fresh = alone
        else:
            last = found[-1]
            found[-1] = Heard(last.text + one.text, last.start, one.end)
    return found
