"""fill-mask: a text with [MASK] in the place of words in, the likeliest words out; pre-training for
other tasks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from modelmill.errors import InvalidInput
from modelmill.generation.sampling import log_shares
from modelmill.tasks.base import (
    NOTE,
    Arrays,
    Context,
    Evaluation,
    Item,
    Items,
    Model,
    Raw,
    Run,
)
from modelmill.tasks.decoding import text_tokenizer
from modelmill.tasks.decoding.text_tokenizer import (
    EAST,
    LETTERS,
    MASK,
    SPECIAL,
    Preprocessing,
)
from modelmill.tasks.decoding.text_tokenizer import (
    fingerprint as fingerprint,
)
from modelmill.tasks.decoding.text_tokenizer import (
    look as look,
)
from modelmill.tasks.decoding.tokenizer import TOKENIZER, Tokenizer, load_tokenizer
from modelmill.tasks.inputs import TextTask
from modelmill.types import Json, Struct, TensorSpec

MASK_TOKENS = 8
"""More than there are in one."""
SHARE = 0.15
"""Of the words, hidden to measure by, as in training (Devlin et al. 2018, arXiv 1810.04805)."""


class Parameters(Struct, frozen=True, kw_only=True):
    """Which words are answered."""

    top_k: Annotated[
        int,
        Meta(ge=1, le=100, description="words that are answered, the likeliest first"),
    ] = 5
    targets: Annotated[
        str | Annotated[list[str], Meta(min_length=1)] | None,
        Meta(
            description="the words that are compared; else all",
            extra={"wanted": "a word or a list of words"},
        ),
    ] = None


class FillMask(TextTask):
    """The likeliest words for each [MASK] of a text."""

    SUMMARY = (
        "say which words are missing; learns a language from plain text, as a start for other "
        "tasks"
    )
    TARGETS = ("none", "label")
    CLASSES = 0
    METRIC = "perplexity"
    RECIPE = "bert"
    SAMPLES = 200_000
    PARAMETERS = Parameters

    def describe_inputs(self, samples: Sequence[Raw]) -> text_tokenizer.Look:
        """How long the texts are, and whether they have spaces."""
        return text_tokenizer.look(samples)

    def prepare(
        self, samples: Sequence[Raw], preprocessing: Preprocessing, folder: Path
    ) -> Preprocessing:
        """The tokenizer and the length, learnt from the training texts; raises `InvalidInput` where
        no word is known.
        """
        found = text_tokenizer.prepare(samples, preprocessing, folder)
        if found.tokens <= len(SPECIAL):
            raise InvalidInput(
                f"no word of the texts is in them {preprocessing.minimum_count} times: bring more "
                "text, or set "
                "minimum_count=1 or tokenizer=bpe"
            )
        return found

    def inputs(self, context: Context) -> list[TensorSpec]:
        """`ids`: int64 [-1, max_length]; `places` of the words that are wanted [-1, any number]."""
        return [
            text_tokenizer.tensor(context.preprocessing),
            TensorSpec(name="places", datatype="INT64", shape=[-1, -1]),
        ]

    def outputs(self, context: Context) -> list[TensorSpec]:
        """`logits` of all words for each place [-1, places, tokens]."""
        return [
            TensorSpec(
                name="logits",
                datatype="FP32",
                shape=[-1, -1, context.preprocessing.tokens],
            )
        ]

    def decode(self, data: Raw, context: Context, parameters: Any = None) -> Arrays:
        """`ids`: int64 [max_length], and `places` of [MASK] [any number]; raises `InvalidInput`
        where there is none.
        """
        ids = _masked(text_tokenizer.text_of(data), context)
        masked = load_tokenizer(context.folder / TOKENIZER).mask
        places, wanted = np.flatnonzero(ids == masked), str(data).count(MASK)
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
        return {
            "ids": ids,
            "places": places.astype(np.int64),
            f"{NOTE}text": text_tokenizer.noted(str(data)),
        }

    def encode(
        self, arrays: Arrays, context: Context, parameters: Parameters
    ) -> list[Any]:
        """The likeliest words, `top_k` of them or those of `targets`; for each [MASK] a list
        where there are several.

        Raises `InvalidInput` for targets that are no single tokens.
        """
        text = text_tokenizer.text_of_note(arrays[f"{NOTE}text"])
        wanted = _targets(parameters, context)
        count = parameters.top_k
        tokenizer = load_tokenizer(context.folder / TOKENIZER)
        found = []
        for number, logits in enumerate(arrays["logits"].astype(np.float64)):
            shares = np.exp(log_shares(logits))
            ids = wanted if wanted is not None else _words(tokenizer, len(shares))
            best = ids[np.argsort(-shares[ids], kind="stable")][:count]
            found.append(
                [
                    _guess(tokenizer, text, number, int(one), float(shares[one]))
                    for one in best
                ]
            )
        return found[0] if len(found) == 1 else found

    def same_answer(self, one: list[Any], other: list[Any], tolerance: float) -> bool:
        """Whether the words are as likely, rank by rank: rounding may turn a tie."""
        if len(one) != len(other):
            return False
        if one and isinstance(one[0], list):
            return all(
                self.same_answer(mine, theirs, tolerance)
                for mine, theirs in zip(one, other, strict=True)
            )
        return all(
            abs(a["score"] - b["score"]) <= tolerance
            for a, b in zip(one, other, strict=True)
        )

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """`ids` alone: training hides words of its own choice each time."""
        ids = text_tokenizer.decode(item.data, context.preprocessing, context.folder)
        return {"ids": ids.astype(np.int32)}, {}

    def expected(self, item: Item) -> Raw:
        """The text."""
        return item.data

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """How often the likeliest word is the one that was hidden, and the surprise at it
        in nats.
        """
        return metrics(model.runs[""], list(items), model.context)

    def measured_by(self, item: Item, context: Context) -> str:
        """As much of a text as the model reads, less what a [MASK] may take."""
        return text_tokenizer.beginning(
            item.data,
            context.folder,
            max(1, context.preprocessing.max_length - MASK_TOKENS),
        )

    def as_sent(self, data: Raw) -> str:
        """A text whose middle word is hidden; the middle letter of it in scripts without spaces."""
        words = text_tokenizer.text_of(data).split()
        middle = words[len(words) // 2]
        half = len(middle) // 2
        spaced = all(letter < EAST for letter in middle)
        words[len(words) // 2] = (
            MASK if spaced else f"{middle[:half]}{MASK}{middle[half + 1 :]}"
        )
        return " ".join(words)

    def example(self) -> str:
        """A sentence without one of its words."""
        return f"A quiet film that {MASK} with you."


def _masked(text: str, context: Context) -> np.ndarray[Any, Any]:
    """Token ids, int64 [max_length], of a text in which [MASK] alone is no text."""
    how, tokenizer = context.preprocessing, load_tokenizer(context.folder / TOKENIZER)
    marks = {MASK: tokenizer.mask}
    ids = tokenizer.encode(text[: how.max_length * LETTERS], marks)
    row = np.full(how.max_length, tokenizer.pad, np.int64)
    row[: len(ids)] = ids[: how.max_length]
    return row


def _targets(parameters: Parameters, context: Context) -> Any:
    """The ids of the words that are to be compared; None for all."""
    targets = parameters.targets
    if targets is None:
        return None
    words = [targets] if isinstance(targets, str) else targets
    tokenizer, ids = load_tokenizer(context.folder / TOKENIZER), []
    for word in words:
        known = tokenizer.encode(word)
        if len(known) != 1 or known[0] in tokenizer.special:
            raise InvalidInput(f"the model knows no single token {word[:60]!r}")
        ids.append(known[0])
    return np.array(ids)


def _words(tokenizer: Tokenizer, tokens: int) -> np.ndarray[Any, Any]:
    """The ids of all tokens that are text."""
    return np.setdiff1d(np.arange(tokens), sorted(tokenizer.special))


def _guess(
    tokenizer: Tokenizer, text: str, number: int, token: int, score: float
) -> Json:
    """One word in its place, the other masks as they were."""
    word = tokenizer.name_of(token).replace("▁", " ").strip()
    parts = text.split(MASK)
    whole = (
        MASK.join(parts[: number + 1])
        + word
        + MASK.join(["", *parts[number + 1 :]])[len(MASK) :]
    )
    return {
        "score": round(score, 6),
        "token": token,
        "token_str": word,
        "sequence": whole,
    }


def _hidden(
    ids: np.ndarray[Any, Any], number: int, tokenizer: Tokenizer
) -> np.ndarray[Any, Any]:
    """Places of known words, always the same ones of a text at its place in the data."""
    places = np.flatnonzero(~np.isin(ids, sorted(tokenizer.special)))
    if not len(places):
        return places
    chance = np.random.default_rng((len(ids), number)).permutation(len(places))
    return np.sort(places[chance[: max(1, round(SHARE * len(places)))]])


def metrics(run: Run, items: Sequence[Item], context: Context) -> Evaluation:
    """How often the likeliest word is the one that was hidden, and the surprise at it in nats."""
    tokenizer = load_tokenizer(context.folder / TOKENIZER)
    right = 0
    surprise = 0.0
    count = 0
    for number, item in enumerate(items):
        ids = text_tokenizer.decode(item.data, context.preprocessing, context.folder)
        places = _hidden(ids, number, tokenizer)
        if not len(places):
            continue
        kept = ids[places]
        ids[places] = tokenizer.mask
        scores = log_shares(
            run({"ids": ids[None], "places": places[None]})["logits"][0].astype(
                np.float64
            )
        )
        own = scores[np.arange(len(places)), kept]
        right += int((scores.argmax(1) == kept).sum())
        surprise, count = surprise - float(own.sum()), count + len(places)
    if not count:
        raise InvalidInput(
            "the model knows no word of the texts that it is to be measured on"
        )
    loss = surprise / count
    metrics = {
        "accuracy": right / count,
        "loss": loss,
        "perplexity": float(np.exp(min(loss, 50))),
        "hidden": count,
        "items": len(items),
    }
    return Evaluation(metrics=metrics, pictures={})


TASK = FillMask()
