"""Words in the place of [MASK]: which are compared, and how a text reads with one of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelmill.errors import InvalidInput
from modelmill.generation.sampling import log_shares
from modelmill.tasks.base import Context
from modelmill.tasks.decoding.text_tokenizer import LETTERS, MASK
from modelmill.tasks.decoding.tokenizer import (
    TOKENIZER,
    Tokenizer,
    load_tokenizer,
)
from modelmill.types import Json

Ids = np.ndarray[Any, Any]


def masked(text: str, context: Context) -> Ids:
    """Token ids, int64 [max_length], of a text in which [MASK] alone is no text."""
    how, tokenizer = context.preprocessing, tokenizer_of(context)
    marks = {MASK: tokenizer.mask}
    ids = tokenizer.encode(text[: how.max_length * LETTERS], marks)
    row = np.full(how.max_length, tokenizer.pad, np.int64)
    row[: len(ids)] = ids[: how.max_length]
    return row


def places_of(text: str, ids: Ids, context: Context) -> Ids:
    """Where [MASK] stands among the tokens of a text, int64 [any number]; raises `InvalidInput`
    where there is none, or where one is not read.
    """
    places, wanted = (
        np.flatnonzero(ids == tokenizer_of(context).mask),
        text.count(MASK),
    )
    if not wanted:
        raise InvalidInput(
            f"the text has no {MASK}: write it where a word is missing"
        )
    if len(places) < wanted:
        most = context.preprocessing.max_length
        raise InvalidInput(
            f"{wanted - len(places)} of {wanted} {MASK} stand after the {most} tokens that "
            "are read"
        )
    return places.astype(np.int64)


def compared(targets: Sequence[str], context: Context) -> Ids:
    """The ids of the words that are to be compared; raises `InvalidInput` for what is no single
    token.
    """
    tokenizer = tokenizer_of(context)
    return np.array([_token_of(word, tokenizer) for word in targets])


def _token_of(word: str, tokenizer: Tokenizer) -> int:
    known = tokenizer.encode(word)
    if len(known) != 1 or known[0] in tokenizer.special:
        raise InvalidInput(f"the model knows no single token {word[:60]!r}")
    return known[0]


def all_words(tokens: int, context: Context) -> Ids:
    """The ids of those tokens, of so many, that are text."""
    return np.setdiff1d(
        np.arange(tokens), sorted(tokenizer_of(context).special)
    )


def likeliest(logits: Ids, among: Ids, count: int) -> list[tuple[int, float]]:
    """The ids of the likeliest tokens among some, with their probabilities."""
    shares = np.exp(log_shares(logits))
    best = among[np.argsort(-shares[among], kind="stable")][:count]
    return [(int(one), float(shares[one])) for one in best]


def guess(
    text: str, number: int, token: int, score: float, context: Context
) -> Json:
    """One word in the place of the [MASK] of this number, the other ones as they were."""
    word = tokenizer_of(context).name_of(token).replace("▁", " ").strip()
    parts = text.split(MASK)
    before, after = parts[: number + 1], parts[number + 1 :]
    return {
        "score": round(score, 6),
        "token": token,
        "token_str": word,
        "sequence": f"{MASK.join(before)}{word}{MASK.join(after)}",
    }


def tokenizer_of(context: Context) -> Tokenizer:
    """The tokenizer of the bundle."""
    return load_tokenizer(context.folder / TOKENIZER)
