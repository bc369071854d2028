"""What a request for generated texts asks for: prompts, parameters, how many answers and in which
form.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from modelmill import seeds
from modelmill.errors import InvalidInput
from modelmill.tasks.kinds import Sent
from modelmill.types import Json

MOST, MOST_EACH = 256, 16
"""Answers to one request (prompts times `n`), and to one prompt."""
MOST_SEED = seeds.MOST - MOST
"""Each of several answers has the next one."""
SAME = (
    "temperature",
    "top_p",
    "stop",
    "seed",
    "max_tokens",
    "top_k",
    "repetition_penalty",
    "truncate",
)
"""Parameters with the same name here; the last three are not OpenAI's, but its clients can send
them too.
"""
NEUTRAL: Json = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "suffix": None,
    "echo": False,
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
}
"""Parameters that are not supported, with the values at which they change nothing."""


USUAL_TOKENS = 16
"""OpenAI's default for texts that are no chats."""
STREAM_OPTIONS = 'stream_options wants the form {"include_usage": true}'


class Completion(NamedTuple):
    """What a request wants: the prompt and the parameters of each answer, and in which form they
    are sent.
    """

    deployment: str
    calls: list[tuple[Sent, Json]]
    chat: bool
    stream: bool
    usage: bool
    each: int
    """Answers to a prompt, which stand beside one another."""
    id: str
    created: int


def completion_of(
    document: Json, deployment: str, prompts: Sequence[Sent], *, chat: bool
) -> Completion:
    """What the body of a request asks of a deployment; raises `InvalidInput`."""
    parameters = _parameters(document, chat=chat)
    count = _count(document, len(prompts))
    kind = "chatcmpl" if chat else "cmpl"
    return Completion(
        deployment,
        list(_calls(prompts, parameters, count)),
        chat,
        _stream(document),
        _wants_usage(document),
        count,
        f"{kind}-{uuid.uuid4().hex}",
        int(time.time()),
    )


def _calls(
    prompts: Sequence[Sent], parameters: Json, count: int
) -> Iterator[tuple[Sent, Json]]:
    """Each prompt as often as it is to be answered, each time with the next seed."""
    seed = parameters.setdefault("seed", seeds.draw())
    if type(seed) is not int or not 0 <= seed <= MOST_SEED:
        raise InvalidInput(
            f"seed is a whole number from 0 to {MOST_SEED:,}, not {seed!r:.40}"
        )
    for prompt in prompts:
        for number in range(count):
            yield prompt, {**parameters, "seed": seed + number}


def _wants_usage(document: Json) -> bool:
    """Whether a stream ends with the tokens that it used; raises `InvalidInput`."""
    options = document.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise InvalidInput(STREAM_OPTIONS)
    return bool(options.get("include_usage"))


def _count(document: Json, prompts: int) -> int:
    """How many answers each prompt wants; raises `InvalidInput`."""
    count = 1 if document.get("n") is None else document["n"]
    if type(count) is not int or not 1 <= count <= MOST_EACH:
        raise InvalidInput(
            f"n is a whole number from 1 to {MOST_EACH}, not {count!r:.40}"
        )
    _check_answers(count, prompts)
    if document.get("best_of") not in (None, count):
        raise InvalidInput(
            "best_of is not supported, other than as many as n: leave it out"
        )
    return count


def _check_answers(count: int, prompts: int) -> None:
    """Raises `InvalidInput` for more answers than one request may ask for."""
    if count * prompts > MOST:
        raise InvalidInput(
            f"{prompts} prompts with n={count} want {count * prompts} answers; {MOST} are given "
            "at most"
        )


def _stream(document: Json) -> bool:
    """Whether the answer is to be streamed; raises `InvalidInput`."""
    wanted = document.get("stream")
    if not isinstance(wanted, bool | None):
        raise InvalidInput(f"stream is true or false, not {wanted!r:.40}")
    return bool(wanted)


def _parameters(document: Json, *, chat: bool) -> Json:
    """The task's parameters; raises `InvalidInput` for what is not supported."""
    _check_supported(document)
    given = {
        name: document[name] for name in SAME if document.get(name) is not None
    }
    return (
        {"temperature": 1.0}
        | given
        | _lengths(document, chat)
        | _logprobs(document, chat)
    )


def _check_supported(document: Json) -> None:
    for name, neutral in NEUTRAL.items():
        if document.get(name) not in (None, neutral):
            raise InvalidInput(f"{name} is not supported: leave it out")


def _lengths(document: Json, chat: bool) -> Json:
    """The most tokens of an answer, where `max_tokens` does not say it."""
    most = document.get("max_completion_tokens")
    if most is not None:
        return {"max_tokens": most}
    usual = not chat and document.get("max_tokens") is None
    return {"max_tokens": USUAL_TOKENS} if usual else {}


def _logprobs(document: Json, chat: bool) -> Json:
    """How many likeliest tokens come with each token: chats ask for them in two fields."""
    wanted = document.get("logprobs")
    if chat:
        return {"logprobs": document.get("top_logprobs") or 0} if wanted else {}
    return {} if wanted is None else {"logprobs": wanted}
