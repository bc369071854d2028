"""How pictures become inputs of image restoration and answers become pictures: colours, holes,
crops for training.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from PIL import Image, ImageDraw

from modelmill.errors import InvalidInput, TooLarge
from modelmill.tasks.base import Raw
from modelmill.tasks.decoding import image_decoder
from modelmill.tasks.decoding.image_decoder import Pixels
from modelmill.types import Struct

Mask = np.ndarray[Any, np.dtype[np.bool_]]
STEP = 24
"""Sides of crops are multiples of this: of every scale, and of the networks' strides."""
LEAST = 48
"""Smallest side of a crop, in pixels."""


class Preprocessing(Struct, frozen=True, kw_only=True):
    """What is repaired and how; travels in the manifest."""

    repair: Annotated[
        Literal["denoise", "super-resolution", "inpaint"],
        msgspec.Meta(description="what is repaired", extra={"derived": True}),
    ] = "denoise"
    color: Annotated[
        Literal["auto", "grey", "rgb"],
        msgspec.Meta(
            description="grey: luminance alone is repaired; auto: grey if all training pictures are"
        ),
    ] = "auto"
    scale: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=4, description="times larger, by super-resolution: 2, 3 or 4"
        ),
    ] = 1
    test_sigma: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=100,
            description="deviation of the noise that denoising is measured with, of 255",
        ),
    ] = 25.0
    height: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=4096,
            description="pixels kept of each training picture, in steps of 24; 0: from the data",
        ),
    ] = 0
    width: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=4096,
            description="pixels kept of each training picture, in steps of 24; 0: from the data",
        ),
    ] = 0
    max_side: Annotated[
        int,
        msgspec.Meta(
            ge=48,
            le=4096,
            description="most pixels kept of a side when taken from the data",
        ),
    ] = 480
    tile: Annotated[
        int,
        msgspec.Meta(
            ge=96,
            le=4096,
            description="side of the tiles in which a larger picture is repaired",
        ),
    ] = 512
    multiple: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=64,
            description="of which the network wants sides",
            extra={"derived": True},
        ),
    ] = 1

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that do not go together."""
        enlarges = self.repair == "super-resolution"
        if enlarges != (self.scale > 1):
            wanted = (
                "2, 3 or 4"
                if enlarges
                else "1: only super-resolution makes a picture larger"
            )
            raise ValueError(
                f"scale={self.scale} does not go with {self.repair}: it wants {wanted}"
            )

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return 1 if self.color == "grey" else 3

    @property
    def planes(self) -> int:
        """Planes of the model's input: the colours, and for inpainting the holes."""
        return self.channels + (self.repair == "inpaint")


def prepare(samples: Sequence[Raw], options: Preprocessing) -> Preprocessing:
    """Settings with colour and the size of training crops taken from the samples."""
    shapes = [
        (pixels.shape, options.color == "auto" and image_decoder.is_grey(pixels))
        for pixels in map(image_decoder.read_pixels, samples)
    ]
    color = options.color
    if color == "auto":
        color = "grey" if all(grey for _, grey in shapes) else "rgb"
    height, width = (
        _crop_side(
            given
            or min(
                float(np.median([shape[axis] for shape, _ in shapes])), options.max_side
            )
        )
        for axis, given in enumerate((options.height, options.width))
    )
    return msgspec.structs.replace(options, color=color, height=height, width=width)


