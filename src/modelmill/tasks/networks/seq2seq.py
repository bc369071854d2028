"""Encoder-decoder networks of text: what they learn by, and the two graphs they are served as.

Served, a network is `begin` (once a text) and `step` (once a token). `begin` gives the `logits` of
the first token; `memory_*`, the encoded source, which stays; and `state_*`, which each step takes
and returns as `next_*`. Both give the `attention` over the source. The beam search is not a part of
the graph (`tasks.translation.beam_search`).
"""

from typing import Any

import torch
from msgspec import structs
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Graph
from modelmill.tasks.networks.recurrent import BidirectionalGru
from modelmill.tasks.networks.token_ids import attention_mask
from modelmill.tasks.networks.transformer import (
    MASKED,
    Block,
    Packing,
    Rotary,
    attend,
    merge_heads,
    project_heads,
)
from modelmill.types import TensorSpec

STEP = "step"
STATE = "state_"
NEXT = "next_"
WIDER = 2
"""Width of the feed-forward networks, as a multiple of the states' width."""
END = 2
"""The end token; it also stands before the first token of a target."""


class SelfAttention(nn.Module):
    """Causal self-attention with a cache of keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inside, self.outside = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.rotary = Rotary(width // heads)

    def forward(
        self,
        x: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[N, T, W] after the cached keys and values [N, heads, P, size] -> states [N, T, W], and
        all keys and values [N, heads, P + T, size]. With a cache T is 1.
        """
        query, key, value = project_heads(
            self.inside, x, 3, self.heads, packing
        )
        before = 0 if past is None else past[0].shape[2]
        query, key = self.rotary(query, before), self.rotary(key, before)
        if past is not None:
            key, value = (
                torch.cat([past[0], key], 2),
                torch.cat([past[1], value], 2),
            )
        attended = attend(query, key, value, causal=past is None)
        return merge_heads(self.outside, attended, packing), key, value


