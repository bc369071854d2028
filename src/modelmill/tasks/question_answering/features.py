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


def partners(passage: Sequence[str], question: Sequence[str]) -> tuple[Array, Array]:
    """The position from 1 of the question word that matches each passage word (0: none), int64, and
    the similarity of the two, 0..1, float32.

    A match is the same word, or else the one with the highest Dice coefficient of letter pairs: it
    matches `teacher` with `teaching`, and spellings of a name. Of several equal positions the one
    that continues the match of the word before is taken.
    """
    question_words = [word.lower() for word in question]
    letter_pairs = [
        (position, _letters(word))
        for position, word in enumerate(question_words, 1)
        if len(word) >= MIN_LETTERS
    ]
    matches: dict[str, tuple[int, float]] = {
        word: (position, 1.0)
        for position, word in reversed([*enumerate(question_words, 1)])
    }
    positions = np.zeros(len(passage), np.int64)
    similarity = np.zeros(len(passage), np.float32)
    last = 0
    for number, word in enumerate(map(str.lower, passage)):
        if word not in matches:
            matches[word] = _nearest(word, letter_pairs)
        position, similarity[number] = matches[word]
        continues = 0 < last < len(question_words) and question_words[last] == word
        last = last + 1 if continues else position
        positions[number] = last
    return positions, similarity


def _nearest(
    word: str, letter_pairs: Sequence[tuple[int, set[str]]]
) -> tuple[int, float]:
    """The position of the question word with the most similar spelling, and the similarity; (0, 0)
    where all are below `MIN_SIMILARITY`.
    """
    own = _letters(word) if len(word) >= MIN_LETTERS else set()
    best, negative = max(
        (
            (2 * len(own & other) / (len(own) + len(other)), -position)
            for position, other in letter_pairs
        ),
        default=(0.0, 0),
    )
    return (-negative, best) if best >= MIN_SIMILARITY else (0, 0.0)


def _letters(word: str) -> set[str]:
    return {left + right for left, right in pairwise(f"^{word[:30]}$")}


def endings(words: Sequence[str]) -> Array:
    """A hash from 1 to `ENDINGS` - 1 of each word's last letters, int64 [words]: it carries the
    grammar of rare words.
    """
    return np.array(
        [
            1 + crc32(word[-ENDING:].lower().encode("utf-8", "replace")) % (ENDINGS - 1)
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
    question_words = [word.lower() for word in question]
    words = [word.lower() for word in passage]
    whole = set(question_words)
    pairs = set(pairwise(question_words))
    size = len(words)
    rarity = np.log(np.where(ids > 1, ids, tokens) + 1.0) / np.log(tokens + 2.0)
    match = np.array([word in whole for word in words], np.float32)
    pair = np.zeros(size, np.float32)
    for position, two in enumerate(pairwise(words)):
        if two in pairs:
            pair[position : position + 2] = 1
    weight = similarity * rarity
    total = max(
        1e-3, float(sum(rarity[words.index(word)] for word in whole if word in words))
    )
    windows = [
        np.convolve(weight, np.ones(2 * width + 1), "same") / total
        for width in WINDOWS
        if size
    ]
    columns = [
        match,
        similarity,
        pair,
        weight,
        rarity,
        _sentence_sums(words, weight / total),
        np.array(
            [any(letter.isdigit() for letter in word) for word in words], np.float32
        ),
        np.array([word[:1].isupper() for word in passage], np.float32),
        _frequencies(words),
        *(_fitted(window, size) for window in windows),
    ]
    return (
        np.stack(columns, 1).astype(np.float32)
        if size
        else np.zeros((0, COUNT), np.float32)
    )


def _fitted(values: Array, size: int) -> Array:
    """The middle `size` values: np.convolve returns as many as the longer input has."""
    extra = len(values) - size
    return values[extra // 2 : extra // 2 + size]


def _sentence_sums(words: Sequence[str], weight: Array) -> Array:
    """For each token the summed match weight of its sentence."""
    ends = np.cumsum([0, *(word in ENDS for word in words)])[:-1]
    return np.bincount(ends, weight)[ends] if len(words) else weight


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
    score, match = columns[:, 9 + 1], columns[:, 0]
    best, best_start = -1.0, 0
    for start in range(max(1, len(columns) - length + 1)):
        if match[start : start + length].any():
            continue
        value = float(score[start : start + length].mean())
        if value > best:
            best, best_start = value, start
    return best_start, min(len(columns), best_start + length)
