"""Transformers: attention, blocks, encoders and decoders of texts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.networks.token_ids import (
    attention_mask,
    drop_words,
    longest,
    shortened,
)

BASE = 10_000.0
"""Base of the rotary frequencies, that of the paper."""
SHORT = 128
"""Keys up to which attention is computed without torch's fused kernel."""
MASKED = -1e4
"""Score of a key that may not be attended to; finite in 16 bits as well."""


class Rotary(nn.Module):
    """Positions as rotations of pairs of numbers (Su et al. 2021, RoFormer, arXiv 2104.09864)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rates = BASE ** (-torch.arange(0, width, 2).float() / width)
        self.rates: Tensor
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, x: Tensor, before: int = 0) -> Tensor:
        """Rotates [N, heads, L, width] by position; the first token is at position `before`."""
        positions = (torch.arange(x.shape[2], device=x.device) + before).float()
        angles = positions[:, None] * self.rates
        cos, sin = angles.cos(), angles.sin()
        real, imaginary = x.chunk(2, dim=3)
        rotated = [real * cos - imaginary * sin, imaginary * cos + real * sin]
        return torch.cat(rotated, 3)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    """Scaled dot-product attention: query [N, heads, T, size], key and value [N, heads, S, size] ->
    [N, heads, T, size]. `mask` [N, 1, 1, S] is true for the keys that may be attended to.

    torch's fused kernel serves more than `SHORT` keys: on sentences its backward pass takes half of
    a training step.
    """
    short = key.shape[2] <= SHORT and not torch.compiler.is_exporting()
    if not short:
        return F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=causal
        )
    scores = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
    if causal:
        scores = scores.masked_fill(_later_keys(scores), MASKED)
    if mask is not None:
        scores = scores.masked_fill(~mask, MASKED)
    attended: Tensor = scores.softmax(3).to(value.dtype) @ value
    return attended


def _later_keys(scores: Tensor) -> Tensor:
    """True [T, S] for the keys after each query."""
    return torch.ones(
        scores.shape[2:], dtype=torch.bool, device=scores.device
    ).triu(1)


class Packing:
    """Packs a padded batch into one row of tokens, by its mask [N, L]: only attention works on the
    padded form.
    """

    def __init__(self, mask: Tensor) -> None:
        self.count, self.length = mask.shape
        self.positions = mask.flatten().nonzero()[:, 0]

    def pack(self, x: Tensor) -> Tensor:
        """[N, L, C] -> [tokens, C]."""
        return x.flatten(0, 1)[self.positions]

    def unpack(self, x: Tensor) -> Tensor:
        """[tokens, C] -> [N, L, C], 0 at the padding."""
        zeros = x.new_zeros(self.count * self.length, x.shape[1])
        return zeros.index_copy(0, self.positions, x).view(
            self.count, self.length, -1
        )


def project_heads(
    linear: nn.Module,
    x: Tensor,
    count: int,
    heads: int,
    packing: Packing | None = None,
) -> Tensor:
    """`count` projections of x by one linear layer, cut into heads and unpacked:
    [count, N, heads, L, size].
    """
    projected: Tensor = (
        linear(x) if packing is None else packing.unpack(linear(x))
    )
    size = projected.shape[2] // count // heads
    split = projected.view(*projected.shape[:2], count, heads, size)
    return split.permute(2, 0, 3, 1, 4)


def merge_heads(
    linear: nn.Module, attended: Tensor, packing: Packing | None = None
) -> Tensor:
    """Attention's result [N, heads, L, size] -> the output layer over [N, L, width], or packed."""
    merged = attended.transpose(1, 2).flatten(2)
    output: Tensor = linear(merged if packing is None else packing.pack(merged))
    return output


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.inside = nn.Linear(width, 3 * width)
        self.outside = nn.Linear(width, width)
        self.rotary = Rotary(width // heads)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """[N, L, width], or packed [tokens, width] -> the same shape; the mask [N, L] is true for
        tokens, false for padding.
        """
        query, key, value = project_heads(
            self.inside, x, 3, self.heads, packing
        )
        keys = None if mask is None else mask[:, None, None, :]
        attended = attend(
            self.rotary(query),
            self.rotary(key),
            value,
            keys,
            causal=self.causal and keys is None,
        )
        return merge_heads(self.outside, attended, packing)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a feed-forward network, each with a residual
    connection.
    """

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
            nn.Linear(width, wider * width),
            nn.GELU(),
            nn.Linear(wider * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """[N, L, width], or packed [tokens, width] -> the same shape."""
        x = x + self.dropout(self.attention(self.first(x), mask, packing))
        return x + self.dropout(self.body(self.second(x)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Token ids [N, L], padded with 0 -> states [N, L, width], 0 at the padding."""

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
        self.blocks = nn.ModuleList(
            Block(width, heads, dropout) for _ in range(layers)
        )
        self.last = nn.LayerNorm(width)
        self.dropout, self.word_dropout = nn.Dropout(dropout), word_dropout

    def forward(self, ids: Tensor) -> Tensor:
        """In training random tokens become the unknown token (1)."""
        if self.training and self.word_dropout:
            ids = drop_words(ids, self.word_dropout)
        mask = attention_mask(ids)
        packing = None if torch.compiler.is_exporting() else Packing(mask)
        x = self.dropout(self.embedding(ids if packing is None else ids[mask]))
        for block in self.blocks:
            x = block(x, mask, packing)
        x = self.last(x)
        return (x if packing is None else packing.unpack(x)) * (ids != 0)[
            :, :, None
        ]


class Classifier(nn.Module):
    """A text classifier: an encoder, and a linear layer over its pooled states."""

    def __init__(
        self, encoder: Encoder, width: int, classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * width, classes)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [N, L] -> logits [N, classes], from the mean and the maximum over all
        tokens.
        """
        ids = shortened(ids)
        words = (ids != 0).unsqueeze(2)
        states = self.encoder(ids)
        mean = (states * words).sum(1) / words.sum(1).clamp(min=1)
        largest = states.masked_fill(~words, -1e4).amax(1).clamp(min=-1e3)
        return self.head(torch.cat([mean, largest], 1))  # type: ignore[no-any-return]


class SentenceEncoder(nn.Module):
    """A text's embedding: a projection of the mean over an encoder's states and token
    embeddings.
    """

    def __init__(
        self, encoder: Encoder, width: int, dimensions: int, scale: float
    ) -> None:
        super().__init__()
        self.encoder, self.scale = encoder, scale
        self.head = nn.Linear(2 * width, dimensions, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [N, L] -> unit vectors [N, dimensions]."""
        ids = shortened(ids)
        words = (ids != 0).unsqueeze(2)
        both = torch.cat([self.encoder(ids), self.encoder.embedding(ids)], 2)
        mean = (both * words).sum(1) / words.sum(1).clamp(min=1)
        return F.normalize(self.head(mean).float(), dim=1)


class MaskedLM(nn.Module):
    """A masked language model: an encoder whose input embedding is also its output layer."""

    def __init__(self, encoder: Encoder, width: int, tokens: int) -> None:
        super().__init__()
        self.encoder, self.tokens = encoder, tokens
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)
        )
        self.bias = nn.Parameter(torch.zeros(tokens))

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits [M, tokens] of the positions that are true in the mask [N, L], row by row."""
        return self._project(
            self.encoder(shortened(ids))[mask[:, : longest(ids)]]
        )

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Token ids [N, L] and positions [N, P] -> logits [N, P, tokens]."""
        states = self.encoder(ids)
        index = positions[:, :, None].expand(-1, -1, states.shape[2])
        return self._project(states.gather(1, index))

    def _project(self, states: Tensor) -> Tensor:
        return F.linear(
            self.head(states), self.encoder.embedding.weight, self.bias
        )


class Decoder(nn.Module):
    """A causal language model: token ids [N, L] -> logits of each next token [N, L, tokens].

    The input embedding is also the output layer (Press and Wolf 2017, arXiv 1608.05859).
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
        """Token ids [N, L] -> logits [N, L, tokens]."""
        x = self.dropout(self.embedding(ids))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.last(x), self.embedding.weight)
