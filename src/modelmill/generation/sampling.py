"""Sampling: the parameters of a request, and the choice of the next token."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from modelmill.errors import InvalidInput
from modelmill.streams import Sampling

Logits = np.ndarray[Any, np.dtype[np.float32]]
MOST_STOPS, LONGEST_STOP = 8, 200


def sampling(parameters: Mapping[str, Any], defaults: Sampling) -> Sampling:
    """The defaults with the parameters of a request; raises `InvalidInput` that names a bad one."""
    fields = {field.name: field for field in msgspec.structs.fields(Sampling)}
    changed: dict[str, Any] = {}
    for name, value in parameters.items():
        if value is None:
            continue
        if name == "stop" and isinstance(value, str):
            value = (value,)
        if isinstance(value, bool):
            raise InvalidInput(f"{name} is a number, not a truth value")
        try:
            changed[name] = msgspec.convert(value, fields[name].type)
        except msgspec.ValidationError as error:
            raise InvalidInput(
                f"{name}: {str(error)[0].lower()}{str(error)[1:]}"
            ) from error
    stop = changed.get("stop", ())
    if len(stop) > MOST_STOPS or any(
        not 0 < len(text) <= LONGEST_STOP for text in stop
    ):
        raise InvalidInput(
            f"stop takes up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters"
        )
    return msgspec.structs.replace(defaults, **changed)


def choose(
    logits: Logits,
    options: Sampling,
    position: int,
    previous: np.ndarray[Any, Any] | None = None,
) -> int:
    """The token at a position of an answer from logits [tokens]; chance depends on the seed and the
    position alone. `previous` are the tokens that the repetition penalty applies to.
    """
    scores = logits.astype(np.float64)
    if options.repetition_penalty != 1 and previous is not None and len(previous):
        present = np.unique(previous)
        scores[present] = np.where(
            scores[present] > 0,
            scores[present] / options.repetition_penalty,
            scores[present] * options.repetition_penalty,
        )
    if options.temperature == 0 or options.top_k == 1:
        return int(scores.argmax())
    scores = (scores - scores.max()) / options.temperature
    shares = np.exp(scores)
    if options.top_k and options.top_k < len(shares):
        shares[np.argpartition(-shares, options.top_k)[options.top_k :]] = 0
    shares /= shares.sum()
    if options.top_p < 1:
        order = np.argsort(-shares, kind="stable")
        sums = np.cumsum(shares[order])
        shares[order[int(np.searchsorted(sums, options.top_p)) + 1 :]] = 0
        shares /= shares.sum()
    chance = np.random.default_rng((options.seed, position)).random()
    return min(
        int(np.searchsorted(np.cumsum(shares), chance, side="right")),
        int(np.flatnonzero(shares)[-1]),
    )


def log_shares(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Log-probabilities along the last axis, in the type of the logits."""
    scores = logits - logits.max(-1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(-1, keepdims=True)))


def logprobs(
    logits: Logits, token: int, count: int
) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of a token, and the `count` most probable tokens with theirs."""
    scores = log_shares(logits.astype(np.float64))
    best = np.argsort(-scores, kind="stable")[:count]
    return float(scores[token]), [(int(other), float(scores[other])) for other in best]