class CrossAttention(nn.Module):
    """Every target position attends to all source positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.memory = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
        )
        self.outside = nn.Linear(width, width)

    def project_memory(
        self, memory: Tensor, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [N, heads, S, size] of the encoded source [N, S, W], or packed."""
        key, value = project_heads(self.memory, memory, 2, self.heads, packing)
        return key, value

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        packing: Packing | None = None,
    ) -> Tensor:
        """[N, T, W], or packed -> the same shape; the source's mask [N, S] is true for tokens."""
        query = self._project_query(x, packing)
        attended = attend(query, key, value, mask[:, None, None, :])
        return merge_heads(self.outside, attended, packing)

    def attention_weights(self, x: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """Weights of the source positions for each target position [N, T, S], the mean over
        heads.
        """
        query = self._project_query(x)
        scores: Tensor = query @ key.transpose(2, 3) / key.shape[3] ** 0.5
        return (
            scores.masked_fill(~mask[:, None, None, :], MASKED)
            .softmax(3)
            .mean(1)
        )

    def _project_query(
        self, x: Tensor, packing: Packing | None = None
    ) -> Tensor:
        return project_heads(self.query, x, 1, self.heads, packing)[0]


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward network, each with a residual
    connection.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.LayerNorm(width) for _ in range(3)
        )
        self.own, self.other = (
            SelfAttention(width, heads),
            CrossAttention(width, heads),
        )
        self.body = nn.Sequential(
            nn.Linear(width, WIDER * width),
            nn.GELU(),
            nn.Linear(WIDER * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        memory: tuple[Tensor, Tensor],
        mask: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next states, all keys and values of the target, and the input of the cross-attention.

        `memory` is keys and values of the source, `past` those of the target's earlier tokens.
        """
        attended, key, value = self.own(self.first(x), past, packing)
        x = x + self.dropout(attended)
        query = self.second(x)
        x = x + self.dropout(self.other(query, *memory, mask, packing))
        return x + self.dropout(self.body(self.third(x))), key, value, query


class Transformer(nn.Module):
    """A transformer encoder and decoder with one embedding for source, target and output (Vaswani
    et al. 2017, arXiv 1706.03762).
    """

    def __init__(
        self,
        tokens: int,
        *,
        width: int,
        heads: int,
        layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = _embedding(tokens, width)
        self.scale = width**0.5
        self.shape = (layers, heads, width // heads)
        self.reader = nn.ModuleList(
            Block(width, heads, dropout, wider=WIDER) for _ in range(layers)
        )
        self.writer = nn.ModuleList(
            DecoderBlock(width, heads, dropout) for _ in range(layers)
        )
        self.read_norm, self.written_norm = (
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        """Source [N, S], target [N, T] -> decoder states of the non-padding positions [tokens, W];
        feed them to `logits`.
        """
        source, packing = Packing(ids != 0), Packing(target != 0)
        memory, mask = self.encode(ids, source)
        x = self._embedded(shifted_right(target)[target != 0])
        for block, cross in zip(
            self.writer, self._cross_attentions(), strict=True
        ):
            projected = cross.project_memory(memory, source)
            x = block(x, projected, mask, packing=packing)[0]
        return self.written_norm(x)  # type: ignore[no-any-return]

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., tokens] of decoder states [..., W]."""
        return F.linear(states, self.embedding.weight)

    def cache_specs(self) -> dict[str, tuple[str, list[int]]]:
        """Datatype and shape of each tensor that `begin` gives to `step`."""
        layers, heads, size = self.shape
        projected = ("FP32", [-1, layers, heads, -1, size])
        mask = ("BOOL", [-1, -1])
        return {
            "memory_key": projected,
            "memory_value": projected,
            "memory_seen": mask,
            "state_key": projected,
            "state_value": projected,
        }

    def encode(
        self, ids: Tensor, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor]:
        """Source ids [N, S] -> encoder states [N, S, W], or packed [tokens, W], and the mask
        [N, S].
        """
        mask = attention_mask(ids)
        x = self._embedded(ids if packing is None else ids[ids != 0])
        for block in self.reader:
            x = block(x, mask, packing)
        return self.read_norm(x), mask

    def begin(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Source ids [N, S] -> logits of the first token, attention [N, S], the tensors of
        `cache_specs`.
        """
        memory, mask = self.encode(ids)
        keys, values = _stacked(
            [cross.project_memory(memory) for cross in self._cross_attentions()]
        )
        start = torch.full_like(ids[:, :1], END)
        logits, key, value, attention = self._decode(
            start, keys, values, mask, None
        )
        return logits, attention, keys, values, mask, key, value

    def step(
        self,
        token: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> tuple[Tensor, ...]:
        """Token [N] and the cache -> logits of the next token, the last block's attention [N, S],
        and the target's keys and values, one position longer.
        """
        logits, key, value, attention = self._decode(
            token[:, None], keys, values, mask, (key, value)
        )
        return logits, attention, key, value

    def _decode(
        self,
        ids: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self._embedded(ids)
        cache = []
        for layer, block in enumerate(self.writer):
            before = None if past is None else _of_layer(past, layer)
            memory = _of_layer((keys, values), layer)
            x, key, value, query = block(x, memory, mask, before)
            cache.append((key, value))
        cross = self._cross_attentions()[-1]
        attention = cross.attention_weights(query, keys[:, -1], mask)[:, 0]
        logits = self.logits(self.written_norm(x[:, 0]))
        return logits, *_stacked(cache), attention

    def _cross_attentions(self) -> list[CrossAttention]:
        return [
            block.other
            for block in self.writer
            if isinstance(block, DecoderBlock)
        ]

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.dropout(self.embedding(ids) * self.scale)  # type: ignore[no-any-return]


def _of_layer(
    cache: tuple[Tensor, Tensor], layer: int
) -> tuple[Tensor, Tensor]:
    """Keys and values [N, heads, T, size] of one of the layers [N, layers, heads, T, size]."""
    return cache[0][:, layer], cache[1][:, layer]


def _stacked(cache: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Keys and values of all layers, [N, layers, heads, T, size]."""
    keys = torch.stack([key for key, _ in cache], 1)
    return keys, torch.stack([value for _, value in cache], 1)


class Recurrent(nn.Module):
    """A bidirectional GRU encoder and a GRU decoder with additive attention (Bahdanau et al. 2014,
    arXiv 1409.0473).
    """

    def __init__(
        self, tokens: int, *, width: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.embedding = _embedding(tokens, width)
        self.reader = BidirectionalGru(width, hidden)
        self.first = nn.Linear(2 * hidden, hidden)
        self.keys = nn.Linear(2 * hidden, hidden)
        self.asks = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1)
        self.cell = nn.GRUCell(width + 2 * hidden, hidden)
        self.last = nn.Sequential(
            nn.Linear(3 * hidden + width, width), nn.Tanh(), nn.Dropout(dropout)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        """Source [N, S], target [N, T] -> decoder states of the non-padding positions [tokens, W];
        feed them to `logits`.
        """
        memory, keys, mask, hidden = self.encode(ids)
        words = self.dropout(self.embedding(shifted_right(target)))
        states = []
        for position in range(target.shape[1]):
            state, hidden, _ = self._decode(
                words[:, position], memory, keys, mask, hidden
            )
            states.append(state)
        return torch.stack(states, 1)[target != 0]

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., tokens] of decoder states [..., W]."""
        return F.linear(states, self.embedding.weight)

    def cache_specs(self) -> dict[str, tuple[str, list[int]]]:
        """Datatype and shape of each tensor that `begin` gives to `step`."""
        return {
            "memory_states": ("FP32", [-1, -1, 2 * self.hidden]),
            "memory_keys": ("FP32", [-1, -1, self.hidden]),
            "memory_seen": ("BOOL", [-1, -1]),
            "state_hidden": ("FP32", [-1, self.hidden]),
        }

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Source ids [N, S] -> encoder states [N, S, 2 * hidden], attention keys [N, S, hidden],
        the mask [N, S], and the decoder's first state [N, hidden].
        """
        mask = attention_mask(ids)
        memory = self.reader(self.dropout(self.embedding(ids)), mask)
        mean = memory.sum(1) / mask.sum(1, keepdim=True)
        keys = self.keys(self.dropout(memory))
        return memory, keys, mask, torch.tanh(self.first(mean))

    def begin(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Source ids [N, S] -> logits of the first token, attention [N, S], the tensors of
        `cache_specs`.
        """
        memory, keys, mask, hidden = self.encode(ids)
        word = self.embedding(torch.full_like(ids[:, 0], END))
        state, hidden, attention = self._decode(
            word, memory, keys, mask, hidden
        )
        return self.logits(state), attention, memory, keys, mask, hidden

    def step(
        self,
        token: Tensor,
        memory: Tensor,
        keys: Tensor,
        mask: Tensor,
        hidden: Tensor,
    ) -> tuple[Tensor, ...]:
        """Token [N] and the cache -> logits of the next token, attention [N, S], the decoder's next
        state.
        """
        state, hidden, attention = self._decode(
            self.embedding(token), memory, keys, mask, hidden
        )
        return self.logits(state), attention, hidden

    def _decode(
        self,
        word: Tensor,
        memory: Tensor,
        keys: Tensor,
        mask: Tensor,
        hidden: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.score(torch.tanh(keys + self.asks(hidden)[:, None]))[
            :, :, 0
        ]
        attention = scores.masked_fill(~mask, MASKED).softmax(1)
        attended = (attention[:, None] @ memory)[:, 0]
        hidden = self.cell(torch.cat([word, attended], 1), hidden)
        state = self.last(torch.cat([hidden, attended, word], 1))
        return state, hidden, attention


def _embedding(tokens: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(tokens, width, padding_idx=0)
    nn.init.normal_(embedding.weight, std=width**-0.5)
    return embedding


def shifted_right(target: Tensor) -> Tensor:
    """The decoder's input for targets [N, T]: the token before each, `END` before the first."""
    return F.pad(target[:, :-1], (1, 0), value=END)


class MethodModule(nn.Module):
    """One method of a network as a module of its own, for the exporter, which reads the method's
    signature.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network = network
        self.forward = getattr(network, name)


def graphs(network: Any, ids: TensorSpec, tokens: int) -> dict[str, Graph]:
    """The two graphs that a network is served as: `begin` is the model itself, `step` lies beside.

    `ids` describes the source, `tokens` is the size of the vocabulary.
    """
    cache = [
        TensorSpec(name=name, datatype=datatype, shape=shape)
        for name, (datatype, shape) in network.cache_specs().items()
    ]
    answers = [
        TensorSpec(name="logits", datatype="FP32", shape=[-1, tokens]),
        TensorSpec(name="attention", datatype="FP32", shape=[-1, -1]),
    ]
    token = TensorSpec(name="token", datatype="INT64", shape=[-1])
    begin, step = MethodModule(network, "begin"), MethodModule(network, "step")
    return {
        "": Graph(begin, [ids], [*answers, *cache]),
        STEP: Graph(step, [token, *cache], [*answers, *_next_states(cache)]),
    }


def _next_states(cache: list[TensorSpec]) -> list[TensorSpec]:
    """What a step returns for the next one: an output of a graph can't have the name of one of its
    inputs.
    """
    return [
        structs.replace(spec, name=NEXT + spec.name[len(STATE) :])
        for spec in cache
        if spec.name.startswith(STATE)
    ]