def _crop_side(side: float) -> int:
    return max(LEAST, int(side) // STEP * STEP)


def as_wanted(pixels: Pixels, options: Preprocessing) -> tuple[Pixels, Pixels | None]:
    """The model's input pixels [H, W, C], and the colours [H, W, 2] that a grey model does not
    change, or None.

    Colours are Cb and Cr of JPEG's YCbCr (ITU-T T.871), so that luminance is what Pillow calls L.
    """
    if options.color != "grey":
        return np.asarray(Image.fromarray(pixels).convert("RGB")), None
    if pixels.ndim == 2:
        return pixels[:, :, None], None
    parts = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    luminance = np.ascontiguousarray(parts[:, :, :1])
    return luminance, None if options.repair == "inpaint" or image_decoder.is_grey(
        pixels
    ) else parts[:, :, 1:].copy()


def with_holes(data: Raw, options: Preprocessing) -> Pixels:
    """A partly transparent picture as colours and a plane that is 255 in the holes [H, W, C + 1].

    Raises `InvalidInput` for a picture without an alpha channel.
    """
    if isinstance(data, np.ndarray) and data.ndim == 3 and data.shape[2] == 4:
        pixels, opacity = np.ascontiguousarray(data[:, :, :3]), data[:, :, 3]
    else:
        pixels = image_decoder.read_pixels(data)
        alpha = image_decoder.read_opacity(data) if isinstance(data, bytes) else None
        if alpha is None:
            raise InvalidInput(
                "the picture does not say what to fill in: send a PNG or WebP with an alpha "
                "channel, "
                "transparent where the picture is missing, or the parameter 'mask'"
            )
        opacity = alpha
    return masked(pixels, opacity < 128, options)


def missing(data: bytes) -> Mask:
    """The holes of a mask [H, W]: its transparent pixels, or without any its white ones."""
    pixels, opacity = image_decoder.read_pixels(data), image_decoder.read_opacity(data)
    if opacity is not None and (opacity < 128).any():
        return opacity < 128
    return (pixels if pixels.ndim == 2 else pixels.mean(axis=2)) >= 128


def masked(pixels: Pixels, hole: Mask, options: Preprocessing) -> Pixels:
    """Colours and a plane that is 255 in the holes [H, W, C + 1]; raises `InvalidInput` for a mask
    of another size.
    """
    if hole.shape != pixels.shape[:2]:
        raise InvalidInput(
            f"mask is {hole.shape[1]}x{hole.shape[0]}, the picture "
            f"{pixels.shape[1]}x{pixels.shape[0]}: "
            "they have to be of one size"
        )
    return np.concatenate(
        [
            as_wanted(pixels, options)[0],
            np.where(hole, 255, 0).astype(np.uint8)[:, :, None],
        ],
        axis=2,
    )


def joined(pixels: Pixels, colors: Pixels | None) -> Pixels:
    """The inverse of `as_wanted`: [H, W] or [H, W, 3]; colours of another size are resized."""
    if colors is None:
        return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    size = (pixels.shape[1], pixels.shape[0])
    parts = [Image.fromarray(np.ascontiguousarray(colors[:, :, at])) for at in (0, 1)]
    parts = [
        part if part.size == size else part.resize(size, Image.Resampling.BICUBIC)
        for part in parts
    ]
    return np.asarray(
        Image.merge("YCbCr", [Image.fromarray(pixels[:, :, 0]), *parts]).convert("RGB")
    )


def measured(pixels: Pixels, options: Preprocessing) -> Pixels:
    """The pixels [H, W, C] on which a model is evaluated: luminance for grey models."""
    return as_wanted(pixels, options)[0]


def kept(pixels: Pixels, options: Preprocessing) -> Pixels:
    """The crop of a picture that is trained on [height, width, C], always the same for the same
    picture. A smaller picture is padded with its mirror image.
    """
    wanted = as_wanted(pixels, options)[0]
    rng = seeded(pixels)
    for axis, side in enumerate((options.height, options.width)):
        wanted, room = _padded(wanted, axis, side)
        start = int(rng.integers(room + 1))
        wanted = wanted.take(range(start, start + side), axis)
    return np.ascontiguousarray(wanted)


def kept_pair(
    sent: Pixels, clean: Pixels, options: Preprocessing
) -> tuple[Pixels, Pixels]:
    """The same crop of both pictures of a pair, [height, width, C] of the clean one; raises
    `InvalidInput` when the sizes do not fit the scale.
    """
    scale = clean.shape[0] // sent.shape[0]
    if scale != options.scale:
        hint = (
            f"set scale={scale}"
            if options.scale > 1 and scale > 1
            else "it takes another recipe"
        )
        raise InvalidInput(
            f"the pictures that should come out are {scale} times as large as those sent, "
            f"the model makes them {options.scale} times as large: {hint}"
        )
    rng = seeded(sent)
    parts = [as_wanted(sent, options)[0], as_wanted(clean, options)[0]]
    for axis, side in enumerate((options.height // scale, options.width // scale)):
        start = 0
        for number, factor in enumerate((1, scale)):
            parts[number], room = _padded(parts[number], axis, side * factor)
            start = start if number else int(rng.integers(room + 1))
            parts[number] = parts[number].take(
                range(start * factor, (start + side) * factor), axis
            )
    return np.ascontiguousarray(parts[0]), np.ascontiguousarray(parts[1])


def check_pairs(options: Preprocessing) -> None:
    """Raises `InvalidInput` for a model that can't be trained on pairs."""
    if options.repair == "inpaint":
        raise InvalidInput(
            "inpaint makes the holes itself: give it whole pictures, not pairs"
        )


def _padded(pixels: Pixels, axis: int, side: int) -> tuple[Pixels, int]:
    """Pixels padded with their mirror image to at least `side` along an axis, and the excess."""
    missing = max(0, side - pixels.shape[axis])
    if missing:
        pixels = np.pad(
            pixels, [(0, missing if at == axis else 0) for at in range(3)], "symmetric"
        )
    return pixels, pixels.shape[axis] - side


def seeded(pixels: Pixels) -> np.random.Generator:
    """Random numbers that are always the same for the same picture."""
    digest = hashlib.sha256(
        repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()
    ).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def damaged(pixels: Pixels, options: Preprocessing) -> Pixels:
    """A clean picture degraded as a test input, always the same for the same picture.

    Denoising: white Gaussian noise of deviation `test_sigma`, rounded and clipped as in a file.
    Super-resolution: sides cut to multiples of the scale, then downscaled by Pillow's bicubic
    filter (antialiased, a = -0.5). Inpainting: transparent holes [H, W, 4].
    """
    if options.repair == "inpaint":
        colors = np.asarray(Image.fromarray(pixels).convert("RGB"))
        missing = holes(pixels.shape[0], pixels.shape[1], seeded(pixels))
        return np.dstack(
            [np.where(missing[:, :, None], 255, colors), np.where(missing, 0, 255)]
        ).astype(np.uint8)
    if options.repair == "denoise":
        noisy = pixels + seeded(pixels).normal(0.0, options.test_sigma, pixels.shape)
        return np.asarray(np.clip(np.rint(noisy), 0, 255), np.uint8)
    image = Image.fromarray(cut(pixels, options))
    size = (image.width // options.scale, image.height // options.scale)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def holes(height: int, width: int, rng: np.random.Generator) -> Mask:
    """A mask of random boxes and strokes [H, W]."""
    image = Image.new("1", (width, height))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 5)):
        x, y, across, down = rng.uniform((0, 0, 0.05, 0.05), (1, 1, 0.25, 0.25)) * (
            width,
            height,
            width,
            height,
        )
        draw.rectangle(
            (x - across / 2, y - down / 2, x + across / 2, y + down / 2), fill=1
        )
    for _ in range(rng.integers(1, 5)):
        ends = rng.uniform(size=4) * (width, height, width, height)
        draw.line(
            tuple(ends),
            fill=1,
            width=max(1, round(rng.uniform(0.01, 0.05) * min(height, width))),
        )
    return np.array(image)


def cut(pixels: Pixels, options: Preprocessing) -> Pixels:
    """A clean picture cropped to multiples of the scale; one smaller than the scale is padded."""
    missing = [(0, max(0, options.scale - side)) for side in pixels.shape[:2]]
    if any(after for _, after in missing):
        pixels = np.pad(pixels, [*missing, *[(0, 0)] * (pixels.ndim - 2)], "symmetric")
    height, width = (side // options.scale * options.scale for side in pixels.shape[:2])
    return pixels[:height, :width]


def unrepaired(pixels: Pixels, options: Preprocessing) -> Pixels:
    """The baseline: the degraded picture, upscaled by Pillow's bicubic filter where needed, holes
    filled with the mean colour of the rest.
    """
    if options.repair == "inpaint":
        missing = pixels[:, :, 3] < 128
        visible = pixels[:, :, :3][~missing]
        mean = visible.mean(axis=0) if len(visible) else np.full(3, 127.5)
        return np.where(missing[:, :, None], rounded(mean), pixels[:, :, :3])
    if options.scale == 1:
        return pixels
    image = Image.fromarray(pixels)
    size = (image.width * options.scale, image.height * options.scale)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def check_size(pixels: Pixels, options: Preprocessing) -> None:
    """Raises `TooLarge` for a picture whose answer would be larger than any picture may be."""
    count = pixels.shape[0] * pixels.shape[1] * options.scale**2
    if count > image_decoder.MAX_PIXELS:
        raise TooLarge(
            f"enlarged {options.scale} times the picture would have {count:,} pixels; at most "
            f"{image_decoder.MAX_PIXELS:,}"
        )


def rounded(values: np.ndarray[Any, Any]) -> Pixels:
    """Levels 0..255 as pixels."""
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
