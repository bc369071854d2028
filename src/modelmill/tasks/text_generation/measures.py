"""How well a language model foretells texts: nats and bits a character, and perplexity."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from modelmill.generation.sampling import log_shares
from modelmill.tasks.base import Arrays, Context, Evaluation, Item, Run
from modelmill.tasks.decoding.tokenizer import Encoded, without_surrogates
from modelmill.tasks.text_generation.prompts import tokenizer_of
from modelmill.types import Json

MOST_NATS = 50
"""Beyond it a perplexity is no number that anybody reads."""


def metrics(run: Run, items: Sequence[Item], context: Context) -> Evaluation:
    """How surprised the model is by each character of texts, on average: nats, bits, and the
    perplexity of tokens.

    Each token is judged by at least half of the model's context before it, where there is so
    much.
    """
    tokenizer = tokenizer_of(context)
    total = 0.0
    tokens = letters = 0
    for text, ended in _texts(items):
        encoded = tokenizer.encode_with_places(text)
        ids = np.array(
            [*encoded.ids, *([tokenizer.end] if ended else [])], np.int64
        )
        total += _surprise(run, ids, context.preprocessing.context - 1)
        tokens += max(0, len(ids) - 1)
        letters += len(text) - _first_letters(encoded)
    figures = _figures(total, tokens, letters) | {"items": len(items)}
    return Evaluation(metrics=figures, pictures={})


def _first_letters(encoded: Encoded) -> int:
    """The characters of the first token, which nothing foretells."""
    return encoded.places[0][1] if encoded.places else 0


def _figures(total: float, tokens: int, letters: int) -> Json:
    """The metrics of a surprise of so many nats in all."""
    nats = total / max(1, letters)
    return {
        "nats_per_char": nats,
        "bits_per_char": nats / float(np.log(2)),
        "perplexity": float(np.exp(min(total / max(1, tokens), MOST_NATS))),
    }


def _texts(items: Sequence[Item]) -> Iterator[tuple[str, bool]]:
    """Texts, and whether each has its end: an item whose name ends in + goes on in the next.

    Passages of one text are joined again.
    """
    parts = list[str]()
    for item in items:
        parts.append(without_surrogates(str(item.data)))
        if not item.name.endswith("+"):
            yield "".join(parts), True
            parts = []
    if parts:
        yield "".join(parts), False


def _surprise(
    score: Callable[[Arrays], Arrays], ids: np.ndarray[Any, Any], size: int
) -> float:
    """At all tokens of a text but the first, in nats, by windows of `size` that overlap by half."""
    total = 0.0
    step = max(1, size // 2)
    for start in range(0, len(ids) - 1, step):
        part = ids[start : start + size + 1]
        own = _log_probabilities(score, part)
        fresh = own if start == 0 else own[size - step :]
        total -= float(fresh.sum())
        if start + size + 1 >= len(ids):
            break
    return total


def _log_probabilities(
    score: Callable[[Arrays], Arrays], ids: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Of each token but the first, by those before it."""
    logits = score({"ids": ids[None, :-1]})["logits"][0].astype(np.float64)
    return np.take_along_axis(log_shares(logits), ids[1:, None], axis=1)[:, 0]
