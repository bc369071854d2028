"""text-classification: a text in, labels with scores out; sentiment is the usual case."""

from collections.abc import Sequence

from modelmill.tasks.base import Raw
from modelmill.tasks.decoding import text_tokenizer
from modelmill.tasks.evaluation.classification import Classifier
from modelmill.tasks.inputs import TextTask


class TextClassification(Classifier, TextTask):
    """Labels with scores for a text."""

    SUMMARY = "say of what kind a text is, such as its sentiment"
    RECIPE = "tfidf"
    SAMPLES = 200_000

    def describe_inputs(self, samples: Sequence[Raw]) -> text_tokenizer.Look:
        """How long the texts are, and whether they have spaces."""
        return text_tokenizer.look(samples)


TASK = TextClassification()
