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
from modelmill.tasks.decoding.text_tokenizer import (
    fingerprint as fingerprint,
)
from modelmill.tasks.decoding.tokenizer import TOKENIZER, load_tokenizer
from modelmill.tasks.inputs import TextTask
from modelmill.tasks.kinds.token_ids import TokenIds
from modelmill.tasks.parameters import HIDDEN
from modelmill.types import Struct, TensorSpec, Usage

DIGITS = 6
SIDES = ("left", "right")
TOKENS = f"{NOTE}tokens"


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
        msgspec.Meta(description="a list of numbers, or their float32 as base64"),
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
            raise ValueError(f"truncation_direction is left or right, not {side!r:.40}")
        if self.prompt_name is not None:
            raise ValueError("prompt_name: the model has no prompts; leave it out")
        if not self.normalize:
            raise ValueError(
                "normalize: the model answers vectors of length 1 alone; leave it out"
            )


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
        return [
            TensorSpec(
                name="embedding",
                datatype="FP32",
                shape=[-1, context.preprocessing.dimensions],
            )
        ]

    def decode(
        self, data: Raw, context: Context, parameters: Parameters = USUAL
    ) -> Arrays:
        """`ids`, of the text or as they were given; with `truncate` false raises `InvalidInput` for
        a long text.
        """
        how = context.preprocessing
        cuts = parameters.truncate
        left = parameters.truncation_direction.lower() == "left"
        ids = (
            text_tokenizer.checked_ids(data, how.tokens)
            if isinstance(data, TokenIds)
            else _ids(data, context, whole=left or not cuts)
        )
        if len(ids) > how.max_length and not cuts:
            raise InvalidInput(
                f"the text has {len(ids):,} tokens; the model reads {how.max_length}, and "
                "truncate is false"
            )
        ids = ids[-how.max_length :] if left else ids[: how.max_length]
        row = np.zeros(how.max_length, np.int64)
        row[: len(ids)] = ids
        return {"ids": row, TOKENS: np.array(len(ids), np.int64)}

    def usage(self, inputs: Arrays, outputs: Arrays, context: Context) -> Usage:
        """`prompt_tokens` of the texts as far as the model reads them."""
        return {"prompt_tokens": int(inputs[TOKENS].sum())}

    def encode(self, arrays: Arrays, context: Context, parameters: Parameters) -> Any:
        """The vector as a list of numbers.

        `dimensions` keeps the first ones, at length 1 again; `encoding_format` base64 is
        little-endian float32 (OpenAI); with `usage` the answer is `{"embedding", "tokens"}`.
        """
        vector = arrays["embedding"].astype(np.float64)
        most = len(vector)
        size = parameters.dimensions
        if size is not None:
            if size > most:
                raise InvalidInput(
                    f"dimensions is a whole number from 1 to {most}, not {size!r:.40}"
                )
            vector = vector[:size] / max(float(np.linalg.norm(vector[:size])), 1e-12)
        vector = vector.round(DIGITS)
        packed = parameters.encoding_format == "base64"
        found: Any = (
            b64encode(vector.astype("<f4").tobytes()).decode()
            if packed
            else vector.tolist()
        )
        return (
            {"embedding": found, "tokens": int(arrays[TOKENS])}
            if parameters.usage
            else found
        )

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """`ids`, and what is known of the text: `other` ids near it, with a `score` where there is
        one, or its `label`.
        """
        ids = {"ids": self.decode(item.data, context)["ids"].astype(np.int32)}
        others = _others(item)
        if not others:
            return ids, {"label": np.array(context.labels.index(item.label))}
        target = {"other": self.decode(others[0], context)["ids"].astype(np.int32)}
        score = score_of(item)
        return ids, target if score is None else {
            **target,
            "score": np.array(score, np.float32),
        }

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
    if (
        isinstance(item.target, tuple)
        and len(item.target) == 2
        and isinstance(item.target[1], float)
    ):
        return item.target[1]
    return None


def _ids(data: Raw, context: Context, *, whole: bool) -> list[int]:
    """The tokens of a text, or of so much of its beginning as the model reads at most."""
    text = text_tokenizer.text_of(data)
    if not whole:
        text = text[: context.preprocessing.max_length * text_tokenizer.LETTERS]
    return load_tokenizer(context.folder / TOKENIZER).encode(text)


TASK = FeatureExtraction()
