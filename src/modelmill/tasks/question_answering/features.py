"""Features of each passage token: how it matches the question."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np

Array = np.ndarray[Any, Any]
WINDOWS = (3, 8, 20)
"""Tokens on each side over which matches are summed."""
MIN_LETTERS = 4
"""Letters of words that are compared by their letters."""
MIN_SIMILARITY = 0.5
"""Similarity (Dice) from which two words count as a match."""
COUNT = 9 + len(WINDOWS)
"""Features of a token."""
SIMILARITY = 1
"""Index of the feature that holds the similarity of a word and its partner."""
ENDING = 3
"""Letters of a word's ending."""
ENDINGS = 512
"""Numbers to which endings are hashed."""
ENDS = frozenset(".!?\u3002\uff01\uff1f\uff1b;")


def partners(
    passage: Sequence[str], question: Sequence[str]
) -> tuple[Array, Array]:
    """The position from 1 of the question word that matches each passage word (0: none), int64, and
    the similarity of the two, 0..1, float32.

    A match is the same word, or else the one with the highest Dice coefficient of letter pairs: it
    matches `teacher` with `teaching`, and spellings of a name. Of several equal positions the one
    that continues the match of the word before is taken.
    """
    question_words = [word.lower() for word in question]
    matches = _Matches(question_words)
    positions = np.zeros(len(passage), np.int64)
    similarity = np.zeros(len(passage), np.float32)
    last = 0
    for number, word in enumerate(map(str.lower, passage)):
        position, similarity[number] = matches.of(word)
        continues = (
            0 < last < len(question_words) and question_words[last] == word
        )
        last = last + 1 if continues else position
        positions[number] = last
    return positions, similarity


class _Matches:
    """The position from 1 of the question word that matches a word, and their similarity."""

    def __init__(self, question: Sequence[str]) -> None:
        numbered = list(enumerate(question, 1))
        self._pairs = [
            (n, _letters(word)) for n, word in numbered if _is_long(word)
        ]
        # The first of equal words counts.
        self._known = {word: (n, 1.0) for n, word in reversed(numbered)}

    def of(self, word: str) -> tuple[int, float]:
        """(0, 0) where nothing matches; looked for once for each word."""
        if word not in self._known:
            self._known[word] = _nearest(word, self._pairs)
        return self._known[word]


def _is_long(word: str) -> bool:
    return len(word) >= MIN_LETTERS


def _nearest(
    word: str, letter_pairs: Sequence[tuple[int, set[str]]]
) -> tuple[int, float]:
    """The position of the question word with the most similar spelling, and the similarity; (0, 0)
    where all are below `MIN_SIMILARITY`.
    """
    own = _letters(word) if _is_long(word) else set()
    alike = ((_dice(own, other), -position) for position, other in letter_pairs)
    best, negative = max(alike, default=(0.0, 0))
    return (-negative, best) if best >= MIN_SIMILARITY else (0, 0.0)


def _dice(one: set[str], other: set[str]) -> float:
    return 2 * len(one & other) / (len(one) + len(other))


def _letters(word: str) -> set[str]:
    return {left + right for left, right in pairwise(f"^{word[:30]}$")}


def endings(words: Sequence[str]) -> Array:
    """A hash from 1 to `ENDINGS` - 1 of each word's last letters, int64 [words]: it carries the
    grammar of rare words.
    """
    return np.array(
        [
            1
            + crc32(word[-ENDING:].lower().encode("utf-8", "replace"))
            % (ENDINGS - 1)
            for word in words
        ],
        np.int64,
    )


def features(
    question: Sequence[str],
    passage: Sequence[str],
    similarity: Array,
    ids: Array,
    tokens: int,
) -> Array:
    """Match features of the passage's tokens, float32 [passage, COUNT].

    `question` and `passage` are words as written, `similarity` that of `partners`, `ids` the token
    ids of the passage (smaller for commoner words), `tokens` the size of the vocabulary. Features
    as in DrQA (Chen et al. 2017, arXiv 1704.00051): exact match, similar spelling, match of a pair
    of words, weight by rarity, rarity, matches of its sentence, digit, capital, frequency in the
    passage, matches in windows.
    """
    if not passage:
        return np.zeros((0, COUNT), np.float32)
    question_words = [word.lower() for word in question]
    words = [word.lower() for word in passage]
    whole = set(question_words)
    rarity = np.log(np.where(ids > 1, ids, tokens) + 1.0) / np.log(tokens + 2.0)
    weight = similarity * rarity
    total = _total_rarity(whole, words, rarity)
    columns = [
        np.array([word in whole for word in words], np.float32),
        similarity,
        _matched_pairs(question_words, words),
        weight,
        rarity,
        _sentence_sums(words, weight / total),
        np.array([any(map(str.isdigit, word)) for word in words], np.float32),
        np.array([word[:1].isupper() for word in passage], np.float32),
        _frequencies(words),
        *_window_sums(weight, total),
    ]
    return np.stack(columns, 1).astype(np.float32)


def _matched_pairs(question: Sequence[str], words: Sequence[str]) -> Array:
    """1 for both words of a pair that follow one another in the question, too."""
    pairs = set(pairwise(question))
    matched = np.zeros(len(words), np.float32)
    for position, two in enumerate(pairwise(words)):
        if two in pairs:
            matched[position : position + 2] = 1
    return matched


def _total_rarity(
    whole: set[str], words: Sequence[str], rarity: Array
) -> float:
    """The summed rarity of the question words that the passage has."""
    found = sum(rarity[words.index(word)] for word in whole if word in words)
    return max(1e-3, float(found))


def _window_sums(weight: Array, total: float) -> list[Array]:
    """The summed weight around each token, for each of `WINDOWS`."""
    sums = (
        np.convolve(weight, np.ones(2 * width + 1), "same") for width in WINDOWS
    )
    return [_fitted(window / total, len(weight)) for window in sums]


def _fitted(values: Array, size: int) -> Array:
    """The middle `size` values: np.convolve returns as many as the longer input has."""
    extra = len(values) - size
    return values[extra // 2 : extra // 2 + size]


def _sentence_sums(words: Sequence[str], weight: Array) -> Array:
    """For each token the summed match weight of its sentence."""
    ends = np.cumsum([0, *(word in ENDS for word in words)])[:-1]
    return np.asarray(np.bincount(ends, weight)[ends])


def _frequencies(words: Sequence[str]) -> Array:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return np.array([counts[word] / len(words) for word in words], np.float32)


def window_baseline(
    question: Sequence[str],
    passage: Sequence[str],
    similarity: Array,
    ids: Array,
    tokens: int,
    length: int = 3,
) -> tuple[int, int]:
    """The answer [start, end) in tokens of the sliding-window baseline (Richardson et al. 2013,
    MCTest): of all spans of `length` tokens without question words, the one with the most question
    words around it.
    """
    columns = features(question, passage, similarity, ids, tokens)
    if not len(columns):
        return 0, 0
    start = _best_window(columns[:, 9 + 1], columns[:, 0], length)
    return start, min(len(columns), start + length)


def _best_window(score: Array, match: Array, length: int) -> int:
    """Where the span with the highest mean score begins, of those without a match."""
    best, best_start = -1.0, 0
    for start in range(max(1, len(score) - length + 1)):
        if match[start : start + length].any():
            continue
        value = float(score[start : start + length].mean())
        if value > best:
            best, best_start = value, start
    return best_start
