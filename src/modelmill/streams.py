"""Answers that grow token by token: what is asked for, and what each step adds.

Engines, tasks and serving share these nouns; how tokens are chosen and texts take turns is in
`generation/`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from modelmill import seeds
from modelmill.types import Struct

LENGTH, STOP = "length", "stop"
"""Why an answer has ended."""
MOST_LOGPROBS = 20


MaxTokens = Annotated[int, Meta(ge=1, le=100_000)]
Temperature = Annotated[float, Meta(ge=0, le=100)]
TopK = Annotated[
    int, Meta(ge=0, description="choose among so many likeliest tokens; 0: all")
]
TopP = Annotated[
    float,
    Meta(
        gt=0,
        le=1,
        description="choose among the likeliest tokens of this share together",
    ),
]
RepetitionPenalty = Annotated[
    float,
    Meta(
        gt=0,
        le=10,
        description="above 1: tokens that were there before are less likely",
    ),
]
Seed = Annotated[
    int, Meta(ge=0, le=seeds.MOST, description="the same seed, the same answer")
]
Logprobs = Annotated[
    int,
    Meta(
        ge=-1,
        le=MOST_LOGPROBS,
        description="likeliest tokens to tell at each place; -1: none",
    ),
]


class Sampling(Struct, frozen=True, kw_only=True):
    """How a text goes on. At a temperature of 0 it is always the likeliest token, at 1 as the model
    says; each of the texts in `stop` ends it.
    """

    max_tokens: MaxTokens = 128
    temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    repetition_penalty: RepetitionPenalty = 1.0
    seed: Seed = 0
    stop: tuple[str, ...] = ()
    logprobs: Logprobs = -1


@dataclass
class Text:
    """One request: its prompt, how it goes on, and what has come of it."""

    name: Any
    prompt: list[int]
    how: Sampling
    ends: frozenset[int]
    pieces: Callable[[int], str]
    """The text that a token adds, which may come later than the token."""
    said: str = ""
    """The prompt as its caller wrote it."""
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    emitted: int = 0
    """Characters of `text` that were emitted."""

    @property
    def length(self) -> int:
        """Tokens that the engine has read."""
        return len(self.prompt) + max(0, len(self.tokens) - 1)


@dataclass(frozen=True)
class Piece:
    """What a step added to a text: characters, why it has ended (or ""), and the logarithms that
    were asked for.
    """

    name: Any
    text: str
    token: int
    ended: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    logprob: float | None = None
    near: tuple[tuple[int, float], ...] = ()
    place: int = 0
    """Characters of the answer before the token."""
