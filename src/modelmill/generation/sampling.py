"""Which token comes next: what callers may ask for, and the choice itself."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from modelmill.errors import InvalidInput
from modelmill.streams import Sampling

Logits = np.ndarray[Any, np.dtype[np.float32]]
MOST_STOPS, LONGEST_STOP = 8, 200


def sampling(given: Mapping[str, Any], usual: Sampling) -> Sampling:
    """The usual way with what a caller asks for; raises `InvalidInput` naming what is wrong."""
    fields = {field.name: field for field in msgspec.structs.fields(Sampling)}
    changed: dict[str, Any] = {}
    for name, value in given.items():
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
    return msgspec.structs.replace(usual, **changed)


def choose(
    logits: Logits,
    how: Sampling,
    place: int,
    before: np.ndarray[Any, Any] | None = None,
) -> int:
    """The token at a place of an answer, from logits [tokens]; depends on the seed and the place
    alone.
    """
    scores = logits.astype(np.float64)
    if how.repetition_penalty != 1 and before is not None and len(before):
        seen = np.unique(before)
        scores[seen] = np.where(
            scores[seen] > 0,
            scores[seen] / how.repetition_penalty,
            scores[seen] * how.repetition_penalty,
        )
    if how.temperature == 0 or how.top_k == 1:
        return int(scores.argmax())
    scores = (scores - scores.max()) / how.temperature
    shares = np.exp(scores)
    if how.top_k and how.top_k < len(shares):
        shares[np.argpartition(-shares, how.top_k)[how.top_k :]] = 0
    shares /= shares.sum()
    if how.top_p < 1:
        order = np.argsort(-shares, kind="stable")
        sums = np.cumsum(shares[order])
        shares[order[int(np.searchsorted(sums, how.top_p)) + 1 :]] = 0
        shares /= shares.sum()
    chance = np.random.default_rng((how.seed, place)).random()
    return min(
        int(np.searchsorted(np.cumsum(shares), chance, side="right")),
        int(np.flatnonzero(shares)[-1]),
    )


def log_shares(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The logarithms of the probabilities along the last axis, in the type of the logits."""
    scores = logits - logits.max(-1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(-1, keepdims=True)))


def logprobs(
    logits: Logits, token: int, most: int
) -> tuple[float, list[tuple[int, float]]]:
    """The logarithm of the token's probability, and those of the likeliest ones."""
    scores = log_shares(logits.astype(np.float64))
    best = np.argsort(-scores, kind="stable")[:most]
    return float(scores[token]), [(int(one), float(scores[one])) for one in best]
