"""Networks that read a passage with a question in mind."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from modelmill.tasks.networks.recurrent import BothWays
from modelmill.tasks.networks.transformer import Encoder
from modelmill.tasks.question_answering.features import ALIKE, COUNT, ENDINGS

FAR = -1e4


class Pointers(nn.Module):
    """Where an answer begins and ends, by what is known of the question."""

    def __init__(self, states: int, question: int) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(question, states), nn.Linear(question, states)
        self.own = nn.Linear(states, 2)
        self.none = nn.Linear(question, 2)

    def forward(
        self, states: Tensor, question: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States [N, C, S], the question [N, K] and where there are words [N, C] -> both [N, C +
        1].
        """
        own, none = self.own(states), self.none(question)
        found = [
            torch.cat(
                [
                    none[:, end : end + 1],
                    (
                        (states @ ask(question)[:, :, None])[:, :, 0] + own[:, :, end]
                    ).masked_fill(~seen, FAR),
                ],
                1,
            )
            for end, ask in enumerate((self.start, self.end))
        ]
        return found[0], found[1]


class Reader(nn.Module):
    """Recurrent layers over words, aligned words of the question and exact matches (Chen et al.
    2017, 1704.00051).

    Made for few questions: only the `known` commonest words have vectors of their own, the others
    are told by their endings and by where they meet the question; and a word that does sees the
    state of the question there.
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
        self.question = BothWays(width, hidden)
        sizes = [
            2 * width + width // 2 + 2 * hidden + width // 4,
            *[2 * hidden] * (layers - 1),
        ]
        self.passage = nn.ModuleList(BothWays(size, hidden) for size in sizes)
        self.weigh = nn.Linear(2 * hidden, 1)
        self.pointers = Pointers(2 * hidden * layers + width // 2, 2 * hidden)
        self.dropout = nn.Dropout(dropout)

    def _words(self, ids: Tensor) -> Tensor:
        """Vectors of the known words; in training some of them are unknown (1) at random."""
        ids = torch.where(ids < self.known, ids, torch.ones_like(ids))
        if self.training and self.word_dropout:
            hidden = (torch.rand(ids.shape, device=ids.device) < self.word_dropout) & (
                ids != 0
            )
            ids = ids.masked_fill(hidden, 1)
        return self.dropout(self.embedding(ids))  # type: ignore[no-any-return]

    def forward(
        self,
        question: Tensor,
        passage: Tensor,
        features: Tensor,
        endings: Tensor,
        partners: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Ids [N, Q] and [N, C], features [N, C, F], endings and partners [N, C] -> start and end
        [N, C + 1].
        """
        asked, seen = question != 0, passage != 0
        asked = asked | (torch.arange(question.shape[1], device=question.device) == 0)
        words, says = self._words(question), self._words(passage)
        read = self.dropout(self.question(words, asked))
        scores = torch.relu(self.align(says)) @ torch.relu(self.align(words)).transpose(
            1, 2
        )
        aligned = scores.masked_fill(~asked[:, None, :], FAR).softmax(2) @ words
        common = torch.relu(self.common(features))
        x = torch.cat(
            [
                says,
                aligned,
                common,
                met(read, features, partners),
                self.dropout(self.endings(endings)),
            ],
            2,
        )
        every = [common]
        for layer in self.passage:
            x = self.dropout(layer(x, seen))
            every.append(x)
        shares = self.weigh(read)[:, :, 0].masked_fill(~asked, FAR).softmax(1)
        return self.pointers(torch.cat(every, 2), (shares[:, None] @ read)[:, 0], seen)  # type: ignore[no-any-return]


class Readers(nn.Module):
    """Readers that learn each by itself and vote: what they say is the mean of their
    probabilities.
    """

    def __init__(self, members: Iterable[Reader]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """As a reader; in training the rows of one behind those of another [members * N, C + 1]."""
        starts, ends = zip(*(member(*inputs) for member in self.members), strict=True)
        return (
            (torch.cat(starts), torch.cat(ends))
            if self.training
            else (_vote(starts), _vote(ends))
        )


def _vote(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of probabilities [N, C + 1], which some of these logits each stand
    for.
    """
    told = torch.stack([one.float().log_softmax(1) for one in logits])
    return told.logsumexp(0) - math.log(len(logits))


def met(read: Tensor, features: Tensor, partners: Tensor) -> Tensor:
    """The question's states [N, Q, S] where a word of the passage [N, C] has its like, by how
    alike: [N, C, S].
    """
    there = (partners - 1).clamp(min=0)[:, :, None].expand(-1, -1, read.shape[2])
    return read.gather(1, there) * (
        features[:, :, ALIKE, None] * (partners > 0)[:, :, None]
    )


class SpanHead(nn.Module):
    """An attention encoder over the question and the passage behind it, and what they have in
    common.
    """

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
        """Ids [N, Q] and [N, C], features [N, C, F], endings and partners [N, C] -> start and end
        [N, C + 1].
        """
        states = self.encoder(torch.cat([question, passage], 1))
        asked = (question != 0)[:, :, None]
        size = question.shape[1]
        read = (states[:, :size] * asked).sum(1) / asked.sum(1).clamp(min=1)
        known = [
            torch.relu(self.common(features)),
            self.endings(endings),
            met(states[:, :size], features, partners),
        ]
        both = self.body(torch.cat([states[:, size:], *known], 2))
        return self.pointers(both, read, passage != 0)  # type: ignore[no-any-return]
