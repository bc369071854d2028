"""Sampling: the parameters of a request, and the choice of the next token."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from modelmill.errors import InvalidInput
from modelmill.streams import Sampling

Logits = np.ndarray[Any, np.dtype[np.float32]]
Shares = np.ndarray[Any, np.dtype[np.float64]]
MOST_STOPS, LONGEST_STOP = 8, 200


FIELDS = {field.name: field.type for field in msgspec.structs.fields(Sampling)}
"""The types of the parameters."""


def sampling(parameters: Mapping[str, Any], defaults: Sampling) -> Sampling:
    """The defaults with the parameters of a request; raises `InvalidInput` that names a bad one."""
    changed = {
        name: _converted(name, value)
        for name, value in parameters.items()
        if value is not None
    }
    _check_stop(changed.get("stop", ()))
    return msgspec.structs.replace(defaults, **changed)


def _converted(name: str, value: Any) -> Any:
    """The value of a parameter in its type; raises `InvalidInput`."""
    if name == "stop" and isinstance(value, str):
        value = (value,)
    if isinstance(value, bool):
        raise InvalidInput(f"{name} is a number, not a truth value")
    try:
        return msgspec.convert(value, FIELDS[name])
    except msgspec.ValidationError as error:
        reason = str(error)
        raise InvalidInput(
            f"{name}: {reason[0].lower()}{reason[1:]}"
        ) from error


def _check_stop(stop: Sequence[str]) -> None:
    """Raises `InvalidInput` for too many stop sequences, or too long ones."""
    if len(stop) > MOST_STOPS or any(
        not 0 < len(text) <= LONGEST_STOP for text in stop
    ):
        raise InvalidInput(
            f"stop takes up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters"
        )


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
    if (
        options.repetition_penalty != 1
        and previous is not None
        and len(previous)
    ):
        _penalise(scores, previous, options.repetition_penalty)
    if options.temperature == 0 or options.top_k == 1:
        return int(scores.argmax())
    chance = np.random.default_rng((options.seed, position)).random()
    return _draw(_shares(scores, options), chance)


def _draw(shares: Shares, chance: float) -> int:
    """The token at which the sum of the probabilities passes a number below 1."""
    token = int(np.searchsorted(np.cumsum(shares), chance, side="right"))
    # rounding may leave the sum a little below 1
    return min(token, int(np.flatnonzero(shares)[-1]))


def _penalise(
    scores: Shares, previous: np.ndarray[Any, Any], penalty: float
) -> None:
    """Lower the scores of tokens that occurred (Keskar et al. 2019), in place."""
    present = np.unique(previous)
    scores[present] = np.where(
        scores[present] > 0,
        scores[present] / penalty,
        scores[present] * penalty,
    )


def _shares(scores: Shares, options: Sampling) -> Shares:
    """The probabilities of tokens under temperature, top-k and top-p."""
    shares: Shares = np.exp((scores - scores.max()) / options.temperature)
    if options.top_k and options.top_k < len(shares):
        _keep_best(shares, options.top_k)
    shares /= shares.sum()
    if options.top_p < 1:
        _keep_nucleus(shares, options.top_p)
    return shares


def _keep_best(shares: Shares, top_k: int) -> None:
    """Keep the most probable tokens, in place."""
    shares[np.argpartition(-shares, top_k)[top_k:]] = 0


def _keep_nucleus(shares: Shares, top_p: float) -> None:
    """Keep the most probable tokens that together reach `top_p`, in place."""
    order = np.argsort(-shares, kind="stable")
    sums = np.cumsum(shares[order])
    shares[order[int(np.searchsorted(sums, top_p)) + 1 :]] = 0
    shares /= shares.sum()


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
    return float(scores[token]), [
        (int(other), float(scores[other])) for other in best
    ]
