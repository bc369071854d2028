"""Answers that grow token by token: what is asked for, and what each step adds.

Engines, tasks and serving share these nouns; how tokens are chosen and texts take turns is in
`generation/`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from modelmill import seeds
from modelmill.types import Struct

LENGTH, STOP = "length", "stop"
"""Why an answer has ended."""
MOST_LOGPROBS = 20


class Sampling(Struct, frozen=True, kw_only=True):
    """How a text goes on."""

    max_tokens: Annotated[
        int, msgspec.Meta(ge=1, le=100_000, description="most tokens of the answer")
    ] = 128
    temperature: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=100,
            description="0: always the likeliest token; 1: as the model says",
        ),
    ] = 1.0
    top_k: Annotated[
        int,
        msgspec.Meta(ge=0, description="choose among so many likeliest tokens; 0: all"),
    ] = 0
    top_p: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=1,
            description="choose among the likeliest tokens of this share together",
        ),
    ] = 1.0
    repetition_penalty: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=10,
            description="above 1: tokens that were there before are less likely",
        ),
    ] = 1.0
    seed: Annotated[
        int,
        msgspec.Meta(ge=0, le=seeds.MOST, description="the same seed, the same answer"),
    ] = 0
    stop: Annotated[
        tuple[str, ...], msgspec.Meta(description="texts that end the answer")
    ] = ()
    logprobs: Annotated[
        int,
        msgspec.Meta(
            ge=-1,
            le=MOST_LOGPROBS,
            description="likeliest tokens to tell at each place; -1: none",
        ),
    ] = -1


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
