"""text-generation: the beginning of a text in, its continuation out, token by token."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from modelmill import seeds
from modelmill.errors import InvalidInput
from modelmill.generation.sampling import log_shares, sampling
from modelmill.streams import LENGTH, MOST_LOGPROBS, Piece, Sampling, Text
from modelmill.tasks.base import (
    SAMPLES,
    Arrays,
    Context,
    Evaluation,
    Item,
    Items,
    Model,
    Raw,
    Run,
    StreamingTask,
)
from modelmill.tasks.decoding import lossless_tokenizer
from modelmill.tasks.decoding.text_tokenizer import LETTERS, checked_ids
from modelmill.tasks.decoding.tokenizer import (
    TOKENIZER,
    Tokenizer,
    load_tokenizer,
    without_surrogates,
)
from modelmill.tasks.kinds.conversation import Conversation
from modelmill.tasks.kinds.token_ids import TokenIds
from modelmill.tasks.parameters import Ignored
from modelmill.tasks.text_generation.chat_template import ENDS, rendered, stops
from modelmill.types import Json, StreamPart, Struct, TensorSpec, Usage

SAME = 4
"""Letters by which two answers of one model are known."""
SHOWN = 4
"""Samples of what a model writes."""
USUAL = Sampling(max_tokens=100, temperature=0.0)
NEUTRAL: Json = {
    "best_of": 1,
    "decoder_input_details": False,
    "frequency_penalty": 0,
    "top_n_tokens": 0,
    "typical_p": 1,
    "watermark": False,
}
"""What is not offered may be said where it changes nothing."""


class Preprocessing(lossless_tokenizer.Units, frozen=True, kw_only=True):
    """How a text becomes tokens, and how many of them the model looks back on."""

    context: Annotated[
        int,
        msgspec.Meta(ge=16, le=8192, description="tokens that a text may have in all"),
    ] = 512
    passage: Annotated[
        int,
        msgspec.Meta(
            ge=32, le=65_536, description="tokens of a passage that training keeps"
        ),
    ] = 2048


MostTokens = Annotated[int, Meta(ge=1, le=100_000)] | None
Stops = tuple[str, ...] | str | None


class Parameters(Struct, frozen=True, kw_only=True):
    """How a text goes on, under the names of Hugging Face and of OpenAI."""

    max_new_tokens: Annotated[
        MostTokens, Meta(description="most tokens of the answer; else 100")
    ] = None
    max_tokens: Annotated[MostTokens, Meta(description="the same")] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None,
        Meta(
            description="0, as a rule: always the likeliest token; 1: as the model says"
        ),
    ] = None
    do_sample: Annotated[
        bool, Meta(description="a temperature of 1 where none is given")
    ] = False
    top_k: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="choose among so many likeliest tokens; 0: all"),
    ] = None
    top_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(description="choose among the likeliest tokens of this share together"),
    ] = None
    repetition_penalty: Annotated[
        Annotated[float, Meta(gt=0, le=10)] | None,
        Meta(description="above 1: tokens that were there before are less likely"),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=seeds.MOST)] | None,
        Meta(description="the same seed, the same answer"),
    ] = None
    stop: Annotated[
        Stops,
        Meta(
            description="texts that end the answer",
            extra={"wanted": "a text or a list of texts"},
        ),
    ] = None
    stop_sequences: Annotated[
        Stops,
        Meta(description="the same", extra={"wanted": "a text or a list of texts"}),
    ] = None
    logprobs: Annotated[
        Annotated[int, Meta(ge=-1, le=MOST_LOGPROBS)] | None,
        Meta(description="likeliest tokens to tell at each place; -1: none"),
    ] = None
    return_full_text: Annotated[
        bool, Meta(description="the text that was sent before the answer")
    ] = False
    details: Annotated[bool, Meta(description="also each token of the answer")] = False
    truncate: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="keep so many tokens at the end of the text"),
    ] = None
    stream: Ignored = None
    best_of: Ignored = None
    decoder_input_details: Ignored = None
    frequency_penalty: Ignored = None
    top_n_tokens: Ignored = None
    typical_p: Ignored = None
    watermark: Ignored = None

    def __post_init__(self) -> None:
        given = msgspec.structs.asdict(self)
        for name, neutral in NEUTRAL.items():
            if given[name] not in (None, neutral):
                raise ValueError(f"{name} is not offered: leave it out")

    def sampling(self) -> Sampling:
        """How tokens are chosen; raises `InvalidInput` for stops that are too many or too long."""
        temperature = self.temperature
        if temperature is None and self.do_sample:
            temperature = 1.0
        logprobs = self.logprobs
        if logprobs is None and self.details:
            logprobs = 0
        given = {
            "max_tokens": self.max_new_tokens or self.max_tokens,
            "temperature": temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
            "stop": self.stop if self.stop is not None else self.stop_sequences,
            "logprobs": logprobs,
        }
        return sampling(given, USUAL)


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
            _text_of(data).encode("utf-8", "surrogatepass")
        ).hexdigest()

    def prepare(
        self, samples: Sequence[Raw], preprocessing: Preprocessing, folder: Path
    ) -> Preprocessing:
        """The tokenizer, learnt from the training texts."""
        texts = (without_surrogates(_text_of(sample)) for sample in samples)
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

    def decode(self, data: Raw, context: Context, parameters: Any = None) -> Arrays:
        """`ids`: int64 [length]; raises `InvalidInput` for what is longer than the model looks
        back.
        """
        return {
            "ids": np.array(
                _fitting(_tokens(_text_of(data), context), context), np.int64
            )
        }

    def begin(
        self, name: Any, data: Raw, context: Context, parameters: Parameters
    ) -> Text:
        """A text that is to grow, as its caller wants it: one that goes on from a text or from
        token ids, or the next message of a conversation. Raises `InvalidInput`.
        """
        how = parameters.sampling()
        if isinstance(data, Conversation):
            data = rendered(data, context.folder)
            how = msgspec.structs.replace(how, stop=(*how.stop, *stops(context.folder)))
        ids = _fitting(_prompt(data, context, parameters.truncate), context)
        tokenizer = _tokenizer(context)
        said = data if isinstance(data, str) else ""
        return Text(name, ids, how, tokenizer.ends, tokenizer.stream(), said=said)

    def stream_part(self, piece: Piece, at: int, context: Context) -> StreamPart:
        """What a step has added to an answer after `at` characters, for those who stream it."""
        return StreamPart(
            piece.tokens,
            piece.token,
            piece.text,
            at,
            piece.prompt_tokens,
            special=piece.token in _tokenizer(context).special,
            logprob=None if piece.logprob is None else _told(piece, context),
            finish_reason=piece.ended,
            ended_by=_ended_by(piece, context) if piece.ended else "",
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
        last, answer = pieces[-1], "".join(piece.text for piece in pieces)
        found: Json = {
            "generated_text": answer,
            "finish_reason": last.ended,
            "usage": _usage(last),
        }
        if text.how.logprobs >= 0:
            found["logprobs"] = [_told(piece, context) for piece in pieces]
        if parameters.return_full_text:
            written = _tokenizer(context).decode(text.prompt, special=True)
            prompt = text.said or written
            found["generated_text"] = prompt + answer
        if parameters.details:
            found["details"] = {
                "finish_reason": _ended_by(last, context),
                "generated_tokens": last.tokens,
                "seed": text.how.seed,
                "prefill": [],
                "tokens": [
                    {
                        "id": one.token,
                        "text": _token(one.token, context),
                        "logprob": one.logprob,
                        "special": one.token in _tokenizer(context).special,
                    }
                    for one in pieces
                ],
            }
        return found

    def same_answer(self, one: Json, other: Json, tolerance: float) -> bool:
        """Whether two answers begin with the same letters: further on rounding may turn a tie, and
        all after it.
        """
        mine, theirs = one["generated_text"], other["generated_text"]
        same = next(
            (
                place
                for place, (a, b) in enumerate(zip(mine, theirs, strict=False))
                if a != b
            ),
            None,
        )
        return mine == theirs or (same is not None and same >= SAME)

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
            {"token": _token(int(one), context), "score": round(float(shares[one]), 6)}
            for one in best
        ]

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """`ids`: a passage that ends in [END], then 0 [passage]."""
        how = context.preprocessing
        tokenizer = _tokenizer(context)
        ids = tokenizer.encode(_text_of(item.data))
        kept = np.full(how.passage, tokenizer.pad, np.int32)
        whole = (
            [*ids, tokenizer.end][: how.passage]
            if not item.name.endswith("+")
            else ids[: how.passage]
        )
        kept[: len(whole)] = whole
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
        return _text_of(data)[:12]

    def example(self) -> str:
        """The beginning of a text."""
        return "A quiet film that"


def _text_of(data: Raw) -> str:
    if not isinstance(data, str) or not data.strip():
        raise InvalidInput(
            "a text is wanted, not an empty one"
            if isinstance(data, str)
            else "a text is wanted"
        )
    return data


def _tokens(text: str, context: Context) -> list[int]:
    """The tokens of a text; raises `InvalidInput` for one that is longer than any prompt."""
    size = context.preprocessing.context
    if (
        len(text) > size * LETTERS
    ):  # the tokens of a book are not counted: all other texts would wait for it
        raise InvalidInput(
            f"the text has {len(text):,} characters, and the model a context of {size:,} tokens: "
            "send less "
            "(the parameter truncate=N keeps the last N)"
        )
    if ENDS not in text:
        return _tokenizer(context).encode(text)
    return _tokenizer(context).encode(text, {ENDS: _tokenizer(context).end})


def _fitting(ids: list[int], context: Context) -> list[int]:
    """The same tokens, which leave room for one more; raises `InvalidInput`."""
    most = context.preprocessing.context - 1
    if len(ids) > most:
        raise InvalidInput(
            f"the prompt has {len(ids):,} tokens, and the model a context of "
            f"{context.preprocessing.context:,}: "
            f"send at most {most:,} (the parameter truncate=N keeps the last N)"
        )
    return ids


def _prompt(data: Raw, context: Context, truncate: int | None) -> list[int]:
    """The tokens of a text, or those that were given, or the last of them; raises
    `InvalidInput`.
    """
    last = min(truncate, context.preprocessing.context - 1) if truncate else 0
    if isinstance(data, TokenIds):
        ids = checked_ids(data, context.preprocessing.tokens)
    else:
        text = _text_of(data)
        ids = _tokens(text[-last * LETTERS :] if last else text, context)
    return ids[-last:] if last else ids


def _told(piece: Piece, context: Context) -> Json:
    """A token with the logarithm of its probability, and those of the likeliest ones."""
    near = [{**_named(token, context), "logprob": value} for token, value in piece.near]
    return {
        **_named(piece.token, context),
        "logprob": piece.logprob,
        "offset": piece.place,
        "top": near,
    }


def _named(token: int, context: Context) -> Json:
    """A token as a text and as its bytes: of several that make up one letter, none is a text."""
    data = _tokenizer(context).bytes_of(token)
    return {
        "token": _token(token, context),
        "bytes": None if data is None else list(data),
    }


def _ended_by(piece: Piece, context: Context) -> str:
    """Why an answer has ended, in Hugging Face's words."""
    return (
        "length"
        if piece.ended == LENGTH
        else "eos_token"
        if piece.token in _tokenizer(context).ends
        else "stop_sequence"
    )


