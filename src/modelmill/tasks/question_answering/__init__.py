"""question-answering: a question and a passage in, the part of the passage that answers it out."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
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
    Measured,
    Model,
    Raw,
    Task,
)
from modelmill.tasks.decoding import text_tokenizer
from modelmill.tasks.decoding.padding import padded
from modelmill.tasks.decoding.tokenizer import TOKENIZER, load_tokenizer
from modelmill.tasks.parameters import Ignored
from modelmill.tasks.question_answering.features import (
    COUNT,
    endings,
    features,
    partners,
    window_baseline,
)
from modelmill.tasks.question_answering.measures import exact, f1
from modelmill.types import Json, Struct, TensorSpec, Usage

WANTED = 'a question is JSON of the form {"question": ..., "context": ...}'
STEP = 64
"""Passages are filled up to a multiple of it, so that those of about one length make a batch."""
MOST_TOKENS, QUESTION_TOKENS = 16_384, 64
ANSWERS = 3
"""Of a question, that training looks at: SQuAD's people do not agree on where an answer begins and
ends.
"""


class Preprocessing(text_tokenizer.Preprocessing, frozen=True, kw_only=True):
    """How question and passage become tokens, and how much of a passage training looks at."""

    vocabulary: Annotated[
        int, Meta(ge=10, le=1_000_000, description="most token ids")
    ] = 20_000
    minimum_count: Annotated[
        int, Meta(ge=1, description="times a token occurs to be kept")
    ] = 3
    length_limit: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            description="most tokens when the length is taken from the data",
        ),
    ] = 512


class TokenizedQuestion(NamedTuple):
    """A question and its passage, with their tokens and where they stand."""

    question: str
    context: str
    words: list[str]
    ids: np.ndarray[Any, Any]
    offsets: list[tuple[int, int]]
    question_words: list[str]
    question_ids: np.ndarray[Any, Any]


class Parameters(Struct, frozen=True, kw_only=True):
    """Which answers are given. The ignored ones cut passages for other models; these read them
    whole.
    """

    top_k: Annotated[
        int,
        Meta(
            ge=1, le=20, description="answers; a list where there are several"
        ),
    ] = 1
    max_answer_len: Annotated[
        int, Meta(ge=1, le=1000, description="most tokens of an answer")
    ] = 15
    handle_impossible_answer: Annotated[
        bool, Meta(description="whether there may be no answer")
    ] = False
    doc_stride: Ignored = None
    max_seq_len: Ignored = None
    max_question_len: Ignored = None
    align_to_words: Ignored = None


class QuestionAnswering(Task):
    """The part of a passage that answers a question."""

    SUMMARY = "find the answer to a question in a passage of text"
    INPUT = "question"
    TARGETS = ("answers",)
    CLASSES = 0
    METRIC = "f1"
    RECIPE = "reader"
    SAMPLES = 200_000
    PREPROCESSING = Preprocessing
    PARAMETERS = Parameters

    def fingerprint(self, data: Raw) -> str:
        """The sha256 of question and passage."""
        return _digest("\0".join(asked_of(data)))

    def describe_inputs(self, samples: Sequence[Raw]) -> text_tokenizer.Look:
        """How long the texts are, and whether they have spaces."""
        return text_tokenizer.look(samples)

    def group_key(self, data: Raw) -> str:
        """The sha256 of the passage: questions about it that train say what it holds to those that
        measure.
        """
        return _digest(asked_of(data)[1])

    def prepare(
        self, samples: Sequence[Raw], preprocessing: Preprocessing, folder: Path
    ) -> text_tokenizer.Preprocessing:
        """The tokenizer, learnt from questions and passages, and the length of passages."""
        questions, contexts = zip(*map(asked_of, samples), strict=True)
        passages = list(dict.fromkeys(contexts))
        found = text_tokenizer.prepare(
            [*questions, *passages], preprocessing, folder
        )
        if preprocessing.max_length:
            return found
        tokenizer = load_tokenizer(folder / TOKENIZER)
        lengths = [len(ids) for ids in tokenizer.encode_all(passages)]
        usual = int(np.percentile(lengths, 98))
        length = max(STEP, min(preprocessing.length_limit, usual))
        return msgspec.structs.replace(found, max_length=length)

    def inputs(self, context: Context) -> list[TensorSpec]:
        """Token ids of `question` and `passage` (0 after the end), and what is known of the words
        (`_features`).
        """
        return [
            # Of one length: two free lengths that recurrent layers run over are taken for the
            # same one by the exporter.
            TensorSpec(
                name="question", datatype="INT64", shape=[-1, QUESTION_TOKENS]
            ),
            TensorSpec(name="passage", datatype="INT64", shape=[-1, -1]),
            TensorSpec(name="features", datatype="FP32", shape=[-1, -1, COUNT]),
            TensorSpec(name="endings", datatype="INT64", shape=[-1, -1]),
            TensorSpec(name="partners", datatype="INT64", shape=[-1, -1]),
        ]

    def outputs(self, context: Context) -> list[TensorSpec]:
        """Log-probabilities of where the answer begins and ends; place 0 stands for no answer [-1,
        passage + 1].
        """
        return [
            TensorSpec(name=name, datatype="FP32", shape=[-1, -1])
            for name in ("start", "end")
        ]

    def decode(
        self, data: Raw, context: Context, parameters: Any = None
    ) -> Arrays:
        """`question`: int64 [64]; `passage`, `endings`, `partners`: int64 [C], `features`: float32
        [C, F], C = n * 64.

        Raises `InvalidInput`.
        """
        pair = _read(data, context)
        size = max(1, -(-len(pair.ids) // STEP)) * STEP
        known = _known(pair, context)
        places = np.array(pair.offsets, np.int64).reshape(-1, 2)
        return {
            "question": pair.question_ids,
            **{name: _filled(array, size) for name, array in known.items()},
            f"{NOTE}places": _filled(places, size),
            f"{NOTE}context": text_tokenizer.noted(pair.context),
        }

    def usage(self, inputs: Arrays, outputs: Arrays, context: Context) -> Usage:
        """`prompt_tokens` of questions and passages."""
        read = sum(
            np.count_nonzero(inputs[name]) for name in ("question", "passage")
        )
        return {"prompt_tokens": int(read)}

    def encode(
        self, arrays: Arrays, context: Context, parameters: Parameters
    ) -> Any:
        """The best answer, or with `top_k` a list of them: `answer`, `score`, and `start` and `end`
        in characters.

        With `handle_impossible_answer` the answer may be that there is none, "". Raises
        `InvalidInput`.
        """
        count = parameters.top_k
        start, end = (
            np.exp(arrays[name].astype(np.float64)) for name in ("start", "end")
        )
        found = _answers(arrays, start[1:], end[1:], parameters)
        if parameters.handle_impossible_answer or not found:
            found.append(_answer(float(start[0] * end[0]), "", 0, 0))
            found = sorted(found, key=lambda one: -one["score"])[:count]
        return found if count > 1 else found[0]

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """A part of the passage as long as `max_length` that holds an answer, and the `spans` of
        tokens from 1 [3, 2].

        The first three answers that people gave, again where there are fewer; of 0 where there is
        none.
        """
        assert isinstance(item.target, tuple)
        pair, size = _read(item.data, context), context.preprocessing.max_length
        touched = [_tokens_of(pair, one) for one in item.target] or [(-1, -1)]
        begin = _begin_of_part(touched[0], len(pair.ids), size)
        known = {
            name: _filled(array[begin : begin + size], size)
            for name, array in _known(pair, context).items()
        }
        arrays = {"question": pair.question_ids, **known}
        return (
            {name: _small(array) for name, array in arrays.items()},
            {"spans": _spans(touched, begin, size)},
        )

    def expected(self, item: Item) -> Any:
        """The answers that are right."""
        assert isinstance(item.target, tuple)
        return [text for text, _ in item.target]

    def full_parameters(self, labels: Sequence[str]) -> Parameters:
        """That there is no answer is one, too."""
        return Parameters(handle_impossible_answer=True)

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """Exact matches and the F1 of words, beside the baseline's."""
        return metrics(self.measured(model, items))

    def same_answer(self, one: Any, other: Any, tolerance: float) -> bool:
        """Whether two answers are the same, or as likely: rounding may turn a tie."""
        mine, theirs = (
            [found] if isinstance(found, dict) else found
            for found in (one, other)
        )
        return len(mine) == len(theirs) and all(
            abs(a["score"] - b["score"]) <= tolerance
            for a, b in zip(mine, theirs, strict=True)
        )

    def as_sent(self, data: Raw) -> str:
        """Question and passage as JSON."""
        question, context = asked_of(data)
        return json.dumps(
            {"question": question, "context": context}, ensure_ascii=False
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def asked_of(data: Raw) -> tuple[str, str]:
    """The question and the passage of a raw input; raises `InvalidInput`."""
    document = _document(data)
    question, context = (document.get(name) for name in ("question", "context"))
    if not isinstance(question, str) or not isinstance(context, str):
        raise InvalidInput(WANTED)
    return text_tokenizer.text_of(question), text_tokenizer.text_of(context)


def _document(data: Raw) -> Json:
    """The JSON object of a raw input."""
    if not isinstance(data, str):
        raise InvalidInput(WANTED)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(WANTED) from error
    if not isinstance(document, dict):
        raise InvalidInput(WANTED)
    return document


def _read(data: Raw, context: Context) -> TokenizedQuestion:
    question, text = asked_of(data)
    tokenizer = load_tokenizer(context.folder / TOKENIZER)
    encoded = tokenizer.encode_with_places(text)
    if len(encoded.ids) > MOST_TOKENS:
        raise InvalidInput(
            f"the passage has {len(encoded.ids):,} tokens; at most {MOST_TOKENS:,} are taken: "
            "send a part"
        )
    said = tokenizer.encode_with_places(question)
    return TokenizedQuestion(
        question,
        text,
        _cut(text, encoded.places),
        np.array(encoded.ids, np.int64),
        encoded.places,
        _cut(question, said.places[:QUESTION_TOKENS]),
        padded(said.ids, QUESTION_TOKENS, np.int64),
    )


def _cut(text: str, places: Sequence[tuple[int, int]]) -> list[str]:
    """The words of a text at these places."""
    return [text[start:end] for start, end in places]


def _known(pair: TokenizedQuestion, context: Context) -> Arrays:
    """What a network sees of each token of a passage."""
    places, alike = partners(pair.words, pair.question_words)
    tokens = context.preprocessing.tokens
    return {
        "passage": pair.ids,
        "features": features(
            pair.question_words, pair.words, alike, pair.ids, tokens
        ),
        "endings": endings(pair.words),
        "partners": places,
    }


def _begin_of_part(answer: tuple[int, int], length: int, size: int) -> int:
    """The first token of the part of a passage that is trained on: the answer lies in its
    middle.
    """
    first, last = answer
    return max(0, min(first - size // 2, length - size)) if last >= size else 0


def _spans(
    touched: Sequence[tuple[int, int]], begin: int, size: int
) -> np.ndarray[Any, Any]:
    """First and last tokens from 1 of the answers in a part of a passage, [3, 2]."""
    inside = [
        (first - begin + 1, last - begin + 1)
        for first, last in touched
        if first >= begin and last - begin < size
    ] or [(0, 0)]
    return np.array((inside * ANSWERS)[:ANSWERS], np.int64)


def _filled(array: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Padded with 0 at the end."""
    found = np.zeros((size, *array.shape[1:]), array.dtype)
    found[: len(array)] = array
    return found


def _answer(score: float, text: str, start: int, end: int) -> Json:
    return {
        "score": round(score, 6),
        "start": start,
        "end": end,
        "answer": text[start:end],
    }


def _answers(
    arrays: Arrays, start: Any, end: Any, parameters: Parameters
) -> list[Json]:
    """The best answers in a passage, by the probabilities of each token to begin and to end one."""
    places = arrays[f"{NOTE}places"]
    text = text_tokenizer.text_of_note(arrays[f"{NOTE}context"])
    size = int((places[:, 1] > 0).sum())
    best = _best(start, end, parameters.max_answer_len, parameters.top_k, size)
    return [
        _answer(score, text, int(places[first, 0]), int(places[last, 1]))
        for score, first, last in best
    ]


def _best(
    start: Any, end: Any, longest: int, count: int, size: int
) -> list[tuple[float, int, int]]:
    """The likeliest spans (score, first, last token) of at most `longest` tokens, of which none
    overlap.
    """
    every = [
        span
        for length in range(min(longest, size))
        for span in _best_of_length(start[:size], end[:size], length, count)
    ]
    found: list[tuple[float, int, int]] = []
    for score, first, last in sorted(every, reverse=True):
        if len(found) == count:
            break
        if all(last < a or first > b for _, a, b in found):
            found.append((score, first, last))
    return found


def _best_of_length(
    start: Any, end: Any, length: int, count: int
) -> list[tuple[float, int, int]]:
    """The likeliest spans of `length` tokens after the first, the best first."""
    scores = start[: len(start) - length] * end[length:]
    best = np.argsort(-scores, kind="stable")[:count].tolist()
    return [(float(scores[first]), first, first + length) for first in best]


def _small(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Token ids for the cache."""
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _tokens_of(
    pair: TokenizedQuestion, answer: tuple[str, int]
) -> tuple[int, int]:
    """The first and the last token that an answer touches; (-1, -1) where it touches none."""
    text, start = answer
    touched = [
        n
        for n, (a, b) in enumerate(pair.offsets)
        if a < start + len(text) and b > start
    ]
    return (touched[0], touched[-1]) if touched else (-1, -1)


def _baseline(data: Raw, context: Context) -> str:
    pair = _read(data, context)
    _, alike = partners(pair.words, pair.question_words)
    tokens = context.preprocessing.tokens
    first, last = window_baseline(
        pair.question_words, pair.words, alike, pair.ids, tokens
    )
    if last <= first:
        return ""
    return pair.context[pair.offsets[first][0] : pair.offsets[last - 1][1]]


def metrics(measured: Measured) -> Evaluation:
    """`em` and `f1` as SQuAD's script computes them, by character where there are no spaces,
    beside the baseline's.
    """
    truths = measured.truths
    said = [one["answer"] for one in measured.outputs]
    metrics: Json = {
        "em": _mean(exact, said, truths),
        "f1": _mean(f1, said, truths),
        "items": len(said),
    }
    if (context := measured.context) is not None:
        raws = measured.show(range(len(said)))
        metrics["f1_baseline"] = _mean(
            f1, [_baseline(raw, context) for raw in raws], truths
        )
    return Evaluation(metrics=metrics, pictures={})


def _mean(
    measure: Callable[[str, Sequence[str]], float],
    answers: Sequence[str],
    truths: Sequence[Sequence[str]],
) -> float:
    """The mean of a measure over all answers; 0 without any."""
    pairs = zip(answers, truths, strict=True)
    return sum(measure(*pair) for pair in pairs) / max(1, len(answers))


TASK = QuestionAnswering()
