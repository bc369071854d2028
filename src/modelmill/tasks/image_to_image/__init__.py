"""image-to-image: a damaged picture in, the repaired one out, in any resolution."""

import io
import math
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta
from PIL import Image

from modelmill.errors import InvalidInput, MillError, unknown_setting
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
    Run,
)
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.decoding.image_decoder import Pixels
from modelmill.tasks.evaluation.figures import spread
from modelmill.tasks.image_to_image import preprocessing as pre
from modelmill.tasks.image_to_image.measures import (
    Comparison,
    psnr,
    sheet,
    ssim,
)
from modelmill.tasks.image_to_image.preprocessing import Preprocessing
from modelmill.tasks.image_to_image.tiling import repaired
from modelmill.tasks.inputs import ImageTask
from modelmill.tasks.parameters import Ignored
from modelmill.types import Json, Struct, TensorSpec

ANSWER = "image"
"""Where an answer holds its picture, as base64 of a PNG file."""
REPAIRED = "repaired"
COLORS = f"{NOTE}colors"
SHOWN = 6
CLOSE = 48.0
"""The PSNR in dB above which two answers are the same but for rounding, at the tolerance of
fp32.
"""


class Parameters(Struct, frozen=True, kw_only=True):
    """What is to be repaired.

    Hugging Face's clients send the ignored ones to models that follow a text; these do to every
    picture the same.
    """

    mask: Annotated[
        Any,
        Meta(
            description="of models that fill in: a picture as base64, white where a part is "
            "missing",
            extra={"wanted": "a picture as base64"},
        ),
    ] = None
    prompt: Ignored = None
    negative_prompt: Ignored = None
    num_inference_steps: Ignored = None
    guidance_scale: Ignored = None
    target_size: Ignored = None


USUAL = Parameters()


