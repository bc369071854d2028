"""image-feature-extraction: a picture in, a unit vector out that lies near those of pictures of the
same thing.
"""

from typing import Annotated

import msgspec
import numpy as np

from modelmill.tasks.base import Arrays, Context, Evaluation, Item, Items, Model
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.evaluation import retrieval
from modelmill.tasks.inputs import ImageTask
from modelmill.tasks.parameters import NoParameters
from modelmill.types import TensorSpec

DIGITS = 6


class Preprocessing(image_decoder.Preprocessing, frozen=True, kw_only=True):
    """How a picture becomes pixels, and how long the vector is that it becomes."""

    dimensions: Annotated[
        int, msgspec.Meta(ge=2, le=4096, description="numbers in the vector")
    ] = 128


class ImageFeatureExtraction(ImageTask):
    """A unit vector for a picture."""

    SUMMARY = (
        "turn a picture into a vector, for search and recognition by similarity"
    )
    GIVES = "vector"
    TARGETS = ("label",)
    CLASSES = 2
    SPLIT = "classes"
    METRIC = "recall_at_1"
    RECIPE = "embed"
    SAMPLES = 1000
    PREPROCESSING = Preprocessing

    def outputs(self, context: Context) -> list[TensorSpec]:
        """`embedding`: FP32 [-1, dimensions], each row of length 1."""
        return [
            TensorSpec(
                name="embedding",
                datatype="FP32",
                shape=[-1, context.preprocessing.dimensions],
            )
        ]

    def encode(
        self, arrays: Arrays, context: Context, parameters: NoParameters
    ) -> list[float]:
        """The vector as a list of numbers."""
        return [
            round(value, DIGITS)
            for value in arrays["embedding"].astype(np.float64).tolist()
        ]

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """The arrays of `decode`, and `label`: its number."""
        return self.decode(item.data, context), {
            "label": np.array(context.labels.index(item.label))
        }

    def expected(self, item: Item) -> str:
        """The label: pictures of one label should be near each other."""
        return item.label

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """What each picture finds among the others."""
        return retrieval.evaluate(self.measured(model, items))


TASK = ImageFeatureExtraction()
