"""How well a model guesses words that are hidden from it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from modelmill.errors import InvalidInput
from modelmill.generation.sampling import log_shares
from modelmill.tasks.base import Context, Evaluation, Item, Run
from modelmill.tasks.decoding import text_tokenizer
from modelmill.tasks.decoding.tokenizer import Tokenizer
from modelmill.tasks.fill_mask.words import tokenizer_of

SHARE = 0.15
"""Of the words, hidden to measure by, as in training (Devlin et al. 2018, arXiv 1810.04805)."""
MOST_NATS = 50
"""Beyond it a perplexity is no number that anybody reads."""
Ids = np.ndarray[Any, Any]


class Guessed(NamedTuple):
    """The hidden words of a text: how many, how many were guessed, the surprise at them in nats."""

    words: int
    right: int
    surprise: float


def metrics(run: Run, items: Sequence[Item], context: Context) -> Evaluation:
    """How often the likeliest word is the one that was hidden, and the surprise at it in nats."""
    guessed = list(_guessed(run, items, context))
    count = sum(one.words for one in guessed)
    if not count:
        raise InvalidInput(
            "the model knows no word of the texts that it is to be measured on"
        )
    loss = sum(one.surprise for one in guessed) / count
    metrics = {
        "accuracy": sum(one.right for one in guessed) / count,
        "loss": loss,
        "perplexity": float(np.exp(min(loss, MOST_NATS))),
        "hidden": count,
        "items": len(items),
    }
    return Evaluation(metrics=metrics, pictures={})


def _guessed(
    run: Run, items: Sequence[Item], context: Context
) -> Iterator[Guessed]:
    """What is guessed of each text with words to hide."""
    tokenizer, how = tokenizer_of(context), context.preprocessing
    for number, item in enumerate(items):
        ids = text_tokenizer.decode(item.data, how, context.folder)
        places = _hidden(ids, number, tokenizer)
        if len(places):
            yield _guess(run, ids, places, tokenizer.mask)


def _guess(run: Run, ids: Ids, places: Ids, mask: int) -> Guessed:
    """Ask for the words at some places of a text, which are hidden there."""
    wanted = ids[places]
    ids[places] = mask
    logits = run({"ids": ids[None], "places": places[None]})["logits"][0]
    scores = log_shares(logits.astype(np.float64))
    own = scores[np.arange(len(places)), wanted]
    right = int((scores.argmax(1) == wanted).sum())
    return Guessed(len(places), right, -float(own.sum()))


def _hidden(ids: Ids, number: int, tokenizer: Tokenizer) -> Ids:
    """Places of known words, always the same ones of a text at its place in the data."""
    places = np.flatnonzero(~np.isin(ids, sorted(tokenizer.special)))
    if not len(places):
        return places
    chance = np.random.default_rng((len(ids), number)).permutation(len(places))
    return np.sort(places[chance[: max(1, round(SHARE * len(places)))]])