class ImageToImage(ImageTask):
    """A repaired picture for a damaged one."""

    SUMMARY = "repair a picture: remove noise, enlarge, fill in"
    GIVES = "image"
    TARGETS = ("none", "label", "picture")
    CLASSES = 0
    METRIC = "psnr"
    RECIPE = "denoise"
    SAMPLES = 200
    PREPROCESSING = Preprocessing
    PARAMETERS = Parameters

    def prepare(
        self, samples: Sequence[Raw], preprocessing: Preprocessing, folder: Path
    ) -> Preprocessing:
        """Colour and kept size taken from the training pictures."""
        return pre.prepare(samples, preprocessing)

    def inputs(self, context: Context) -> list[TensorSpec]:
        """`image`: uint8 [-1, any height, any width, channels]; to be filled in, one more, 255
        where it is missing.
        """
        shape = [-1, -1, -1, context.preprocessing.planes]
        return [TensorSpec(name="image", datatype="UINT8", shape=shape)]

    def outputs(self, context: Context) -> list[TensorSpec]:
        """`repaired`: values of 0..1, as large as the input times the scale."""
        shape = [-1, -1, -1, context.preprocessing.channels]
        return [TensorSpec(name=REPAIRED, datatype="FP32", shape=shape)]

    def decode(
        self, data: Raw, context: Context, parameters: Parameters = USUAL
    ) -> Arrays:
        """`image`: uint8 [height, width, channels] as it was sent, upright; beside it the colours
        of a grey model's input. The parameter `mask` says what of a picture is to be filled in.

        Raises `InvalidInput`, and `TooLarge` also where the answer would be.
        """
        how = context.preprocessing
        if how.repair == "inpaint":
            return {"image": _with_holes(data, parameters.mask, how)}
        if parameters.mask is not None:
            raise unknown_setting("mask", (), "parameter")
        pixels = image_decoder.read_pixels(data)
        pre.check_size(pixels, how)
        wanted, colors = pre.as_wanted(pixels, how)
        arrays: Arrays = {"image": wanted}
        return arrays if colors is None else {**arrays, COLORS: colors}

    def infer(
        self, runs: Mapping[str, Run], arrays: Arrays, context: Context
    ) -> Arrays:
        """Pictures of any size, large ones in tiles."""
        how = context.preprocessing

        def network(part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return runs[""]({"image": np.ascontiguousarray(part)})[REPAIRED]

        return {
            REPAIRED: repaired(
                network, arrays["image"], how.tile, how.scale, how.multiple
            )
        }

    def encode(
        self, arrays: Arrays, context: Context, parameters: Parameters
    ) -> Json:
        """`{"image": PNG as base64}`."""
        pixels = pre.joined(
            pre.rounded(arrays[REPAIRED] * 255), arrays.get(COLORS)
        )
        return {ANSWER: b64encode(image_decoder.png(pixels)).decode()}

    def sample(self, item: Item, context: Context) -> tuple[Arrays, Arrays]:
        """`image`: the part of the clean picture that is kept, to be damaged anew in each step;
        there is no target.

        Of a pair: the part of the picture that is sent, and as target `clean` the same part of what
        should come out.
        """
        how = context.preprocessing
        if not isinstance(item.target, bytes):
            return {
                "image": pre.kept(image_decoder.read_pixels(item.data), how)
            }, {}
        pre.check_pairs(how)
        sent, clean = pre.kept_pair(
            image_decoder.read_pixels(item.data),
            image_decoder.read_pixels(item.target),
            how,
        )
        return {"image": sent}, {"clean": clean}

    def measured_by(self, item: Item, context: Context) -> Pixels:
        """The damaged picture that stands for a clean one where a model is measured; of a pair,
        what is sent.
        """
        pixels = image_decoder.read_pixels(item.data)
        return (
            pixels
            if isinstance(item.target, bytes)
            else pre.damaged(pixels, context.preprocessing)
        )

    def expected(self, item: Item) -> Raw | tuple[Raw, Raw]:
        """The clean picture; of a pair, what is sent and what should come out."""
        return (
            (item.data, item.target)
            if isinstance(item.target, bytes)
            else item.data
        )

    def same_answer(self, one: Any, other: Any, tolerance: float) -> bool:
        """Whether two answers show the same picture but for rounding."""
        first, second = _pixels(one), _pixels(other)
        if first.shape != second.shape:
            return False
        return psnr(first, second) >= CLOSE - 10 * math.log10(tolerance / 2e-3)

    def evaluate(self, model: Model, items: Items) -> Evaluation:
        """PSNR and SSIM beside those of the pictures as sent, and a sheet."""
        return metrics(self.measured(model, items))

    def example(self) -> bytes:
        """A small grey gradient as PNG, transparent in the middle."""
        pixels = np.full((24, 24, 4), 255, np.uint8)
        pixels[:, :, :3] = np.arange(0, 240, 10)[:, None]
        pixels[8:16, 8:16, 3] = 0
        return image_decoder.png(pixels)


def _with_holes(data: Raw, mask: Any, how: Preprocessing) -> Pixels:
    """A picture with its holes [H, W, C + 1], which a mask says or else its transparency."""
    if mask is None:
        return pre.with_holes(data, how)
    return pre.masked(image_decoder.read_pixels(data), _mask(mask), how)


def _mask(given: Any) -> pre.Mask:
    """What is missing, as true or false [H, W]; raises `InvalidInput`."""
    try:
        coded = given.partition(",")[2] if given.startswith("data:") else given
        data = b64decode(coded, validate=True)
    except (AttributeError, ValueError) as error:
        raise InvalidInput("mask wants a picture as base64") from error
    try:
        return pre.missing(data)
    except MillError as error:
        raise type(error)(f"mask: {error.message}") from error


def _before_and_after(
    truth: Raw | tuple[Raw, Raw], how: Preprocessing
) -> tuple[Pixels, Pixels]:
    if isinstance(truth, tuple):
        return image_decoder.read_pixels(truth[0]), image_decoder.read_pixels(
            truth[1]
        )
    clean = image_decoder.read_pixels(truth)
    return pre.damaged(clean, how), clean


def _pixels(answer: Json) -> Pixels:
    """The picture of an answer of our own."""
    with Image.open(io.BytesIO(b64decode(answer[ANSWER]))) as image:
        return np.asarray(image)


def _inner(pixels: Pixels, scale: int) -> Pixels:
    """Without the border that enlarging makes worse, where anything is left then."""
    border = scale if scale > 1 and min(pixels.shape[:2]) > 2 * scale else 0
    return pixels[
        border : pixels.shape[0] - border, border : pixels.shape[1] - border
    ]


def metrics(measured: Measured) -> Evaluation:
    """PSNR and SSIM, means over the pictures, beside those of the pictures as sent; and a sheet
    of some of them.

    A model of luminance is measured on luminance. An enlarged picture is compared with the
    bicubic one, both without a border of `scale` pixels.
    """
    assert measured.context is not None
    how = measured.context.preprocessing
    shown = set(spread(len(measured.truths), SHOWN))
    figures: list[Figures] = []
    rows: list[Comparison] = []
    pairs = zip(measured.outputs, measured.truths, strict=True)
    for number, (answer, truth) in enumerate(pairs):
        pictures = _compared(answer, truth, how)
        one = _figures(*pictures, how)
        figures.append(one)
        if number in shown:
            rows.append(
                Comparison(*pictures, before=one.psnr_baseline, after=one.psnr)
            )
    means = np.mean(figures, axis=0).tolist()
    return Evaluation(
        metrics={**Figures(*means)._asdict(), "items": len(figures)},
        pictures={"repaired.png": sheet(rows)},
    )


class Figures(NamedTuple):
    """What an answer is measured by, and the same of what was sent."""

    psnr: float
    ssim: float
    psnr_baseline: float
    ssim_baseline: float


def _compared(
    answer: Json, truth: Raw | tuple[Raw, Raw], how: Preprocessing
) -> tuple[Pixels, Pixels, Pixels]:
    """The picture as sent, the answer and the clean picture, of one size."""
    sent, clean = _before_and_after(truth, how)
    return pre.unrepaired(sent, how), _pixels(answer), pre.cut(clean, how)


def _figures(
    sent: Pixels, answer: Pixels, clean: Pixels, how: Preprocessing
) -> Figures:
    before, after, wanted = (
        _inner(pre.measured(picture, how), how.scale)
        for picture in (sent, answer, clean)
    )
    return Figures(
        psnr(after, wanted),
        ssim(after, wanted),
        psnr(before, wanted),
        ssim(before, wanted),
    )


TASK = ImageToImage()
