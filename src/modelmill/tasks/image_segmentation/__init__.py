"""image-segmentation: a picture in, a mask for each class that it shows out (semantic
segmentation).
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from modelmill.data.augment import Augment
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
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.image_segmentation import (
    evaluation,
    mask_arrays,
    mask_similarity,
)
from modelmill.tasks.inputs import ImageTask
from modelmill.types import Struct, TensorSpec

SIZE = f"{NOTE}size"


class Preprocessing(image_decoder.Preprocessing, frozen=True, kw_only=True):
    """As for other pictures, but larger, and always stretched: every pixel that was sent gets an
    answer.
    """

    max_side: Annotated[
        int,
        msgspec.Meta(
            ge=8,
            le=4096,
            description="longest side when the size is taken from the data",
        ),
    ] = 256
    fit: Annotated[
        Literal["stretch"], msgspec.Meta(extra={"derived": True})
    ] = "stretch"


class Changes(Augment, frozen=True, kw_only=True):
    """How far training pictures and their masks are changed, together; blended masks would name
    nothing.
    """

    mixup: Annotated[float, msgspec.Meta(extra={"derived": True})] = 0.0


class Parameters(Struct, frozen=True, kw_only=True):
    """Which masks are answered, and in which form."""

    mask_format: Annotated[
        Literal["png", "classes"],
        msgspec.Meta(
            description="a mask for each class, or one with all classes"
        ),
    ] = "png"
    threshold: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=1, description="least score of a class with png masks"
        ),
    ] = 0.0
    subtask: Annotated[
        Literal["semantic"],
        msgspec.Meta(
            description="the classes",
            extra={
                "reason": "this model tells classes apart, not single objects"
            },
        ),
    ] = "semantic"

    def __post_init__(self) -> None:
        if self.threshold and self.mask_format == "classes":
            raise ValueError(
                "threshold leaves out masks: it does not go with mask_format 'classes', which "
                "has one"
            )


class ImageSegmentation(ImageTask):
    """A mask for each class in a picture."""

    SUMMARY = "name every pixel of a picture: a mask for each class"
    GIVES = "masks"
    TARGETS = ("mask",)
    CLASSES = 2
    METRIC = "miou"
    RECIPE = "unet"
    SAMPLES = 500
    PREPROCESSING = Preprocessing
    PARAMETERS = Parameters

    def outputs(self, context: Context) -> list[TensorSpec]:
        """`mask`: the best class of each pixel; `scores`: its probability; both [-1, height,
        width].
        """
        shape = [-1, context.preprocessing.height, context.preprocessing.width]
        return [
            TensorSpec(name="scores", datatype="FP32", shape=shape),
            TensorSpec(name="mask", datatype="UINT8", shape=shape),
        ]

    def decode(
        self, data: Raw, context: Context, parameters: Any = None
    ) -> Arrays:
        """`image`: uint8 [height, width, channels], and the size that was sent; raises
        `InvalidInput`, `TooLarge`.
        """
        pixels = image_decoder.read_pixels(data)
        size = np.array(pixels.shape[:2], np.int32)
        return {
            "image": image_decoder.decode(pixels, context.preprocessing),
            SIZE: size,
        }

    def encode(
        self, arrays: Arrays, context: Context, parameters: Parameters
    ) -> Any:
        """A mask for each class, of the size of the picture that was sent (upright).

        `[{label, score, mask}]` largest first: `score` is the mean probability of the pixels,
        `mask` a PNG as base64, 255 where the class is and 0 elsewhere. With `mask_format` "classes"
        it is `{"classes": [...], "mask": ...}` instead, one PNG whose values are places in
        `classes`, of which it names all. `threshold` leaves out classes of a lower score.
        """
        mask = mask_arrays.enlarged(arrays["mask"], *map(int, arrays[SIZE]))
        labels = context.labels
        if parameters.mask_format == "classes":
            return {"classes": labels, "mask": mask_arrays.packed(mask)}
        means = mask_arrays.confident(
            arrays["mask"], arrays["scores"], len(labels)
        )
        scores = [round(float(mean), 6) for mean in means]
        return [
            {
                "label": labels[number],
                "score": scores[number],
                "mask": mask_arrays.packed(mask_arrays.only(mask, number)),
            }
            for number in mask_arrays.present(mask, len(labels))
            if scores[number] >= parameters.threshold
        ]

    def same_answer(self, one: Any, other: Any, tolerance: float) -> bool:
        """Whether two answers show nearly the same masks."""
        return mask_similarity.alike(one, other, tolerance)

    def full_parameters(self, labels: Sequence[str]) -> Parameters:
        """One mask of all classes, compressed: what an evaluation can hold for every picture of a
        split.
        """
        return Parameters(mask_format="classes")

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """`image` as `decode` makes it, and `mask`: uint8 [height, width], 255 where nothing is to
        be learnt.
        """
        how = context.preprocessing
        mask = mask_arrays.resized(
            mask_arrays.read(self.expected(item)), how.height, how.width
        )
        return {"image": self.decode(item.data, context)["image"]}, {
            "mask": mask
        }

    def expected(self, item: Item) -> bytes:
        """The true class of every pixel as a PNG, 255 for those that do not count."""
        assert isinstance(item.target, bytes)
        return item.target

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """mIoU, mean Dice and pixel accuracy, and samples."""
        return evaluation.evaluate(self.measured(model, items))


TASK = ImageSegmentation()
