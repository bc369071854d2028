"""unconditional-image-generation: a seed in, new pictures out that look like those it was trained
on.
"""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from modelmill import seeds
from modelmill.errors import InvalidInput
from modelmill.tasks.base import (
    Arrays,
    Context,
    Evaluation,
    GeneratingTask,
    Item,
    Items,
    Model,
    Raw,
    Run,
)
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.inputs import ImageTask, pixels_of
from modelmill.tasks.unconditional_image_generation.sampling import (
    Array,
    denoised,
)
from modelmill.types import Json, Struct, TensorSpec, Usage

MOST_IMAGES = 64
MOST_STEPS = 100
STEPS = 25


class Preprocessing(image_decoder.Preprocessing, frozen=True, kw_only=True):
    """The pictures that are learnt and made, and the noise that they are made of."""

    latent: Annotated[
        int,
        Meta(
            ge=0,
            le=4096,
            description="numbers of noise a picture is made of; 0: noise of the picture's shape",
        ),
    ] = 0


Steps = Annotated[int, Meta(ge=1, le=MOST_STEPS)] | None


class Parameters(Struct, frozen=True, kw_only=True):
    """Which pictures are made."""

    num_images: Annotated[
        int, Meta(ge=1, le=MOST_IMAGES, description="pictures that are made")
    ] = 1
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=seeds.MOST)] | None,
        Meta(description="the same seed, the same pictures; else by chance"),
    ] = None
    steps: Annotated[
        Steps, Meta(description=f"of a diffusion model; else {STEPS}")
    ] = None
    num_inference_steps: Annotated[Steps, Meta(description="the same")] = None


USUAL = Parameters()


