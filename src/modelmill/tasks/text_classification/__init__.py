"""text-classification: a text in, labels with scores out; sentiment is the usual case."""

from collections.abc import Sequence
from pathlib import Path

from modelmill.tasks.base import Arrays, Context, Item, Raw
from modelmill.tasks.decoding import text_tokenizer
from modelmill.tasks.decoding.text_tokenizer import Preprocessing, fingerprint, look
from modelmill.tasks.evaluation.classification import (
    complete,
    encode,
    evaluate,
    outputs,
    target,
    truth,
)
from modelmill.types import TensorSpec

__all__ = [
    "CLASSES",
    "INPUT",
    "METRIC",
    "RECIPE",
    "SAMPLES",
    "SUMMARY",
    "TARGETS",
    "Preprocessing",
    "as_sent",
    "complete",
    "decode",
    "encode",
    "evaluate",
    "example",
    "fingerprint",
    "inputs",
    "look",
    "outputs",
    "prepare",
    "sample",
    "truth",
]

SUMMARY = "say of what kind a text is, such as its sentiment"
INPUT = "text"
TARGETS = ("label",)
CLASSES = 2
METRIC = "accuracy"
RECIPE = "tfidf"
SAMPLES = 200_000


def prepare(
    samples: Sequence[Raw], preprocessing: Preprocessing, folder: Path
) -> Preprocessing:
    """The tokenizer and the length, learnt from the training texts."""
    return text_tokenizer.prepare(samples, preprocessing, folder)


def inputs(context: Context) -> list[TensorSpec]:
    """`ids`: int64 [-1, max_length]."""
    return [text_tokenizer.tensor(context.preprocessing)]


def decode(data: Raw, context: Context) -> Arrays:
    """`ids`: int64 [max_length]; raises `InvalidInput`."""
    return {"ids": text_tokenizer.decode(data, context.preprocessing, context.folder)}


def sample(item: Item, context: Context) -> tuple[Arrays, Arrays]:
    """The arrays of `decode`, and `label`."""
    return decode(item.data, context), target(item, context)


def as_sent(data: Raw) -> str:
    """The text itself."""
    return text_tokenizer.text_of(data)


def example() -> str:
    """A sentence."""
    return "A quiet film that stays with you."
