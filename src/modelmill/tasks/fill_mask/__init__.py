"""fill-mask: a text with [MASK] in the place of words in, the likeliest words out; pre-training for
other tasks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from modelmill.errors import InvalidInput
from modelmill.tasks.base import (
    NOTE,
    Arrays,
    Context,
    Evaluation,
    Item,
    Items,
    Model,
    Raw,
)
from modelmill.tasks.decoding import text_tokenizer
from modelmill.tasks.decoding.text_tokenizer import (
    EAST,
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
from modelmill.tasks.fill_mask.measures import metrics
from modelmill.tasks.fill_mask.words import (
    all_words,
    compared,
    guess,
    likeliest,
    masked,
    places_of,
)
from modelmill.tasks.inputs import TextTask
from modelmill.types import Struct, TensorSpec

MASK_TOKENS = 8
"""More than there are in one."""


class Parameters(Struct, frozen=True, kw_only=True):
    """Which words are answered."""

    top_k: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="words that are answered, the likeliest first",
        ),
    ] = 5
    targets: Annotated[
        str | Annotated[list[str], Meta(min_length=1)] | None,
        Meta(
            description="the words that are compared; else all",
            extra={"wanted": "a word or a list of words"},
        ),
    ] = None

    def words(self) -> list[str]:
        """The words that are compared; none for all."""
        if self.targets is None:
            return []
        return [self.targets] if isinstance(self.targets, str) else self.targets


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

    def decode(
        self, data: Raw, context: Context, parameters: Any = None
    ) -> Arrays:
        """`ids`: int64 [max_length], and `places` of [MASK] [any number]; raises `InvalidInput`
        where there is none.
        """
        text = text_tokenizer.text_of(data)
        ids = masked(text, context)
        return {
            "ids": ids,
            "places": places_of(text, ids, context),
            f"{NOTE}text": text_tokenizer.noted(text),
        }

    def encode(
        self, arrays: Arrays, context: Context, parameters: Parameters
    ) -> list[Any]:
        """The likeliest words, `top_k` of them or those of `targets`; for each [MASK] a list
        where there are several.

        Raises `InvalidInput` for targets that are no single tokens.
        """
        text = text_tokenizer.text_of_note(arrays[f"{NOTE}text"])
        logits = arrays["logits"].astype(np.float64)
        words = parameters.words()
        among = (
            compared(words, context)
            if words
            else all_words(logits.shape[-1], context)
        )
        found = [
            [
                guess(text, number, token, score, context)
                for token, score in likeliest(place, among, parameters.top_k)
            ]
            for number, place in enumerate(logits)
        ]
        return found[0] if len(found) == 1 else found

    def same_answer(
        self, one: list[Any], other: list[Any], tolerance: float
    ) -> bool:
        """Whether the words are as likely, rank by rank: rounding may turn a tie."""
        if len(one) != len(other):
            return False
        pairs = zip(one, other, strict=True)
        if one and isinstance(one[0], list):
            return all(self.same_answer(a, b, tolerance) for a, b in pairs)
        return all(abs(a["score"] - b["score"]) <= tolerance for a, b in pairs)

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """`ids` alone: training hides words of its own choice each time."""
        ids = text_tokenizer.decode(
            item.data, context.preprocessing, context.folder
        )
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
        middle = len(words) // 2
        words[middle] = _hidden(words[middle])
        return " ".join(words)

    def example(self) -> str:
        """A sentence without one of its words."""
        return f"A quiet film that {MASK} with you."


def _hidden(word: str) -> str:
    """[MASK] for a word, or for its middle letter in scripts without spaces."""
    if all(letter < EAST for letter in word):
        return MASK
    half = len(word) // 2
    return f"{word[:half]}{MASK}{word[half + 1 :]}"


TASK = FillMask()
