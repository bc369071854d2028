"""Beam search: the likeliest texts among those that begin most likely, for many sentences at
once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from modelmill.generation.sampling import log_shares
from modelmill.tasks.base import Arrays

Array = np.ndarray[Any, Any]
Step = Callable[[Arrays], Arrays]
LENGTH = 0.8
"""Scores are divided by the length to this power, as longer texts are never likelier (Wu et al.
2016, 1609.08144).
"""
KEPT = ("memory_", "state_")


class Found(NamedTuple):
    """A text: its tokens without the end, its score, and where each of them looked [T, S]."""

    tokens: Array
    score: float
    looked: Array


class Beams:
    """The beams of all sentences that are still written: rows `sentence * beams + beam`."""

    def __init__(
        self, first: Arrays, beams: int, end: int, banned: Sequence[int]
    ) -> None:
        count = len(first["logits"])
        self.end, self.banned = end, list(banned)
        self.open = np.arange(count)
        self.found: list[list[Found]] = [[] for _ in range(count)]
        self.kept = {
            name: array for name, array in first.items() if name.startswith(KEPT)
        }
        # Before the first token there is one beam; the others are no texts.
        self.tokens = np.zeros((count, 1, 0), np.int64)
        self.scores = np.zeros((count, 1), np.float32)
        self.looked = np.zeros((count, 1, 0, first["memory_seen"].shape[1]), np.float32)
        self.grow(first["logits"], first["attention"], beams)

    def grow(self, logits: Array, looked: Array, beams: int) -> None:
        """A token more for each beam: of all continuations the best ones stay, those that end
        leave.
        """
        count, before, length = self.tokens.shape
        scores = self.scores[:, :, None] + likely(logits, self.banned).reshape(
            count, before, -1
        )
        tokens = scores.shape[2]
        flat = scores.reshape(count, -1)
        some = min(2 * beams, flat.shape[1])
        best = np.argpartition(-flat, some - 1, axis=1)[:, :some]
        best = np.take_along_axis(
            best,
            np.argsort(-np.take_along_axis(flat, best, 1), axis=1, kind="stable"),
            1,
        )
        values = np.take_along_axis(flat, best, 1)
        parents = best // tokens
        added = best % tokens
        self.looked = np.concatenate(
            [self.looked, looked.reshape(count, before, 1, -1)], 2
        )
        ended = added == self.end
        for row, rank in zip(*np.nonzero(ended[:, :beams]), strict=True):
            self._leave(row, parents[row, rank], values[row, rank], length + 1)
        values[ended] = -np.inf
        order = np.argsort(-values, axis=1, kind="stable")[:, :beams]
        parents, added = (np.take_along_axis(one, order, 1) for one in (parents, added))
        self.scores = np.take_along_axis(values, order, 1)
        self.tokens = np.concatenate(
            [
                np.take_along_axis(self.tokens, parents[:, :, None], 1),
                added[:, :, None],
            ],
            2,
        )
        self.looked = np.take_along_axis(self.looked, parents[:, :, None, None], 1)
        self._choose((np.arange(count)[:, None] * before + parents).ravel())

    def _leave(self, row: int, parent: int, score: float, length: int) -> None:
        if np.isfinite(score):
            tokens = self.tokens[row, parent]
            found = Found(
                tokens,
                float(score) / length**LENGTH,
                self.looked[row, parent, : len(tokens)],
            )
            self.found[self.open[row]].append(found)

    def close(self, most: Array) -> None:
        """Let go of sentences that have enough, can't be bettered, or are as long as they may
        be.
        """
        beams, length = self.tokens.shape[1:]
        stay = np.ones(len(self.open), bool)
        for row, sentence in enumerate(self.open):
            found, best = self.found[sentence], self.scores[row, 0]
            if length >= most[sentence]:
                if not found:
                    self._leave(row, 0, best, length)
                stay[row] = False
            elif len(found) >= beams:
                stay[row] = best / (length + 1) ** LENGTH > max(
                    one.score for one in found
                )
            stay[row] &= bool(np.isfinite(best))
        if not stay.all():
            self.open, self.tokens = self.open[stay], self.tokens[stay]
            self.scores, self.looked = self.scores[stay], self.looked[stay]
            self._choose(np.flatnonzero(np.repeat(stay, beams)))

    def _choose(self, rows: Array) -> None:
        self.kept = {name: array[rows] for name, array in self.kept.items()}


def search(
    first: Arrays, step: Step, beams: int, most: Array, end: int, banned: Sequence[int]
) -> list[Found]:
    """The best text of each sentence, of at most `most` tokens [N], from what `begin` said of them
    (`_seq2seq`).
    """
    every = Beams(first, beams, end, banned)
    every.close(most)
    while len(every.open):
        last = every.tokens[:, :, -1].ravel()
        said = step({"token": last, **every.kept})
        every.kept |= {
            f"state_{name[5:]}": array
            for name, array in said.items()
            if name.startswith("next_")
        }
        every.grow(said["logits"], said["attention"], beams)
        every.close(most)
    nothing = Found(
        np.zeros(0, np.int64),
        0.0,
        np.zeros((0, first["memory_seen"].shape[1]), np.float32),
    )
    return [
        max(found, key=lambda one: one.score, default=nothing) for found in every.found
    ]


def likely(logits: Array, banned: Sequence[int]) -> Array:
    """Logarithms of probabilities [N, tokens], without what may not be said."""
    scores = log_shares(logits.astype(np.float32))
    scores[:, list(banned)] = -np.inf
    return scores
