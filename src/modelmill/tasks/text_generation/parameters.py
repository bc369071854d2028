"""What a caller of text-generation may choose, and what is chosen where nobody says."""

from typing import Annotated

import msgspec
from msgspec import Meta

from modelmill.generation.sampling import sampling
from modelmill.streams import (
    Logprobs,
    MaxTokens,
    RepetitionPenalty,
    Sampling,
    Seed,
    Temperature,
    TopK,
    TopP,
)
from modelmill.tasks.parameters import Ignored
from modelmill.types import Json, Struct

USUAL = Sampling(max_tokens=100, temperature=0.0)
NEUTRAL: Json = {
    "best_of": 1,
    "decoder_input_details": False,
    "frequency_penalty": 0,
    "top_n_tokens": 0,
    "typical_p": 1,
    "watermark": False,
}
"""What is not offered may be said where it changes nothing."""


Stops = tuple[str, ...] | str | None
STOPS = {"wanted": "a text or a list of texts"}


class Parameters(Struct, frozen=True, kw_only=True):
    """How a text goes on, under the names of Hugging Face and of OpenAI."""

    max_new_tokens: Annotated[
        MaxTokens | None,
        Meta(description="most tokens of the answer; else 100"),
    ] = None
    max_tokens: Annotated[MaxTokens | None, Meta(description="the same")] = None
    temperature: Annotated[
        Temperature | None,
        Meta(
            description="0, as a rule: always the likeliest token; 1: as the model says"
        ),
    ] = None
    do_sample: Annotated[
        bool, Meta(description="a temperature of 1 where none is given")
    ] = False
    top_k: TopK | None = None
    top_p: TopP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    seed: Seed | None = None
    stop: Annotated[
        Stops, Meta(description="texts that end the answer", extra=STOPS)
    ] = None
    stop_sequences: Annotated[
        Stops, Meta(description="the same", extra=STOPS)
    ] = None
    logprobs: Logprobs | None = None
    return_full_text: Annotated[
        bool, Meta(description="the text that was sent before the answer")
    ] = False
    details: Annotated[
        bool, Meta(description="also each token of the answer")
    ] = False
    truncate: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="keep so many tokens at the end of the text"),
    ] = None
    stream: Ignored = None
    best_of: Ignored = None
    decoder_input_details: Ignored = None
    frequency_penalty: Ignored = None
    top_n_tokens: Ignored = None
    typical_p: Ignored = None
    watermark: Ignored = None

    def __post_init__(self) -> None:
        given = msgspec.structs.asdict(self)
        for name, neutral in NEUTRAL.items():
            if given[name] not in (None, neutral):
                raise ValueError(f"{name} is not offered: leave it out")

    def sampling(self) -> Sampling:
        """How tokens are chosen; raises `InvalidInput` for stops that are too many or too long."""
        given = {
            "max_tokens": self.max_new_tokens or self.max_tokens,
            "temperature": self._temperature(),
            "top_k": self.top_k,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
            "stop": self.stop if self.stop is not None else self.stop_sequences,
            "logprobs": self._logprobs(),
        }
        return sampling(given, USUAL)

    def _temperature(self) -> float | None:
        if self.temperature is None and self.do_sample:
            return 1.0
        return self.temperature

    def _logprobs(self) -> int | None:
        """Details tell of each token, without others near it."""
        if self.logprobs is None and self.details:
            return 0
        return self.logprobs
