"""Networks that find the answer of a question in a passage."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from modelmill.tasks.networks.recurrent import BidirectionalGru
from modelmill.tasks.networks.token_ids import attention_mask, drop_words
from modelmill.tasks.networks.transformer import MASKED, Encoder
from modelmill.tasks.question_answering.features import (
    COUNT,
    ENDINGS,
    SIMILARITY,
)


class Pointers(nn.Module):
    """Logits of the answer's start and end, from the passage's states and the question's vector."""

    def __init__(self, states: int, question: int) -> None:
        super().__init__()
        self.start, self.end = (
            nn.Linear(question, states),
            nn.Linear(question, states),
        )
        self.own = nn.Linear(states, 2)
        self.none = nn.Linear(question, 2)

    def forward(
        self, states: Tensor, question: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States [N, C, S], question [N, K] and mask [N, C] -> logits of start and end [N, C + 1];
        position 0 stands for "no answer".
        """
        bias, none = self.own(states), self.none(question)

        def logits(side: int, query: Tensor) -> Tensor:
            scores = (states @ query[:, :, None])[:, :, 0] + bias[:, :, side]
            scores = scores.masked_fill(~mask, MASKED)
            return torch.cat([none[:, side : side + 1], scores], 1)

        return logits(0, self.start(question)), logits(1, self.end(question))


class Reader(nn.Module):
    """DrQA's document reader: recurrent layers over word vectors, aligned question words and match
    features (Chen et al. 2017, arXiv 1704.00051).

    Made for few questions: only the `known` commonest words have vectors of their own; the others
    are represented by their endings and by how they match the question. A passage word that matches
    a question word also gets the question's state there.
    """

    def __init__(
        self,
        tokens: int,
        *,
        width: int,
        hidden: int,
        layers: int,
        known: int,
        dropout: float,
        word_dropout: float,
    ) -> None:
        super().__init__()
        self.known, self.word_dropout = min(tokens, known), word_dropout
        self.embedding = nn.Embedding(self.known, width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.endings = nn.Embedding(ENDINGS, width // 4)
        self.align = nn.Linear(width, width)
        self.common = nn.Linear(COUNT, width // 2)
        self.question = BidirectionalGru(width, hidden)
        first = 2 * width + width // 2 + 2 * hidden + width // 4
        sizes = [first, *[2 * hidden] * (layers - 1)]
        self.passage = nn.ModuleList(
            BidirectionalGru(size, hidden) for size in sizes
        )
        self.weigh = nn.Linear(2 * hidden, 1)
        self.pointers = Pointers(2 * hidden * layers + width // 2, 2 * hidden)
        self.dropout = nn.Dropout(dropout)

    def _words(self, ids: Tensor) -> Tensor:
        """Word vectors of ids [N, L]; rare words, and in training random ones, are unknown (1)."""
        ids = torch.where(ids < self.known, ids, torch.ones_like(ids))
        if self.training and self.word_dropout:
            ids = drop_words(ids, self.word_dropout)
        return self.dropout(self.embedding(ids))  # type: ignore[no-any-return]

    def forward(
        self,
        question: Tensor,
        passage: Tensor,
        features: Tensor,
        endings: Tensor,
        partners: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Ids of question [N, Q] and passage [N, C], features [N, C, F], endings and partners [N,
        C] -> logits of start and end [N, C + 1].
        """
        mask = passage != 0
        question_mask = attention_mask(question)
        question_words, passage_words = (
            self._words(question),
            self._words(passage),
        )
        question_states = self.dropout(
            self.question(question_words, question_mask)
        )
        matches = torch.relu(self.common(features))
        parts = [
            passage_words,
            self._aligned(passage_words, question_words, question_mask),
            matches,
            matched_states(question_states, features, partners),
            self.dropout(self.endings(endings)),
        ]
        states = self._states(torch.cat(parts, 2), mask)
        pooled = self._pooled(question_states, question_mask)
        passage = torch.cat([matches, *states], 2)
        return self.pointers(passage, pooled, mask)  # type: ignore[no-any-return]

    def _states(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        """The states of the passage after each layer, [N, C, 2 * hidden]."""
        states = []
        for layer in self.passage:
            x = self.dropout(layer(x, mask))
            states.append(x)
        return states

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        """The question [N, 2 * hidden]: the mean of its words' states by learnt weights."""
        weights = (
            self.weigh(states)[:, :, 0].masked_fill(~mask, MASKED).softmax(1)
        )
        pooled: Tensor = (weights[:, None] @ states)[:, 0]
        return pooled

    def _aligned(
        self, passage: Tensor, question: Tensor, mask: Tensor
    ) -> Tensor:
        """For each passage word the question words, weighted by attention: [N, C, width]."""
        keys = torch.relu(self.align(question)).transpose(1, 2)
        scores = torch.relu(self.align(passage)) @ keys
        return (
            scores.masked_fill(~mask[:, None, :], MASKED).softmax(2) @ question
        )


class ReaderEnsemble(nn.Module):
    """Readers that are trained independently; the answer is the mean of their probabilities."""

    def __init__(self, members: Iterable[Reader]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """As a reader's; in training the members' rows one after another [members * N, C + 1]."""
        starts, ends = zip(
            *(member(*inputs) for member in self.members), strict=True
        )
        if self.training:
            return torch.cat(starts), torch.cat(ends)
        return _mean_probabilities(starts), _mean_probabilities(ends)


def _mean_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """The log of the mean of the probabilities of several logits [N, C + 1]."""
    members = torch.stack([each.float().log_softmax(1) for each in logits])
    return members.logsumexp(0) - math.log(len(logits))


def matched_states(
    states: Tensor, features: Tensor, partners: Tensor
) -> Tensor:
    """For each passage word [N, C] the state of its matching question word [N, Q, S], scaled by
    their similarity: [N, C, S].
    """
    index = (
        (partners - 1).clamp(min=0)[:, :, None].expand(-1, -1, states.shape[2])
    )
    similarity = features[:, :, SIMILARITY, None] * (partners > 0)[:, :, None]
    return states.gather(1, index) * similarity


class SpanHead(nn.Module):
    """A transformer encoder over the question followed by the passage, with match features."""

    def __init__(self, encoder: Encoder, width: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.common = nn.Linear(COUNT, width // 2)
        self.endings = nn.Embedding(ENDINGS, width // 4)
        states = 2 * width + width // 2 + width // 4
        self.body = nn.Sequential(
            nn.Linear(states, width), nn.GELU(), nn.Dropout(dropout)
        )
        self.pointers = Pointers(width, width)

    def forward(
        self,
        question: Tensor,
        passage: Tensor,
        features: Tensor,
        endings: Tensor,
        partners: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Ids of question [N, Q] and passage [N, C], features [N, C, F], endings and partners [N,
        C] -> logits of start and end [N, C + 1].
        """
        size = question.shape[1]
        states = self.encoder(torch.cat([question, passage], 1))
        question_states, passage_states = states[:, :size], states[:, size:]
        pooled = _mean_of_words(question_states, question)
        matches = [
            torch.relu(self.common(features)),
            self.endings(endings),
            matched_states(question_states, features, partners),
        ]
        x = self.body(torch.cat([passage_states, *matches], 2))
        return self.pointers(x, pooled, passage != 0)  # type: ignore[no-any-return]


def _mean_of_words(states: Tensor, ids: Tensor) -> Tensor:
    """The mean [N, S] of the states [N, Q, S] of tokens that are no padding."""
    mask = (ids != 0)[:, :, None]
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)