def _usage(piece: Piece) -> Json:
    both = piece.prompt_tokens + piece.tokens
    return {
        "prompt_tokens": piece.prompt_tokens,
        "completion_tokens": piece.tokens,
        "total_tokens": both,
    }


def _token(token: int, context: Context) -> str:
    return _tokenizer(context).decode([token], special=True)


def _tokenizer(context: Context) -> Tokenizer:
    return load_tokenizer(context.folder / TOKENIZER)


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
    """At all tokens of a text but the first, in nats."""
    total = 0.0
    start = 0
    step = max(1, size // 2)
    while start < len(ids) - 1:
        part = ids[start : start + size + 1]
        scores = log_shares(
            score({"ids": part[None, :-1]})["logits"][0].astype(np.float64)
        )
        own = scores[np.arange(len(part) - 1), part[1:]]
        fresh = own if start == 0 else own[size - step :]
        total -= float(fresh.sum())
        if start + size + 1 >= len(ids):
            break
        start += step
    return total


def metrics(run: Run, items: Sequence[Item], context: Context) -> Evaluation:
    """How surprised the model is by each character of texts, on average: nats, bits, and the
    perplexity of tokens.

    Each token is judged by at least half of the model's context before it, where there is so
    much.
    """
    tokenizer = _tokenizer(context)
    total = 0.0
    tokens = 0
    letters = 0
    for text, ended in _texts(items):
        encoded = tokenizer.encode_with_places(text)
        ids = np.array([*encoded.ids, *([tokenizer.end] if ended else [])], np.int64)
        total += _surprise(run, ids, context.preprocessing.context - 1)
        tokens += max(0, len(ids) - 1)
        letters += len(text) - (
            encoded.places[0][1] if encoded.places else 0
        )  # nothing says how a text begins
    nats = total / max(1, letters)
    metrics = {
        "nats_per_char": nats,
        "bits_per_char": nats / float(np.log(2)),
        "perplexity": float(np.exp(min(total / max(1, tokens), 50))),
        "items": len(items),
    }
    return Evaluation(metrics=metrics, pictures={})


TASK = TextGeneration()
