"""Networks that read a text and write another: what they learn by, and the two graphs they are
served as.

Served, a network is `begin` (once a text) and `step` (once a token). `begin` gives the `logits` of
the first token, `memory_*`, which stays as it is, and `state_*`, which each step takes and gives
anew as `next_*`; both say where they looked (`attention`). The search is not a part of the graph
(`tasks.translation.beam_search`).
"""

from typing import Any

import torch
from msgspec import structs
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Graph
from modelmill.tasks.networks.recurrent import BothWays
from modelmill.tasks.networks.transformer import Block, Layout, Rotary, attend
from modelmill.types import TensorSpec

STEP = "step"
STATE = "state_"
NEXT = "next_"
WIDER = 2
END = 2
"""Also what stands before the first token."""


class SelfAttention(nn.Module):
    """Each place asks those before it, which may have been there before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inside, self.outside = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rotary = Rotary(width // heads)

    def forward(
        self,
        x: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
        layout: Layout | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[N, T, W] behind keys and values [N, heads, P, size] that were; what comes out, and all
        keys and values.
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
        query = parts[0]
        key = parts[1]
        value = parts[2]
        if past is None:
            query, key = self.rotary(query), self.rotary(key)
            found = attend(query, key, value, causal=True)
        else:  # one place more
            before = past[0].shape[2]
            query, key = self.rotary(query, before), self.rotary(key, before)
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
            found = attend(query, key, value)
        found = found.transpose(1, 2).reshape(count, length, width)
        return self.outside(found if layout is None else layout.flat(found)), key, value


class CrossAttention(nn.Module):
    """Each place of one text asks all of another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.memory = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.outside = nn.Linear(width, width)

    def kept(
        self, memory: Tensor, layout: Layout | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [N, heads, S, size] of the text that is asked."""
        parts = (
            self.memory(memory)
            if layout is None
            else layout.padded(self.memory(memory))
        )
        parts = parts.view(
            *parts.shape[:2], 2, self.heads, memory.shape[-1] // self.heads
        ).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1]

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        seen: Tensor,
        layout: Layout | None = None,
    ) -> Tensor:
        """[N, T, W], and `seen` [N, S] where the other text has a token."""
        query = self._asked(x, layout)
        found = attend(query, key, value, seen[:, None, None, :])
        found = found.transpose(1, 2).flatten(2)
        return self.outside(found if layout is None else layout.flat(found))  # type: ignore[no-any-return]

    def looks(self, x: Tensor, key: Tensor, seen: Tensor) -> Tensor:
        """How much each place asks which [N, T, S], the mean of all heads."""
        scores: Tensor = self._asked(x) @ key.transpose(2, 3) / key.shape[3] ** 0.5
        return scores.masked_fill(~seen[:, None, None, :], -1e4).softmax(3).mean(1)

    def _asked(self, x: Tensor, layout: Layout | None = None) -> Tensor:
        query = self.query(x) if layout is None else layout.padded(self.query(x))
        return query.view(
            *query.shape[:2], self.heads, query.shape[2] // self.heads
        ).transpose(1, 2)


class WriterBlock(nn.Module):
    """What was written, what was read, and a network for each place, each beside a shortcut."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.LayerNorm(width) for _ in range(3))
        self.own, self.other = SelfAttention(width, heads), CrossAttention(width, heads)
        self.body = nn.Sequential(
            nn.Linear(width, WIDER * width), nn.GELU(), nn.Linear(WIDER * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        kept: tuple[Tensor, Tensor],
        seen: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
        layout: Layout | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next states, all keys and values of what was written, and what the other text was
        asked with.
        """
        found, key, value = self.own(self.first(x), past, layout)
        x = x + self.dropout(found)
        asked = self.second(x)
        x = x + self.dropout(self.other(asked, *kept, seen, layout))
        return x + self.dropout(self.body(self.third(x))), key, value, asked


class Transformer(nn.Module):
    """An encoder and a decoder of attention, one embedding for all (Vaswani et al. 2017, arXiv
    1706.03762).
    """

    def __init__(
        self, tokens: int, *, width: int, heads: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.scale = width**0.5
        self.shape = (layers, heads, width // heads)
        self.reader = nn.ModuleList(
            Block(width, heads, dropout, wider=WIDER) for _ in range(layers)
        )
        self.writer = nn.ModuleList(
            WriterBlock(width, heads, dropout) for _ in range(layers)
        )
        self.read_norm, self.written_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        """Source [N, S] and target [N, T] -> states behind which its tokens stand [tokens, W], for
        `told`.
        """
        source, layout = Layout(ids != 0), Layout(target != 0)
        memory, seen = self.read(ids, source)
        x = self._embedded(before(target)[target != 0])
        for block in self.writer:
            kept = block.other.kept(memory, source)  # type: ignore[operator,union-attr]
            x = block(x, kept, seen, layout=layout)[0]
        return self.written_norm(x)  # type: ignore[no-any-return]

    def told(self, states: Tensor) -> Tensor:
        """Logits of states [..., W]."""
        return F.linear(states, self.embedding.weight)

    def kept(self) -> dict[str, tuple[str, list[int]]]:
        """What `begin` gives to `step`: datatypes and shapes."""
        layers, heads, size = self.shape
        both = ("FP32", [-1, layers, heads, -1, size])
        seen = ("BOOL", [-1, -1])
        return {
            "memory_key": both,
            "memory_value": both,
            "memory_seen": seen,
            "state_key": both,
            "state_value": both,
        }

    def read(self, ids: Tensor, layout: Layout | None = None) -> tuple[Tensor, Tensor]:
        """States of the source [N, S, W], or [tokens, W] of a `layout`, and where it has tokens [N,
        S].
        """
        # A text of nothing but padding sees its first place: attention to nowhere is no number.
        seen = (ids != 0) | (torch.arange(ids.shape[1], device=ids.device) == 0)
        x = self._embedded(ids if layout is None else ids[ids != 0])
        for block in self.reader:
            x = block(x, seen, layout)
        return self.read_norm(x), seen

    def begin(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Logits of the first token, where it looked, and keys and values of the source and of what
        stands before.
        """
        memory, seen = self.read(ids)
        kept = [block.other.kept(memory) for block in self.writer]  # type: ignore[operator,union-attr]
        keys, values = (torch.stack([one[part] for one in kept], 1) for part in (0, 1))
        logits, key, value, looked = self._further(
            torch.full_like(ids[:, :1], END), keys, values, seen, None
        )
        return logits, looked, keys, values, seen, key, value

    def step(
        self,
        token: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> tuple[Tensor, ...]:
        """Logits of the next token, where the last block looked [N, S], and the longer keys and
        values.
        """
        logits, key, value, looked = self._further(
            token[:, None], keys, values, seen, (key, value)
        )
        return logits, looked, key, value

    def _further(
        self,
        ids: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: Tensor,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, found = self._embedded(ids), []
        for layer, block in enumerate(self.writer):
            before = None if past is None else (past[0][:, layer], past[1][:, layer])
            x, key, value, asked = block(
                x, (keys[:, layer], values[:, layer]), seen, before
            )
            found.append((key, value))
        looked = self.writer[-1].other.looks(asked, keys[:, -1], seen)[:, 0]  # type: ignore[operator,union-attr]
        both = (torch.stack([one[part] for one in found], 1) for part in (0, 1))
        return self.told(self.written_norm(x[:, 0])), *both, looked

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.dropout(self.embedding(ids) * self.scale)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A GRU reads both ways, another writes and asks it by additive attention (Bahdanau et al.
    2014, 1409.0473).
    """

    def __init__(self, tokens: int, *, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.hidden = hidden
        self.embedding = nn.Embedding(tokens, width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.reader = BothWays(width, hidden)
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
        """Source [N, S] and target [N, T] -> states behind which its tokens stand [tokens, W], for
        `told`.
        """
        memory, keys, seen, hidden = self.read(ids)
        words, found = self.dropout(self.embedding(before(target))), []
        for place in range(target.shape[1]):
            state, hidden, _ = self._further(
                words[:, place], memory, keys, seen, hidden
            )
            found.append(state)
        return torch.stack(found, 1)[target != 0]

    def told(self, states: Tensor) -> Tensor:
        """Logits of states [..., W]."""
        return F.linear(states, self.embedding.weight)

    def kept(self) -> dict[str, tuple[str, list[int]]]:
        """What `begin` gives to `step`: datatypes and shapes."""
        return {
            "memory_states": ("FP32", [-1, -1, 2 * self.hidden]),
            "memory_keys": ("FP32", [-1, -1, self.hidden]),
            "memory_seen": ("BOOL", [-1, -1]),
            "state_hidden": ("FP32", [-1, self.hidden]),
        }

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States of the source, what they are asked by, where it has tokens, and the writer's first
        state.
        """
        seen = (ids != 0) | (torch.arange(ids.shape[1], device=ids.device) == 0)
        memory = self.reader(self.dropout(self.embedding(ids)), seen)
        mean = memory.sum(1) / seen.sum(1, keepdim=True)
        return (
            memory,
            self.keys(self.dropout(memory)),
            seen,
            torch.tanh(self.first(mean)),
        )

    def begin(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Logits of the first token, where it looked, the source's states, and the writer's
        state.
        """
        memory, keys, seen, hidden = self.read(ids)
        word = self.embedding(torch.full_like(ids[:, 0], END))
        state, hidden, looked = self._further(word, memory, keys, seen, hidden)
        return self.told(state), looked, memory, keys, seen, hidden

    def step(
        self, token: Tensor, memory: Tensor, keys: Tensor, seen: Tensor, hidden: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits of the next token, where it looked [N, S], and the writer's next state."""
        state, hidden, looked = self._further(
            self.embedding(token), memory, keys, seen, hidden
        )
        return self.told(state), looked, hidden

    def _further(
        self, word: Tensor, memory: Tensor, keys: Tensor, seen: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.score(torch.tanh(keys + self.asks(hidden)[:, None]))[:, :, 0]
        looked = scores.masked_fill(~seen, -1e4).softmax(1)
        read = (looked[:, None] @ memory)[:, 0]
        hidden = self.cell(torch.cat([word, read], 1), hidden)
        return self.last(torch.cat([hidden, read, word], 1)), hidden, looked


def before(target: Tensor) -> Tensor:
    """What stands before each token of texts [N, T]."""
    return F.pad(target[:, :-1], (1, 0), value=END)


class Part(nn.Module):
    """One of a network's methods as a module of its own, for the exporter, which reads the method's
    signature.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network = network
        self.forward = getattr(network, name)


def graphs(network: Any, ids: TensorSpec, tokens: int) -> dict[str, Graph]:
    """The two graphs that a network is served as: `begin` is the model itself."""
    kept = [
        TensorSpec(name=name, datatype=kind, shape=shape)
        for name, (kind, shape) in network.kept().items()
    ]
    told = [
        TensorSpec(name="logits", datatype="FP32", shape=[-1, tokens]),
        TensorSpec(name="attention", datatype="FP32", shape=[-1, -1]),
    ]
    token = TensorSpec(name="token", datatype="INT64", shape=[-1])
    # A graph's outputs can't be called as its inputs are.
    state = [
        structs.replace(spec, name=NEXT + spec.name[len(STATE) :])
        for spec in kept
        if spec.name.startswith(STATE)
    ]
    return {
        "": Graph(Part(network, "begin"), [ids], [*told, *kept]),
        STEP: Graph(Part(network, "step"), [token, *kept], [*told, *state]),
    }
