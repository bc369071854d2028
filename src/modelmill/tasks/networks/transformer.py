"""Attention for texts: blocks that encoders, decoders and generators share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BASE = 10_000.0
SHORT = 128


class Rotary(nn.Module):
    """Positions as rotations of pairs of numbers (Su et al. 2021, RoFormer, arXiv 2104.09864)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rates = BASE ** (-torch.arange(0, width, 2).float() / width)
        self.rates: Tensor
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, x: Tensor, before: int = 0) -> Tensor:
        """[N, heads, L, width] with each place's pairs turned by its number, behind so many
        others.
        """
        angles = (torch.arange(x.shape[2], device=x.device) + before).float()[
            :, None
        ] * self.rates
        cos, sin = angles.cos(), angles.sin()
        one, other = x.chunk(2, dim=3)
        return torch.cat([one * cos - other * sin, other * cos + one * sin], 3)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    """Attention [N, heads, T, size]; `seen` is true where a place may look, [N, 1, 1, S].

    torch's fused kernel is for long texts: its way back takes half of a training step on sentences.
    """
    short = key.shape[2] <= SHORT and not torch.compiler.is_exporting()
    if not short:
        return F.scaled_dot_product_attention(query, key, value, seen, is_causal=causal)
    scores = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
    if causal:
        later = torch.ones(
            scores.shape[2:], dtype=torch.bool, device=scores.device
        ).triu(1)
        scores = scores.masked_fill(later, -1e4)
    if seen is not None:
        scores = scores.masked_fill(~seen, -1e4)
    found: Tensor = scores.softmax(3).to(value.dtype) @ value
    return found


class Layout:
    """Texts of different lengths as one row of tokens, where `seen` [N, L]: the rest sees attention
    alone.
    """

    def __init__(self, seen: Tensor) -> None:
        self.count, self.length = seen.shape
        self.places = seen.flatten().nonzero()[:, 0]

    def flat(self, x: Tensor) -> Tensor:
        """[N, L, C] -> [tokens, C]."""
        return x.flatten(0, 1)[self.places]

    def padded(self, x: Tensor) -> Tensor:
        """[tokens, C] -> [N, L, C], 0 behind each end."""
        found = x.new_zeros(self.count * self.length, x.shape[1])
        return found.index_copy(0, self.places, x).view(self.count, self.length, -1)


