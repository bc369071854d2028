"""feature-extraction: a text in, a unit vector out that lies near those of texts that mean the
same.
"""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

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
from modelmill.tasks.decoding.padding import padded
from modelmill.tasks.decoding.tokenizer import TOKENIZER, load_tokenizer
from modelmill.tasks.inputs import TextTask
from modelmill.tasks.kinds.token_ids import TokenIds
from modelmill.tasks.parameters import HIDDEN
from modelmill.types import Struct, TensorSpec, Usage

DIGITS = 6
SIDES = ("left", "right")
TOKENS = f"{NOTE}tokens"
Array = np.ndarray[Any, Any]


class Preprocessing(text_tokenizer.Preprocessing, frozen=True, kw_only=True):
    """How a text becomes token ids, and how long the vector is that it becomes."""

    dimensions: Annotated[
        int, msgspec.Meta(ge=2, le=4096, description="numbers in the vector")
    ] = 256


class Parameters(Struct, frozen=True, kw_only=True):
    """How a text is cut, and in which form its vector is answered."""

    dimensions: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None,
        msgspec.Meta(
            description="numbers of the vector that are kept, at length 1 again"
        ),
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"],
        msgspec.Meta(
            description="a list of numbers, or their float32 as base64"
        ),
    ] = "float"
    truncate: Annotated[
        bool, msgspec.Meta(description="cut a text that is too long")
    ] = True
    truncation_direction: Annotated[
        str, msgspec.Meta(description="the end that is cut: left or right")
    ] = "right"
    normalize: Annotated[
        bool, msgspec.Meta(description="always true: vectors have length 1")
    ] = True
    prompt_name: Annotated[Any, msgspec.Meta(extra=HIDDEN)] = None
    usage: Annotated[
        bool,
        msgspec.Meta(description='answer `{"embedding", "tokens"}`'),
    ] = False

    def __post_init__(self) -> None:
        side = self.truncation_direction
        if side.lower() not in SIDES:
            raise ValueError(
                f"truncation_direction is left or right, not {side!r:.40}"
            )
        if self.prompt_name is not None:
            raise ValueError(
                "prompt_name: the model has no prompts; leave it out"
            )
        if not self.normalize:
            raise ValueError(
                "normalize: the model answers vectors of length 1 alone; leave it out"
            )

    @property
    def cuts_the_left(self) -> bool:
        """Whether the beginning of a text that is too long is cut, not its end."""
        return self.truncation_direction.lower() == "left"


USUAL = Parameters()


