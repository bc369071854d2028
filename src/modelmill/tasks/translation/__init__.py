"""translation: a sentence in one language in, the same in another one out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from modelmill.errors import InvalidInput
from modelmill.tasks.base import (
    Arrays,
    Context,
    Evaluation,
    Item,
    Items,
    Model,
    Raw,
    Run,
)
from modelmill.tasks.decoding import lossless_tokenizer, text_tokenizer
from modelmill.tasks.decoding.padding import padded
from modelmill.tasks.decoding.tokenizer import (
    TOKENIZER,
    Tokenizer,
    load_tokenizer,
    without_surrogates,
)
from modelmill.tasks.inputs import TextTask
from modelmill.tasks.parameters import Ignored
from modelmill.tasks.translation.beam_search import Array, Hypothesis, search
from modelmill.types import Json, Struct, TensorSpec, Usage

MOST_BEAMS = 16
MOST_TOKENS = 512
LEAST_LENGTH = 32


class Preprocessing(lossless_tokenizer.Units, frozen=True, kw_only=True):
    """How both languages become tokens; the tokenizer is one for both."""

    units: Annotated[
        Literal["char", "bpe"],
        Meta(description="characters, or pieces of words (byte pairs)"),
    ] = "bpe"
    vocabulary: Annotated[
        int, Meta(ge=300, le=200_000, description="most tokens of byte pairs")
    ] = 6000
    max_length: Annotated[
        int,
        Meta(
            ge=0, le=4096, description="tokens of a sentence; 0: from the data"
        ),
    ] = 0
    length_limit: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            description="most tokens when the length is taken from the data",
        ),
    ] = 128
    beams: Annotated[
        int,
        Meta(
            ge=1,
            le=MOST_BEAMS,
            description="texts that are followed at a time, as a rule",
        ),
    ] = 4


Length = Annotated[int, Meta(ge=1, le=MOST_TOKENS)] | None


class Parameters(Struct, frozen=True, kw_only=True):
    """How far is searched for a translation, and what is answered."""

    num_beams: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_BEAMS)] | None,
        Meta(
            description="texts that are followed at a time; else the model's own number"
        ),
    ] = None
    max_new_tokens: Annotated[
        Length, Meta(description="most tokens of the translation")
    ] = None
    max_length: Annotated[Length, Meta(description="the same")] = None
    attention: Annotated[
        bool, Meta(description="also the tokens, and where each of them looked")
    ] = False
    src_lang: Ignored = None
    tgt_lang: Ignored = None
    clean_up_tokenization_spaces: Ignored = None
    truncation: Ignored = None


USUAL = Parameters()


class Translation(TextTask):
    """A sentence in another language."""

    SUMMARY = (
        "say a sentence in another language, learnt from pairs of sentences"
    )
    GIVES = "text"
    TARGETS = ("texts",)
    CLASSES = 0
    METRIC = "bleu"
    RECIPE = "transformer"
    SAMPLES = 200_000
    GRAPHS = ("step",)
    PREPROCESSING = Preprocessing
    PARAMETERS = Parameters

    def prepare(
        self, samples: Sequence[Any], preprocessing: Preprocessing, folder: Path
    ) -> Preprocessing:
        """The tokenizer of both languages, and the length of the longest sentence."""
        both = [
            _clean(text)
            for sample in samples
            for text in (sample if isinstance(sample, tuple) else (sample,))
        ]
        tokenizer = lossless_tokenizer.learnt(both, preprocessing, folder)
        length = preprocessing.max_length
        if not length:
            longest = max(len(ids) for ids in tokenizer.encode_all(both))
            length = max(
                LEAST_LENGTH, min(preprocessing.length_limit, longest + 1)
            )
        return msgspec.structs.replace(
            preprocessing, max_length=length, tokens=tokenizer.size
        )

    def prepare_sample(self, item: Item) -> Any:
        """Both texts: the tokenizer learns from them."""
        assert isinstance(item.target, tuple)
        return (item.data, *item.target)

    def measured_by(self, item: Item, context: Context) -> str:
        """The beginning of a text that is longer than the model takes: it is measured by that."""
        return text_tokenizer.beginning(
            item.data, context.folder, context.preprocessing.max_length
        )

    def inputs(self, context: Context) -> list[TensorSpec]:
        """`ids` of the sentence, 0 after its end, and for the `search` the beams and the most
        tokens (0: as usual).
        """
        return [
            TensorSpec(
                name="ids",
                datatype="INT64",
                shape=[-1, context.preprocessing.max_length],
            ),
            TensorSpec(name="search", datatype="INT64", shape=[-1, 2]),
        ]

    def outputs(self, context: Context) -> list[TensorSpec]:
        """`tokens` of the translation, 0 after its end, its `score`, and where each token looked
        in the sentence.
        """
        most, source = _longest(context), context.preprocessing.max_length
        return [
            TensorSpec(name="tokens", datatype="INT64", shape=[-1, most]),
            TensorSpec(name="score", datatype="FP32", shape=[-1]),
            TensorSpec(
                name="attention", datatype="FP32", shape=[-1, most, source]
            ),
        ]

    def decode(
        self, data: Raw, context: Context, parameters: Parameters = USUAL
    ) -> Arrays:
        """`ids`: int64 [max_length], and `search`: int64 [2]; raises `InvalidInput`."""
        length = context.preprocessing.max_length
        ids = _ids(data, context)
        if len(ids) > length:
            raise InvalidInput(
                f"the text has {len(ids):,} tokens; at most {length} are taken: send it "
                "sentence by sentence"
            )
        beams = parameters.num_beams or 0
        most = parameters.max_new_tokens or parameters.max_length or 0
        return {
            "ids": padded(ids, length, np.int64),
            "search": np.array([beams, most], np.int64),
        }

    def infer(
        self, runs: Mapping[str, Run], arrays: Arrays, context: Context
    ) -> Arrays:
        """The search for each row, those of as many beams together."""
        ids = arrays["ids"]
        tokenizer = load_tokenizer(context.folder / TOKENIZER)
        beams, most = _search_settings(arrays["search"], context)
        found: dict[int, Hypothesis] = {}
        for count in np.unique(beams):
            rows = np.flatnonzero(beams == count)
            texts = _translated(
                runs, ids[rows], int(count), most[rows], tokenizer
            )
            found.update(zip(rows.tolist(), texts, strict=True))
        shape = (len(ids), _longest(context), ids.shape[1])
        return _as_arrays(
            [found[row] for row in range(len(ids))], shape, tokenizer.pad
        )

    def usage(self, inputs: Arrays, outputs: Arrays, context: Context) -> Usage:
        """`prompt_tokens` of the sentences, `completion_tokens` of their translations."""
        written = int(np.count_nonzero(outputs["tokens"]))
        return {
            **super().usage(inputs, outputs, context),
            "completion_tokens": written,
        }

    def encode(
        self, arrays: Arrays, context: Context, parameters: Parameters
    ) -> Json:
        """`translation_text` and its `score`, the mean logarithm of its tokens' probabilities;
        raises `InvalidInput`.

        With `attention` also its tokens, and where each of them looked.
        """
        tokenizer = load_tokenizer(context.folder / TOKENIZER)
        ids = [int(one) for one in arrays["tokens"] if one != tokenizer.pad]
        answer: Json = {
            "translation_text": tokenizer.decode(ids),
            "score": round(float(arrays["score"]), 4),
        }
        if parameters.attention:
            answer["target_tokens"] = [tokenizer.decode([one]) for one in ids]
            answer["attention"] = _rounded(arrays["attention"][: len(ids)])
        return answer

    def same_answer(self, one: Json, other: Json, tolerance: float) -> bool:
        """Whether two translations are the same, or as likely: rounding may turn a tie."""
        return bool(abs(one["score"] - other["score"]) <= 10 * tolerance)

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """`ids`, and `target`: the first translation with [END] at its end [max_length]; both are
        cut.
        """
        assert isinstance(item.target, tuple)
        length = context.preprocessing.max_length
        tokenizer = load_tokenizer(context.folder / TOKENIZER)
        source = _ids(item.data, context)
        target = [*_ids(item.target[0], context), tokenizer.end]
        return (
            {"ids": padded(source, length, np.int32, tokenizer.pad)},
            {"target": padded(target, length, np.int32, tokenizer.pad)},
        )

    def expected(self, item: Item) -> Any:
        """All translations that are right."""
        return item.target

    def full_parameters(self, labels: Sequence[str]) -> Parameters:
        """Nothing is left out."""
        return Parameters(attention=True)

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """BLEU and chrF with their signatures, some translations, and where they looked."""
        from modelmill.tasks.translation.measures import measures

        return measures(self.measured(model, items))

    def example(self) -> str:
        """A sentence."""
        return "A man is riding a horse."


def _clean(data: Raw) -> str:
    return without_surrogates(text_tokenizer.text_of(data))


def _longest(context: Context) -> int:
    """Tokens that a translation may have."""
    return min(MOST_TOKENS, 2 * int(context.preprocessing.max_length))


def _ids(data: Raw, context: Context) -> list[int]:
    return load_tokenizer(context.folder / TOKENIZER).encode(_clean(data))


def _search_settings(wanted: Array, context: Context) -> tuple[Array, Array]:
    """Beams and most tokens of each row [N], from the parameters [N, 2], 0 for the usual."""
    most = _longest(context)
    wanted = np.clip(wanted, 0, (MOST_BEAMS, most))
    settings = np.where(wanted > 0, wanted, (context.preprocessing.beams, most))
    return settings[:, 0], settings[:, 1]


def _translated(
    runs: Mapping[str, Run],
    ids: Array,
    beams: int,
    most: Array,
    tokenizer: Tokenizer,
) -> list[Hypothesis]:
    """The best translation of each sentence [N, L] of at most so many tokens [N]."""
    never = [
        one for one in (tokenizer.pad, tokenizer.unknown) if one is not None
    ]
    longest = max(1, int((ids != tokenizer.pad).sum(1).max()))
    first = runs[""]({"ids": ids[:, :longest]})
    return search(first, runs["step"], beams, most, tokenizer.end, never)


def _as_arrays(
    found: Sequence[Hypothesis], shape: tuple[int, int, int], pad: int
) -> Arrays:
    """The outputs for translations; `shape` is [N, most tokens, length of the sentences]."""
    tokens = np.full(shape[:2], pad, np.int64)
    attention = np.zeros(shape, np.float32)
    for row, one in enumerate(found):
        length = len(one.tokens)
        tokens[row, :length] = one.tokens
        attention[row, :length, : one.attention.shape[1]] = one.attention
    scores = np.array([one.score for one in found], np.float32)
    return {"tokens": tokens, "score": scores, "attention": attention}


def _rounded(attention: Array) -> list[list[float]]:
    return [[round(float(one), 4) for one in row] for row in attention]


TASK = Translation()
