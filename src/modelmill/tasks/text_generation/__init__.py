"""text-generation: the beginning of a text in, its continuation out, token by token."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from modelmill.generation.sampling import log_shares
from modelmill.streams import Piece, Text
from modelmill.tasks.base import (
    SAMPLES,
    Arrays,
    Context,
    Evaluation,
    Item,
    Items,
    Model,
    Raw,
    StreamingTask,
)
from modelmill.tasks.decoding import lossless_tokenizer
from modelmill.tasks.decoding.tokenizer import without_surrogates
from modelmill.tasks.text_generation.answers import (
    details_of,
    ended_by,
    likelihood,
    usage_of,
    written,
)
from modelmill.tasks.text_generation.measures import metrics
from modelmill.tasks.text_generation.parameters import Parameters
from modelmill.tasks.text_generation.prompts import (
    as_text,
    fitting,
    prompt_of,
    text_of,
    tokenizer_of,
    tokens_of,
)
from modelmill.types import Json, StreamPart, TensorSpec, Usage

SAME = 4
"""Letters by which two answers of one model are known."""
SHOWN = 4
"""Samples of what a model writes."""


class Preprocessing(lossless_tokenizer.Units, frozen=True, kw_only=True):
    """How a text becomes tokens, and how many of them the model looks back on."""

    context: Annotated[
        int,
        Meta(ge=16, le=8192, description="tokens that a text may have in all"),
    ] = 512
    passage: Annotated[
        int,
        Meta(
            ge=32,
            le=65_536,
            description="tokens of a passage that training keeps",
        ),
    ] = 2048


class TextGeneration(StreamingTask):
    """The continuation of a text, token by token."""

    SUMMARY = "write a text on, in the manner of those it was trained on"
    INPUT = "text"
    ALSO_TAKES = ("conversation", "token_ids")
    GIVES = "tokens"
    TARGETS = ("none",)
    CLASSES = 0
    METRIC = "nats_per_char"
    RECIPE = "gpt"
    SAMPLES = 200_000
    PREPROCESSING = Preprocessing
    PARAMETERS = Parameters

    def fingerprint(self, data: Raw) -> str:
        """The sha256 of the text; raises `InvalidInput`."""
        return hashlib.sha256(
            text_of(data).encode("utf-8", "surrogatepass")
        ).hexdigest()

    def prepare(
        self, samples: Sequence[Raw], preprocessing: Preprocessing, folder: Path
    ) -> Preprocessing:
        """The tokenizer, learnt from the training texts."""
        texts = (without_surrogates(text_of(sample)) for sample in samples)
        tokenizer = lossless_tokenizer.learnt(texts, preprocessing, folder)
        return msgspec.structs.replace(preprocessing, tokens=tokenizer.size)

    def inputs(self, context: Context) -> list[TensorSpec]:
        """`ids`: int64 [-1, any length]."""
        return [TensorSpec(name="ids", datatype="INT64", shape=[-1, -1])]

    def outputs(self, context: Context) -> list[TensorSpec]:
        """`logits` of the token after each token [-1, length, tokens]."""
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
        """`ids`: int64 [length]; raises `InvalidInput` for what is longer than the model looks
        back.
        """
        ids = fitting(tokens_of(text_of(data), context), context)
        return {"ids": np.array(ids, np.int64)}

    def begin(
        self, name: Any, data: Raw, context: Context, parameters: Parameters
    ) -> Text:
        """A text that is to grow, as its caller wants it: one that goes on from a text or from
        token ids, or the next message of a conversation. Raises `InvalidInput`.
        """
        data, how = as_text(data, parameters.sampling(), context)
        ids = prompt_of(data, context, parameters.truncate)
        tokenizer = tokenizer_of(context)
        said = data if isinstance(data, str) else ""
        return Text(
            name, ids, how, tokenizer.ends, tokenizer.stream(), said=said
        )

    def stream_part(
        self, piece: Piece, at: int, context: Context
    ) -> StreamPart:
        """What a step has added to an answer after `at` characters, for those who stream it."""
        return StreamPart(
            piece.tokens,
            piece.token,
            piece.text,
            at,
            piece.prompt_tokens,
            special=piece.token in tokenizer_of(context).special,
            logprob=None
            if piece.logprob is None
            else likelihood(piece, context),
            finish_reason=piece.ended,
            ended_by=ended_by(piece, context) if piece.ended else "",
        )

    def stream_answer(
        self,
        text: Text,
        pieces: Sequence[Piece],
        parameters: Parameters,
        context: Context,
    ) -> Json:
        """The whole answer, in the shape of the Hugging Face API, with what OpenAI's wants to know
        beside it.
        """
        found: Json = {
            "generated_text": "".join(piece.text for piece in pieces),
            "finish_reason": pieces[-1].ended,
            "usage": usage_of(pieces[-1]),
        }
        if text.how.logprobs >= 0:
            found["logprobs"] = [likelihood(piece, context) for piece in pieces]
        if parameters.return_full_text:
            found["generated_text"] = (
                _said(text, context) + found["generated_text"]
            )
        if parameters.details:
            found["details"] = details_of(pieces, text.how.seed, context)
        return found

    def same_answer(self, one: Json, other: Json, tolerance: float) -> bool:
        """Whether two answers begin with the same letters: further on rounding may turn a tie, and
        all after it.
        """
        mine, theirs = one["generated_text"], other["generated_text"]
        place = _first_difference(mine, theirs)
        return bool(mine == theirs or (place is not None and place >= SAME))

    def usage(self, inputs: Arrays, outputs: Arrays, context: Context) -> Usage:
        """`prompt_tokens`, where only the next token is asked for."""
        return {"prompt_tokens": inputs["ids"].size}

    def encode(
        self, arrays: Arrays, context: Context, parameters: Parameters
    ) -> list[Json]:
        """The likeliest next tokens with their probabilities."""
        shares = np.exp(log_shares(arrays["logits"][-1].astype(np.float64)))
        best = np.argsort(-shares, kind="stable")[:5]
        return [
            {
                "token": written(int(one), context),
                "score": round(float(shares[one]), 6),
            }
            for one in best
        ]

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """`ids`: a passage that ends in [END], then 0 [passage]."""
        tokenizer, size = tokenizer_of(context), context.preprocessing.passage
        ids = tokenizer.encode(text_of(item.data))
        if not item.name.endswith("+"):
            ids = [*ids, tokenizer.end]
        kept = np.full(size, tokenizer.pad, np.int32)
        kept[: len(ids)] = ids[:size]
        return {"ids": kept}, {}

    def expected(self, item: Item) -> Raw:
        """The text."""
        return item.data

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """How surprised the model is by each character of the texts, and some that it writes."""
        texts = list(items)
        found = metrics(model.runs[""], texts, model.context)
        found.metrics[SAMPLES] = self.samples(model, texts)
        return found

    def samples(self, model: Model, items: Sequence[Item]) -> list[Json]:
        """How the model goes on from the beginnings of some texts that it was not trained on; the
        same each time.
        """
        step = max(1, len(items) // SHOWN)
        texts = [self.as_sent(item.data) for item in items[::step][:SHOWN]]
        how = {"max_new_tokens": 60, "temperature": 0.8, "seed": 0}
        answers = model.predict(texts, how)
        return [
            {"beginning": text, "goes on": one["generated_text"]}
            for text, one in zip(texts, answers, strict=True)
        ]

    def as_sent(self, data: Raw) -> str:
        """The first letters of a passage: they fit in any context."""
        return text_of(data)[:12]

    def example(self) -> str:
        """The beginning of a text."""
        return "A quiet film that"


def _said(text: Text, context: Context) -> str:
    """What the answer goes on from, as its caller wrote it, or as its tokens are written."""
    return text.said or tokenizer_of(context).decode(text.prompt, special=True)


def _first_difference(one: str, other: str) -> int | None:
    """The place of the first letter that differs; None where one text begins the other."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), None)


TASK = TextGeneration()