class Attention(nn.Module):
    """Each place asks all others that may be seen (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.inside = nn.Linear(width, 3 * width)
        self.outside = nn.Linear(width, width)
        self.rotary = Rotary(width // heads)

    def forward(
        self, x: Tensor, seen: Tensor | None = None, layout: Layout | None = None
    ) -> Tensor:
        """[N, L, width], or [tokens, width] of a `layout`; `seen` is true where there is a token
        [N, L].
        """
        parts: Tensor = (
            self.inside(x) if layout is None else layout.padded(self.inside(x))
        )
        count = parts.shape[0]
        length = parts.shape[1]
        width = x.shape[-1]
        parts = parts.view(count, length, 3, self.heads, width // self.heads).permute(
            2, 0, 3, 1, 4
        )
        query = self.rotary(parts[0])
        key = self.rotary(parts[1])
        value = parts[2]
        mask = None if seen is None else seen[:, None, None, :]
        found = attend(query, key, value, mask, causal=self.causal and mask is None)
        found = found.transpose(1, 2).reshape(count, length, width)
        return self.outside(found if layout is None else layout.flat(found))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a network for each place, each beside a shortcut and behind a normalisation."""

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        *,
        causal: bool = False,
        wider: int = 4,
    ) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.body = nn.Sequential(
            nn.Linear(width, wider * width), nn.GELU(), nn.Linear(wider * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, seen: Tensor | None = None, layout: Layout | None = None
    ) -> Tensor:
        """[N, L, width], or [tokens, width] of a `layout` -> the same."""
        x = x + self.dropout(self.attention(self.first(x), seen, layout))
        return x + self.dropout(self.body(self.second(x)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Token ids [N, L], 0 behind the end, to states [N, L, width], 0 there too."""

    def __init__(
        self,
        tokens: int,
        *,
        width: int,
        heads: int,
        layers: int,
        dropout: float,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        self.dropout, self.word_dropout = nn.Dropout(dropout), word_dropout

    def forward(self, ids: Tensor) -> Tensor:
        """In training some words are unknown (1) at random."""
        seen = ids != 0
        if self.training and self.word_dropout:
            hidden = (
                torch.rand(ids.shape, device=ids.device) < self.word_dropout
            ) & seen
            ids = ids.masked_fill(hidden, 1)
        # A text of nothing but padding sees its first place: attention to nowhere is no number.
        some = seen | (torch.arange(ids.shape[1], device=ids.device) == 0)
        layout = None if torch.compiler.is_exporting() else Layout(some)
        x = self.dropout(self.embedding(ids if layout is None else ids[some]))
        for block in self.blocks:
            x = block(x, some, layout)
        x = self.last(x)
        return (x if layout is None else layout.padded(x)) * seen[:, :, None]


class Classifier(nn.Module):
    """An encoder whose mean state of all words decides."""

    def __init__(
        self, encoder: Encoder, width: int, classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width, classes))

    def forward(self, ids: Tensor) -> Tensor:
        """[N, L] -> logits [N, classes]; the mean and the largest state of all words decide."""
        ids = shortened(ids)
        words = (ids != 0).unsqueeze(2)
        states = self.encoder(ids)
        mean = (states * words).sum(1) / words.sum(1).clamp(min=1)
        largest = states.masked_fill(~words, -1e4).amax(1).clamp(min=-1e3)
        return self.head(torch.cat([mean, largest], 1))  # type: ignore[no-any-return]


class Sentences(nn.Module):
    """An encoder whose mean state, beside the mean of the tokens themselves, is a text's vector."""

    def __init__(
        self, encoder: Encoder, width: int, dimensions: int, scale: float
    ) -> None:
        super().__init__()
        self.encoder, self.scale = encoder, scale
        self.head = nn.Linear(2 * width, dimensions, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """[N, L] -> unit vectors [N, dimensions]."""
        ids = shortened(ids)
        words = (ids != 0).unsqueeze(2)
        both = torch.cat([self.encoder(ids), self.encoder.embedding(ids)], 2)
        mean = (both * words).sum(1) / words.sum(1).clamp(min=1)
        return F.normalize(self.head(mean).float(), dim=1)


class Filler(nn.Module):
    """An encoder that says which words are missing; the embedding also tells words apart at the
    end.
    """

    def __init__(self, encoder: Encoder, width: int, tokens: int) -> None:
        super().__init__()
        self.encoder, self.tokens = encoder, tokens
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)
        )
        self.bias = nn.Parameter(torch.zeros(tokens))

    def told(self, ids: Tensor, seen: Tensor) -> Tensor:
        """Logits [M, tokens] of the places that are true in `seen` [N, L], row by row."""
        return self._logits(self.encoder(shortened(ids))[seen[:, : _length(ids)]])

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        """[N, L] and [N, P] -> [N, P, tokens]."""
        states = self.encoder(ids)
        return self._logits(
            states.gather(1, places[:, :, None].expand(-1, -1, states.shape[2]))
        )

    def _logits(self, states: Tensor) -> Tensor:
        return F.linear(self.head(states), self.encoder.embedding.weight, self.bias)


def _length(ids: Tensor) -> int:
    """Of the longest text."""
    used = (ids != 0).any(0).nonzero()
    return int(used.max()) + 1 if len(used) else 1


def shortened(ids: Tensor) -> Tensor:
    """Texts without the padding that all share, which changes nothing; not in a graph, whose length
    is fixed.
    """
    return ids if torch.compiler.is_exporting() else ids[:, : _length(ids)]


class Decoder(nn.Module):
    """Token ids [N, L] to logits of what comes behind each [N, L, tokens]; a place sees those
    before it.

    The embedding is also what tells tokens apart at the end (Press and Wolf 2017, arXiv
    1608.05859).
    """

    def __init__(
        self,
        tokens: int,
        *,
        width: int,
        heads: int,
        layers: int,
        context: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.heads, self.context = heads, context
        self.embedding = nn.Embedding(tokens, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(
            Block(width, heads, dropout, causal=True) for _ in range(layers)
        )
        self.last, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """[N, L] -> [N, L, tokens]."""
        x = self.dropout(self.embedding(ids))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.last(x), self.embedding.weight)
