"""CTC decoding: from scores of each frame to a text, greedy or by beam search (Graves et al.
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
CANDIDATES = 12
"""Characters that are considered at each position."""
MAX_GAP = 12.0
"""How far below the best character's log-probability a candidate may be, in nats."""


class TimedText(NamedTuple):
    """A text with its start and end (excluded), in positions of the network's output."""

    text: str
    start: int
    end: int


def greedy(scores: Scores, labels: Sequence[str]) -> list[TimedText]:
    """The best character of each position of log-probabilities [positions, characters + 1], without
    repetitions and blanks (0).
    """
    best = scores.argmax(axis=1)
    changes = np.flatnonzero(np.diff(best, prepend=-1, append=-1))
    return [
        TimedText(labels[best[start] - 1], start, end)
        for start, end in pairwise(changes.tolist())
        if best[start]
    ]


def beam(scores: Scores, labels: Sequence[str], width: int) -> list[TimedText]:
    """The most probable text by prefix beam search over `width` prefixes (Hannun et al. 2014).

    Each character starts at the position at which its prefix was first extended.
    """
    prefixes = Prefixes()
    beams: dict[int, tuple[float, float]] = {0: (0.0, -math.inf)}
    for position, row in enumerate(scores):
        extended = _extended(beams, _candidates(row), prefixes)
        best = heapq.nlargest(
            width, extended.items(), key=lambda beam: _log_add(*beam[1])
        )
        beams = {
            prefixes.index_of(key, position): (blank, ending)
            for key, (blank, ending) in best
        }
    return prefixes.characters(next(iter(beams)), labels, len(scores))


def _candidates(row: Scores) -> list[tuple[int, float]]:
    """The characters that are considered at a position, and their log-probabilities."""
    best = np.argpartition(-row, min(CANDIDATES, len(row)) - 1)[:CANDIDATES]
    best = best[~(row[best] < row.max() - MAX_GAP)]
    return list(zip(best.tolist(), row[best].tolist(), strict=True))


def _extended(
    beams: dict[int, tuple[float, float]],
    candidates: list[tuple[int, float]],
    prefixes: "Prefixes",
) -> dict["PrefixKey", list[float]]:
    """All prefixes after one more position, with the probabilities of ending in a blank or not."""
    next_beams: dict[PrefixKey, list[float]] = {}
    for text, (blank, ending) in beams.items():
        total = _log_add(blank, ending)
        for number, value in candidates:
            if number == 0:
                _add(next_beams, text, 0, total + value)
            elif number == prefixes.last(text):
                _add(next_beams, text, 1, ending + value)
                _add(
                    next_beams,
                    prefixes.extended(text, number),
                    1,
                    blank + value,
                )
            else:
                _add(
                    next_beams,
                    prefixes.extended(text, number),
                    1,
                    total + value,
                )
    return next_beams


PrefixKey = int | tuple[int, int]
"""The index of a prefix; of a new one the index of its parent and its last character."""


class Prefixes:
    """Prefixes as a tree: each is its parent and one character, so long ones cost no more."""

    def __init__(self) -> None:
        self._parent = [0]
        self._character = [0]
        self._position = [0]
        self._extended: dict[tuple[int, int], int] = {}

    def last(self, text: int) -> int:
        """The last character of a prefix; 0 for the empty one."""
        return self._character[text]

    def extended(self, text: int, number: int) -> PrefixKey:
        """The key of a prefix extended by a character."""
        return self._extended.get((text, number), (text, number))

    def index_of(self, text: PrefixKey, position: int) -> int:
        """The index of a prefix, which is added when it is new, at this position."""
        if isinstance(text, tuple):
            self._extended[text] = len(self._parent)
            parent, character = text
            self._parent.append(parent)
            self._character.append(character)
            self._position.append(position)
            return len(self._parent) - 1
        return text

    def characters(
        self, text: int, labels: Sequence[str], end: int
    ) -> list[TimedText]:
        """The characters of a prefix, each up to the start of the next."""
        result = []
        while text:
            result.append(
                TimedText(
                    labels[self._character[text] - 1], self._position[text], end
                )
            )
            text, end = self._parent[text], self._position[text]
        return result[::-1]


def _add(
    next_beams: dict[PrefixKey, list[float]],
    key: PrefixKey,
    kind: int,
    value: float,
) -> None:
    """Add the probability of one alignment of a prefix that ends in a blank (0) or in its last
    character (1).
    """
    result = next_beams.setdefault(key, [-math.inf, -math.inf])
    result[kind] = _log_add(result[kind], value)


def _log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    more, less = max(a, b), min(a, b)
    return (
        more if less == -math.inf else more + math.log1p(math.exp(less - more))
    )


def words(characters: Sequence[TimedText]) -> list[TimedText]:
    """Characters joined to words between spaces; in scripts without spaces each one is a word."""
    result: list[TimedText] = []
    new_word = True
    for character in characters:
        unspaced = UNSPACED.match(character.text) is not None
        if not character.text.strip():
            new_word = True
        elif new_word or unspaced:
            result.append(character)
            new_word = unspaced
        else:
            result[-1] = _joined(result[-1], character)
    return result


def _joined(word: TimedText, character: TimedText) -> TimedText:
    return TimedText(word.text + character.text, word.start, character.end)
