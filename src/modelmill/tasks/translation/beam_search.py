"""Beam search over many sentences at once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from modelmill.generation.sampling import log_shares
from modelmill.tasks.base import Arrays

Array = np.ndarray[Any, Any]
Step = Callable[[Arrays], Arrays]
LENGTH = 0.8
"""Exponent of the length by which scores are divided, for longer texts are never likelier (Wu et
al. 2016, arXiv 1609.08144).
"""
CACHE = ("memory_", "state_")


class Hypothesis(NamedTuple):
    """A finished text: tokens without the end token [T], score, attention over the source [T,
    S].
    """

    tokens: Array
    score: float
    attention: Array


class Beams:
    """The beams of all unfinished sentences: row `sentence * beams + beam` of each array."""

    def __init__(
        self, first: Arrays, beams: int, end: int, banned: Sequence[int]
    ) -> None:
        count = len(first["logits"])
        self.end, self.banned = end, list(banned)
        self.active = np.arange(count)
        self.hypotheses: list[list[Hypothesis]] = [[] for _ in range(count)]
        self.cache = {
            name: array for name, array in first.items() if name.startswith(CACHE)
        }
        # Before the first token there is one beam.
        self.tokens = np.zeros((count, 1, 0), np.int64)
        self.scores = np.zeros((count, 1), np.float32)
        self.attention = np.zeros(
            (count, 1, 0, first["memory_seen"].shape[1]), np.float32
        )
        self.extend(first["logits"], first["attention"], beams)

    def extend(self, logits: Array, attention: Array, beams: int) -> None:
        """Extend each beam by a token: the best continuations become the beams, those that end are
        finished. `logits` [rows, tokens], `attention` [rows, S].
        """
        count, before, length = self.tokens.shape
        added_scores = log_probabilities(logits, self.banned).reshape(count, before, -1)
        scores = self.scores[:, :, None] + added_scores
        best, values = _best(scores.reshape(count, -1), 2 * beams)
        parents = best // scores.shape[2]
        added = best % scores.shape[2]
        self.attention = np.concatenate(
            [self.attention, attention.reshape(count, before, 1, -1)], 2
        )
        ended = added == self.end
        for row, rank in zip(*np.nonzero(ended[:, :beams]), strict=True):
            self._finish(row, parents[row, rank], values[row, rank], length + 1)
        values[ended] = -np.inf
        order = np.argsort(-values, axis=1, kind="stable")[:, :beams]
        parents = np.take_along_axis(parents, order, 1)
        added = np.take_along_axis(added, order, 1)
        self.scores = np.take_along_axis(values, order, 1)
        self.tokens = np.concatenate(
            [
                np.take_along_axis(self.tokens, parents[:, :, None], 1),
                added[:, :, None],
            ],
            2,
        )
        self.attention = np.take_along_axis(
            self.attention, parents[:, :, None, None], 1
        )
        self._select((np.arange(count)[:, None] * before + parents).ravel())

    def _finish(self, row: int, parent: int, score: float, length: int) -> None:
        if np.isfinite(score):
            tokens = self.tokens[row, parent]
            attention = self.attention[row, parent, : len(tokens)]
            hypothesis = Hypothesis(tokens, float(score) / length**LENGTH, attention)
            self.hypotheses[self.active[row]].append(hypothesis)

    def drop_finished(self, limits: Array) -> None:
        """Remove sentences whose best text is known or that are `limits` tokens [N] long."""
        beams, length = self.tokens.shape[1:]
        stay = np.ones(len(self.active), bool)
        for row, sentence in enumerate(self.active):
            hypotheses, best = self.hypotheses[sentence], self.scores[row, 0]
            if length >= limits[sentence]:
                if not hypotheses:
                    self._finish(row, 0, best, length)
                stay[row] = False
            elif len(hypotheses) >= beams:
                stay[row] = best / (length + 1) ** LENGTH > max(
                    hypothesis.score for hypothesis in hypotheses
                )
            stay[row] &= bool(np.isfinite(best))
        if not stay.all():
            self.active, self.tokens = self.active[stay], self.tokens[stay]
            self.scores, self.attention = self.scores[stay], self.attention[stay]
            self._select(np.flatnonzero(np.repeat(stay, beams)))

    def _select(self, rows: Array) -> None:
        self.cache = {name: array[rows] for name, array in self.cache.items()}


def search(
    first: Arrays,
    step: Step,
    beams: int,
    limits: Array,
    end: int,
    banned: Sequence[int],
) -> list[Hypothesis]:
    """The best text of each sentence.

    `first` is what `begin` answered (`networks.seq2seq`), `step` runs the step graph, `limits` [N]
    are the most tokens of each text, `end` is the end token, `banned` are tokens never produced.
    """
    state = Beams(first, beams, end, banned)
    state.drop_finished(limits)
    while len(state.active):
        last = state.tokens[:, :, -1].ravel()
        answers = step({"token": last, **state.cache})
        state.cache |= {
            f"state_{name[5:]}": array
            for name, array in answers.items()
            if name.startswith("next_")
        }
        state.extend(answers["logits"], answers["attention"], beams)
        state.drop_finished(limits)
    nothing = Hypothesis(
        np.zeros(0, np.int64),
        0.0,
        np.zeros((0, first["memory_seen"].shape[1]), np.float32),
    )
    return [
        max(hypotheses, key=lambda hypothesis: hypothesis.score, default=nothing)
        for hypotheses in state.hypotheses
    ]


def _best(scores: Array, count: int) -> tuple[Array, Array]:
    """Columns and values of the `count` largest scores of each row [N, M], the largest first."""
    count = min(count, scores.shape[1])
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    values = np.take_along_axis(scores, best, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(best, order, 1), np.take_along_axis(values, order, 1)


def log_probabilities(logits: Array, banned: Sequence[int]) -> Array:
    """Log-probabilities [N, tokens] of logits, minus infinity for banned tokens."""
    scores = log_shares(logits.astype(np.float32))
    scores[:, list(banned)] = -np.inf
    return scores
