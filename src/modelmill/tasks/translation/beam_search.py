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


class Continuations(NamedTuple):
    """The best texts of one token more, the best first, of each sentence [N, M]: beams that they
    continue, added tokens, and scores.
    """

    parents: Array
    tokens: Array
    scores: Array

    def without(self, end: int, most: int) -> "Continuations":
        """The best of those that do not end; where there are too few, others at minus infinity."""
        scores = np.where(self.tokens == end, -np.inf, self.scores)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :most]
        return Continuations(
            np.take_along_axis(self.parents, order, 1),
            np.take_along_axis(self.tokens, order, 1),
            np.take_along_axis(scores, order, 1),
        )


class Beams:
    """The beams of all unfinished sentences: row `sentence * beams + beam` of each array."""

    def __init__(
        self, first: Arrays, beams: int, end: int, banned: Sequence[int]
    ) -> None:
        count, source = first["memory_seen"].shape[:2]
        self.end, self.banned = end, list(banned)
        self.active = np.arange(count)
        self.hypotheses: list[list[Hypothesis]] = [[] for _ in range(count)]
        self.cache = {
            name: array
            for name, array in first.items()
            if name.startswith(CACHE)
        }
        # Before the first token there is one beam.
        self.tokens = np.zeros((count, 1, 0), np.int64)
        self.scores = np.zeros((count, 1), np.float32)
        self.attention = np.zeros((count, 1, 0, source), np.float32)
        self.extend(first["logits"], first["attention"], beams)

    def extend(self, logits: Array, attention: Array, beams: int) -> None:
        """Extend each beam by a token: the best continuations become the beams, those that end are
        finished. `logits` [rows, tokens], `attention` [rows, S].
        """
        count, before, _ = self.tokens.shape
        looked = attention.reshape(count, before, 1, -1)
        self.attention = np.concatenate([self.attention, looked], 2)
        best = self._continuations(logits, 2 * beams)
        self._finish_ended(best, beams)
        best = best.without(self.end, beams)
        self._follow(best)
        self._select(
            (np.arange(count)[:, None] * before + best.parents).ravel()
        )

    def _continuations(self, logits: Array, most: int) -> "Continuations":
        """The best texts of one token more, of each sentence."""
        count, before, _ = self.tokens.shape
        added_scores = log_probabilities(logits, self.banned).reshape(
            count, before, -1
        )
        scores = self.scores[:, :, None] + added_scores
        best, values = _best(scores.reshape(count, -1), most)
        return Continuations(
            best // scores.shape[2], best % scores.shape[2], values
        )

    def _finish_ended(self, best: "Continuations", beams: int) -> None:
        """Keep the texts that end, of the first so many of each sentence."""
        length = self.tokens.shape[2] + 1
        ended = best.tokens[:, :beams] == self.end
        for row, rank in zip(*np.nonzero(ended), strict=True):
            self._finish(
                row, best.parents[row, rank], best.scores[row, rank], length
            )

    def _follow(self, best: "Continuations") -> None:
        """Make the continuations the beams."""
        parents = best.parents[:, :, None]
        earlier = np.take_along_axis(self.tokens, parents, 1)
        self.scores = best.scores
        self.tokens = np.concatenate([earlier, best.tokens[:, :, None]], 2)
        self.attention = np.take_along_axis(
            self.attention, parents[..., None], 1
        )

    def _finish(self, row: int, parent: int, score: float, length: int) -> None:
        if np.isfinite(score):
            tokens = self.tokens[row, parent]
            attention = self.attention[row, parent, : len(tokens)]
            hypothesis = Hypothesis(
                tokens, float(score) / length**LENGTH, attention
            )
            self.hypotheses[self.active[row]].append(hypothesis)

    def drop_finished(self, limits: Array) -> None:
        """Remove sentences whose best text is known or that are `limits` tokens [N] long."""
        stay = np.array(
            [self._goes_on(row, limits) for row in range(len(self.active))]
        )
        if not stay.all():
            self.active, self.tokens = self.active[stay], self.tokens[stay]
            self.scores, self.attention = (
                self.scores[stay],
                self.attention[stay],
            )
            self._select(np.flatnonzero(np.repeat(stay, self.tokens.shape[1])))

    def _goes_on(self, row: int, limits: Array) -> bool:
        """Whether a better text of a sentence may still be found; at its limit the best beam is
        its text where none ended before.
        """
        beams, length = self.tokens.shape[1:]
        sentence, best = self.active[row], self.scores[row, 0]
        hypotheses = self.hypotheses[sentence]
        if length >= limits[sentence]:
            if not hypotheses:
                self._finish(row, 0, best, length)
            return False
        if not np.isfinite(best):
            return False
        return len(hypotheses) < beams or bool(
            best / (length + 1) ** LENGTH > max(one.score for one in hypotheses)
        )

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
        state.cache |= _next_states(answers)
        state.extend(answers["logits"], answers["attention"], beams)
        state.drop_finished(limits)
    nothing = _no_text(first["memory_seen"].shape[1])
    return [
        max(
            hypotheses, key=lambda hypothesis: hypothesis.score, default=nothing
        )
        for hypotheses in state.hypotheses
    ]


def _next_states(answers: Arrays) -> Arrays:
    """What a step answers for the step after it, by the names of its inputs."""
    return {
        f"state_{name[5:]}": array
        for name, array in answers.items()
        if name.startswith("next_")
    }


def _no_text(source: int) -> Hypothesis:
    """The translation of a sentence of so many tokens for which none was found."""
    return Hypothesis(
        np.zeros(0, np.int64), 0.0, np.zeros((0, source), np.float32)
    )


def _best(scores: Array, count: int) -> tuple[Array, Array]:
    """Columns and values of the `count` largest scores of each row [N, M], the largest first."""
    count = min(count, scores.shape[1])
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    values = np.take_along_axis(scores, best, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(best, order, 1), np.take_along_axis(
        values, order, 1
    )


def log_probabilities(logits: Array, banned: Sequence[int]) -> Array:
    """Log-probabilities [N, tokens] of logits, minus infinity for banned tokens."""
    scores = log_shares(logits.astype(np.float32))
    scores[:, list(banned)] = -np.inf
    return scores