class FeatureExtraction(TextTask):
    """A unit vector for a text."""

    SUMMARY = (
        "turn a text into a vector, for search and comparison by meaning; sentence-similarity "
        "is asked of it, too"
    )
    ALSO_TAKES = ("token_ids",)
    GIVES = "vector"
    TARGETS = ("texts", "label", "scored")
    CLASSES = 0
    METRIC = "recall_at_1"
    RECIPE = "encoder"
    SAMPLES = 200_000
    PREPROCESSING = Preprocessing
    PARAMETERS = Parameters

    def prepare(
        self, samples: Sequence[Any], preprocessing: Preprocessing, folder: Path
    ) -> text_tokenizer.Preprocessing:
        """The tokenizer and the length, learnt from both sides of the pairs."""
        texts = [
            text
            for sample in samples
            for text in (sample if isinstance(sample, tuple) else (sample,))
        ]
        return text_tokenizer.prepare(texts, preprocessing, folder)

    def prepare_sample(self, item: Item) -> Any:
        """All texts of an item: the tokenizer learns from them."""
        return (item.data, *_others(item))

    def outputs(self, context: Context) -> list[TensorSpec]:
        """`embedding`: FP32 [-1, dimensions], each row of length 1."""
        shape = [-1, context.preprocessing.dimensions]
        return [TensorSpec(name="embedding", datatype="FP32", shape=shape)]

    def decode(
        self, data: Raw, context: Context, parameters: Parameters = USUAL
    ) -> Arrays:
        """`ids`, of the text or as they were given; with `truncate` false raises `InvalidInput` for
        a long text.
        """
        length = context.preprocessing.max_length
        ids = _asked_ids(data, context, parameters)
        if len(ids) > length and not parameters.truncate:
            raise InvalidInput(
                f"the text has {len(ids):,} tokens; the model reads {length}, and "
                "truncate is false"
            )
        ids = ids[-length:] if parameters.cuts_the_left else ids[:length]
        return {
            "ids": padded(ids, length, np.int64),
            TOKENS: np.array(len(ids), np.int64),
        }

    def usage(self, inputs: Arrays, outputs: Arrays, context: Context) -> Usage:
        """`prompt_tokens` of the texts as far as the model reads them."""
        return {"prompt_tokens": int(inputs[TOKENS].sum())}

    def encode(
        self, arrays: Arrays, context: Context, parameters: Parameters
    ) -> Any:
        """The vector as a list of numbers.

        `dimensions` keeps the first ones, at length 1 again; `encoding_format` base64 is
        little-endian float32 (OpenAI); with `usage` the answer is `{"embedding", "tokens"}`.
        """
        vector = arrays["embedding"].astype(np.float64)
        if parameters.dimensions is not None:
            vector = _shortened(vector, parameters.dimensions)
        vector = vector.round(DIGITS)
        found: Any = (
            b64encode(vector.astype("<f4").tobytes()).decode()
            if parameters.encoding_format == "base64"
            else vector.tolist()
        )
        if parameters.usage:
            return {"embedding": found, "tokens": int(arrays[TOKENS])}
        return found

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """`ids`, and what is known of the text: `other` ids near it, with a `score` where there is
        one, or its `label`.
        """
        ids = {"ids": self._ids_of(item.data, context)}
        others = _others(item)
        if not others:
            return ids, {"label": np.array(context.labels.index(item.label))}
        target = {"other": self._ids_of(others[0], context)}
        score = score_of(item)
        if score is not None:
            target["score"] = np.array(score, np.float32)
        return ids, target

    def _ids_of(self, text: Raw, context: Context) -> np.ndarray[Any, Any]:
        """Token ids as they are trained on, int32 [max_length]."""
        return self.decode(text, context)["ids"].astype(np.int32)

    def expected(self, item: Item) -> Any:
        """What the text is near to."""
        return item.target if item.target is not None else item.label

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """What each text finds among the others of its pairs or of its labels, and how near scored
        pairs are.
        """
        from modelmill.tasks.feature_extraction.measures import measures

        return measures(model.runs[""], list(items), model.context)


def _others(item: Item) -> tuple[str, ...]:
    """The texts that should lie near an item's own (or as near as its score says)."""
    if not isinstance(item.target, tuple):
        return ()
    return tuple(one for one in item.target if isinstance(one, str))


def score_of(item: Item) -> float | None:
    """How alike the two texts of an item are; None where nobody said."""
    target = item.target
    if (
        isinstance(target, tuple)
        and len(target) == 2
        and isinstance(target[1], float)
    ):
        return target[1]
    return None


def _asked_ids(
    data: Raw, context: Context, parameters: Parameters
) -> list[int]:
    """The tokens of a text as far as they may be needed, or those of the caller."""
    if isinstance(data, TokenIds):
        return text_tokenizer.checked_ids(data, context.preprocessing.tokens)
    whole = parameters.cuts_the_left or not parameters.truncate
    return _ids(data, context, whole=whole)


def _shortened(vector: Array, size: int) -> Array:
    """The first numbers of a vector, at length 1 again; raises `InvalidInput` for too many."""
    if size > len(vector):
        raise InvalidInput(
            f"dimensions is a whole number from 1 to {len(vector)}, not {size!r:.40}"
        )
    first = vector[:size]
    return np.asarray(first / max(float(np.linalg.norm(first)), 1e-12))


def _ids(data: Raw, context: Context, *, whole: bool) -> list[int]:
    """The tokens of a text, or of so much of its beginning as the model reads at most."""
    text = text_tokenizer.text_of(data)
    if not whole:
        text = text[: context.preprocessing.max_length * text_tokenizer.LETTERS]
    return load_tokenizer(context.folder / TOKENIZER).encode(text)


TASK = FeatureExtraction()
