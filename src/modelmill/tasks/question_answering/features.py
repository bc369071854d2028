"""What a question and its passage have in common, for each token of the passage."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np

Array = np.ndarray[Any, Any]
WINDOWS = (3, 8, 20)
LEAST_LETTERS, LEAST_LIKENESS = 4, 0.5
"""Of words that are compared letter by letter, and how alike they are at least to count."""
COUNT, ALIKE = 9 + len(WINDOWS), 1
"""Features, and which of them says how alike a word is to its partner."""
ENDING, ENDINGS = 3, 512
"""Letters of a word's ending, and how many endings are told apart (by a hash)."""
ENDS = frozenset(".!?\u3002\uff01\uff1f\uff1b;")


def partners(passage: Sequence[str], question: Sequence[str]) -> tuple[Array, Array]:
    """Where in the question each word of a passage has its like, from 1 (0: nowhere), and how alike
    they are, 0..1.

    The same word, or else the one that shares most of its pairs of letters (Dice): it finds
    `teacher` by `teaching`, and a name that a listener wrote down in another way. Of several places
    that which goes on from the word before.
    """
    asked = [word.lower() for word in question]
    spelt = [
        (place, _letters(word))
        for place, word in enumerate(asked, 1)
        if len(word) >= LEAST_LETTERS
    ]
    known: dict[str, tuple[int, float]] = {
        word: (place, 1.0) for place, word in reversed([*enumerate(asked, 1)])
    }
    places, alike = np.zeros(len(passage), np.int64), np.zeros(len(passage), np.float32)
    before = 0
    for number, word in enumerate(map(str.lower, passage)):
        if word not in known:
            known[word] = _nearest(word, spelt)
        place, alike[number] = known[word]
        before = (
            before + 1 if 0 < before < len(asked) and asked[before] == word else place
        )
        places[number] = before
    return places, alike


def _nearest(word: str, spelt: Sequence[tuple[int, set[str]]]) -> tuple[int, float]:
    """The place of the word of a question that is spelt most like another, and how alike they are;
    (0, 0): none is.
    """
    own = _letters(word) if len(word) >= LEAST_LETTERS else set()
    best, place = max(
        ((2 * len(own & other) / (len(own) + len(other)), -at) for at, other in spelt),
        default=(0.0, 0),
    )
    return (-place, best) if best >= LEAST_LIKENESS else (0, 0.0)


def _letters(word: str) -> set[str]:
    return {one + other for one, other in pairwise(f"^{word[:30]}$")}


def endings(words: Sequence[str]) -> Array:
    """A number from 1 for each word's last letters, int64 [words]: what is left of grammar in a
    word that is rare.
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
    alike: Array,
    ids: Array,
    tokens: int,
) -> Array:
    """Float32 [passage, COUNT]; words as they are in the texts, `ids` of the passage's (the smaller
    the commoner).

    `alike`: of `partners`.

    Matches as in DrQA (Chen et al. 2017, arXiv 1704.00051): the word, and one that is spelt alike;
    by how rare it is; with its neighbour; summed over windows; in the best sentence; beside a
    number; and how often the passage has it.
    """
    asked = [word.lower() for word in question]
    words = [word.lower() for word in passage]
    whole = set(asked)
    pairs = set(pairwise(asked))
    size = len(words)
    rare = np.log(np.where(ids > 1, ids, tokens) + 1.0) / np.log(tokens + 2.0)
    match = np.array([word in whole for word in words], np.float32)
    pair = np.zeros(size, np.float32)
    for place, two in enumerate(pairwise(words)):
        if two in pairs:
            pair[place : place + 2] = 1
    weight = alike * rare
    total = max(
        1e-3, float(sum(rare[words.index(word)] for word in whole if word in words))
    )
    around = [
        np.convolve(weight, np.ones(2 * width + 1), "same") / total
        for width in WINDOWS
        if size
    ]
    found = [
        match,
        alike,
        pair,
        weight,
        rare,
        _of_sentences(words, weight / total),
        np.array(
            [any(letter.isdigit() for letter in word) for word in words], np.float32
        ),
        np.array([word[:1].isupper() for word in passage], np.float32),
        _shares(words),
        *(_fitted(one, size) for one in around),
    ]
    return (
        np.stack(found, 1).astype(np.float32)
        if size
        else np.zeros((0, COUNT), np.float32)
    )


def _fitted(values: Array, size: int) -> Array:
    """np.convolve gives as many as the longer side has."""
    extra = len(values) - size
    return values[extra // 2 : extra // 2 + size]


def _of_sentences(words: Sequence[str], weight: Array) -> Array:
    """For each token what its sentence has in common with the question."""
    ends = np.cumsum([0, *(word in ENDS for word in words)])[:-1]
    return np.bincount(ends, weight)[ends] if len(words) else weight


def _shares(words: Sequence[str]) -> Array:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return np.array([counts[word] / len(words) for word in words], np.float32)


def window_baseline(
    question: Sequence[str],
    passage: Sequence[str],
    alike: Array,
    ids: Array,
    tokens: int,
    length: int = 3,
) -> tuple[int, int]:
    """The tokens [from, to) that the sliding-window baseline answers (Richardson et al. 2013,
    MCTest).

    Of all spans of `length` tokens without words of the question, that whose surroundings have most
    of them.
    """
    found = features(question, passage, alike, ids, tokens)
    if not len(found):
        return 0, 0
    score, match = found[:, 9 + 1], found[:, 0]
    best, place = -1.0, 0
    for start in range(max(1, len(found) - length + 1)):
        if match[start : start + length].any():
            continue
        value = float(score[start : start + length].mean())
        if value > best:
            best, place = value, start
    return place, min(len(found), place + length)
