"""Attention for texts: blocks that encoders, decoders and generators share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BASE = 10_000.0


class Rotary(nn.Module):
    """Positions as rotations of pairs of numbers (Su et al. 2021, RoFormer, arXiv 2104.09864)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rates = BASE ** (-torch.arange(0, width, 2).float() / width)
        self.rates: Tensor
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, heads, L, width] with each place's pairs turned by its number."""
        angles = torch.arange(x.shape[2], device=x.device).float()[:, None] * self.rates
        cos, sin = angles.cos(), angles.sin()
        one, other = x.chunk(2, dim=3)
        return torch.cat([one * cos - other * sin, other * cos + one * sin], 3)


class Attention(nn.Module):
    """Each place asks all others that may be seen (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.inside = nn.Linear(width, 3 * width)
        self.outside = nn.Linear(width, width)
        self.rotary = Rotary(width // heads)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """[N, L, width]; `seen` is true where there is a token [N, L]."""
        count, length, width = x.shape
        parts = self.inside(x).view(count, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = self.rotary(parts[0]), self.rotary(parts[1]), parts[2]
        mask = None if seen is None else seen[:, None, None, :]
        found = F.scaled_dot_product_attention(query, key, value, mask, is_causal=self.causal and mask is None)
        return self.outside(found.transpose(1, 2).reshape(count, length, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a network for each place, each beside a shortcut and behind a normalisation."""

    def __init__(self, width: int, heads: int, dropout: float, *, causal: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.body = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """[N, L, width] -> the same."""
        x = x + self.dropout(self.attention(self.first(x), seen))
        return x + self.dropout(self.body(self.second(x)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Token ids [N, L], 0 behind the end, to states [N, L, width]."""

    def __init__(
        self, tokens: int, *, width: int, heads: int, layers: int, dropout: float, word_dropout: float
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
            hidden = (torch.rand(ids.shape, device=ids.device) < self.word_dropout) & seen
            ids = ids.masked_fill(hidden, 1)
        x = self.dropout(self.embedding(ids))
        # A text of nothing but padding sees its first place: attention to nowhere is no number.
        first = torch.arange(ids.shape[1], device=ids.device) == 0
        for block in self.blocks:
            x = block(x, seen | first)
        return self.last(x)  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """An encoder whose mean state of all words decides."""

    def __init__(self, encoder: Encoder, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width, classes))

    def forward(self, ids: Tensor) -> Tensor:
        """[N, L] -> logits [N, classes]; the mean and the largest state of all words decide."""
        if not torch.compiler.is_exporting():
            used = (ids != 0).any(0).nonzero()
            ids = ids[:, : int(used.max()) + 1 if len(used) else 1]  # padding that all share changes nothing
        words = (ids != 0).unsqueeze(2)
        states = self.encoder(ids)
        mean = (states * words).sum(1) / words.sum(1).clamp(min=1)
        largest = states.masked_fill(~words, -1e4).amax(1).clamp(min=-1e3)
        return self.head(torch.cat([mean, largest], 1))  # type: ignore[no-any-return]