class ImageGeneration(GeneratingTask, ImageTask):
    """New pictures for a seed."""

    SUMMARY = (
        "make new pictures like those of a data set; measured by their distance from real ones, "
        "so less is better"
    )
    TAKES = "seed"
    GIVES = "image"
    TARGETS = ("none", "label")
    CLASSES = 0
    METRIC = "distance"
    RECIPE = "dcgan"
    SAMPLES = 1000
    EVALUATED = 1000
    PREPROCESSING = Preprocessing
    PARAMETERS = Parameters

    def inputs(self, context: Context) -> list[TensorSpec]:
        """`latent`: standard normal noise; for a diffusion model also `steps` (0: the usual
        number).
        """
        how = context.preprocessing
        shape = [-1, how.latent] if how.latent else [-1, *_shape(how)]
        noise = TensorSpec(name="latent", datatype="FP32", shape=shape)
        if how.latent:
            return [noise]
        return [noise, TensorSpec(name="steps", datatype="INT64", shape=[-1])]

    def outputs(self, context: Context) -> list[TensorSpec]:
        """`image`: 0..1 [-1, height, width, channels]."""
        shape = [-1, *_shape(context.preprocessing)]
        return [TensorSpec(name="image", datatype="FP32", shape=shape)]

    def graph(
        self, context: Context
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """A diffusion network takes a noisy picture -1..1 and its time 0..1, and gives the velocity
        from which to step.
        """
        noise, *steps = self.inputs(context)
        if not steps:
            return [noise], self.outputs(context)
        time = TensorSpec(name="time", datatype="FP32", shape=[-1])
        velocity = TensorSpec(
            name="velocity", datatype="FP32", shape=noise.shape
        )
        return [noise, time], [velocity]

    def decode(
        self, data: Raw, context: Context, parameters: Parameters = USUAL
    ) -> Arrays:
        """`latent`: the noise of `num_images` pictures [n, ...], drawn from the seed; `steps` of a
        diffusion model.

        The first pictures of a seed are the same ones, however many are asked for. Without a seed
        it is drawn by chance. Raises `InvalidInput`.
        """
        rng = np.random.default_rng(_seed(data, parameters))
        noise, *diffusion = self.inputs(context)
        shape = (parameters.num_images, *noise.shape[1:])
        arrays: Arrays = {"latent": rng.standard_normal(shape, np.float32)}
        if diffusion:
            steps = parameters.steps or parameters.num_inference_steps
            arrays["steps"] = np.asarray(steps or STEPS, np.int64)
        else:
            _check_no_steps(parameters)
        return arrays

    def infer(
        self, runs: Mapping[str, Run], arrays: Arrays, context: Context
    ) -> Arrays:
        """`image` 0..1: rows of noise [N, ...] as one batch, requests [B, n, ...] one by one.

        A request runs alone because the last bit of a sum depends on the size of the batch: the
        same request is answered with the same pictures, whatever else is asked at the time.
        """
        latent = arrays["latent"]
        steps = arrays.get("steps")
        if latent.ndim == len(self.inputs(context)[0].shape):
            return {"image": _pictures(runs[""], latent, steps)}
        each = [
            _pictures(runs[""], noise, None if steps is None else steps[row])
            for row, noise in enumerate(latent)
        ]
        return {"image": np.stack(each)}

    def usage(self, inputs: Arrays, outputs: Arrays, context: Context) -> Usage:
        """`pixels` of the pictures that were made."""
        return {"pixels": pixels_of(outputs["image"])}

    def encode(
        self, arrays: Arrays, context: Context, parameters: Parameters
    ) -> list[str]:
        """The pictures as PNG files in base64; one where the arrays hold one."""
        images = arrays["image"].reshape(-1, *_shape(context.preprocessing))
        return [
            b64encode(image_decoder.png(eight_bits(image))).decode()
            for image in images
        ]

    def same_answer(self, one: Any, other: Any, tolerance: float) -> bool:
        """Whether two answers show the same pictures, but for a mean difference of `tolerance` of
        the range each.
        """
        if not isinstance(one, list) or not isinstance(other, list):
            return False
        return len(one) == len(other) and all(
            a == b or _alike_pictures(a, b, tolerance)
            for a, b in zip(one, other, strict=True)
        )

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """`image`: uint8 [height, width, channels]; nothing is aimed at but its likeness."""
        return {
            "image": image_decoder.decode(item.data, context.preprocessing)
        }, {}

    def expected(self, item: Item) -> tuple[Raw, str]:
        """A real picture, with its class where there are classes."""
        return item.data, item.label

    def questions(self, count: int) -> list[tuple[Raw, Json]]:
        """Seeds that ask for so many pictures, many at a time."""
        full, rest = divmod(count, MOST_IMAGES)
        counts = [MOST_IMAGES] * full + ([rest] if rest else [])
        return [
            (str(seed), {"num_images": count})
            for seed, count in enumerate(counts)
        ]

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """Distance, precision and recall against real pictures, the shares of the classes, and a
        grid of samples.
        """
        from modelmill.tasks.unconditional_image_generation.judging import (
            evaluate,
        )

        return evaluate(self.measured(model, items))

    def as_sent(self, data: Raw) -> str:
        """A seed, one for each picture."""
        return str(int(self.fingerprint(data)[:8], 16))


def _shape(how: Preprocessing) -> list[int]:
    """Of a picture."""
    return [how.height, how.width, how.channels]


def _check_no_steps(parameters: Parameters) -> None:
    """Raises `InvalidInput` where a model of one step is asked for more."""
    for name in ("steps", "num_inference_steps"):
        if getattr(parameters, name):
            raise InvalidInput(
                f"{name}: this model draws a picture in one step; only diffusion models take "
                "steps"
            )


def _seed(data: Raw, parameters: Parameters) -> int:
    """What is sent as the input or as a parameter; both may be left out."""
    if not isinstance(data, str):
        raise InvalidInput(
            "the input is a seed, a whole number as a text, or an empty text for a seed by chance"
        )
    named = parameters.seed
    if not (text := data.strip()):
        return seeds.draw() if named is None else named
    seed = _number(text)
    if named is not None and named != seed:
        raise InvalidInput(
            f"the input names the seed {text}, the parameter seed another: {named!r:.40}; give one"
        )
    return seed


def _number(text: str) -> int:
    """A seed that was sent as the input; raises `InvalidInput`."""
    whole = text.isascii() and text.isdecimal() and len(text) <= 19
    if not whole or int(text) > seeds.MOST:
        raise InvalidInput(
            f"the input is a seed, a whole number from 0 to {seeds.MOST}, or nothing; not "
            f"{text!r:.40}"
        )
    return int(text)


def _pictures(run: Run, latent: Array, steps: Any) -> Array:
    """Noise [N, ...] to pictures; rows of a diffusion model that want as many steps go together."""
    if steps is None:
        return run({"latent": latent})["image"]
    wanted = _steps_of_rows(steps, len(latent))
    images = np.empty(latent.shape, np.float32)
    for count in np.unique(wanted):
        rows = wanted == count
        images[rows] = denoised(
            lambda x, time: run({"latent": x, "time": time})["velocity"],
            latent[rows],
            int(count),
        )
    return images / 2 + 0.5


def _steps_of_rows(steps: Any, count: int) -> Array:
    """The steps of each row; raises `InvalidInput` for too many."""
    usual = np.where(np.asarray(steps) == 0, STEPS, steps)
    wanted = np.broadcast_to(usual, count)
    if wanted.size and not 1 <= wanted.min() <= wanted.max() <= MOST_STEPS:
        raise InvalidInput(
            f"steps are 1 to {MOST_STEPS}, or 0 for the usual {STEPS}"
        )
    return wanted


def _alike_pictures(one: str, other: str, tolerance: float) -> bool:
    first, second = (
        image_decoder.read_pixels(b64decode(file)).astype(np.float32)
        for file in (one, other)
    )
    if first.shape != second.shape:
        return False
    return float(np.abs(first - second).mean()) <= 255 * tolerance


def eight_bits(image: Array) -> image_decoder.Pixels:
    """0..1 as pixels."""
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255), np.uint8)


TASK = ImageGeneration()
