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
            ge=1,
            le=4,
            description="times larger, by super-resolution: 2, 3 or 4",
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
        (
            pixels.shape,
            options.color == "auto" and image_decoder.is_grey(pixels),
        )
        for pixels in map(image_decoder.read_pixels, samples)
    ]
    color = options.color
    if color == "auto":
        color = "grey" if all(grey for _, grey in shapes) else "rgb"
    usual = np.median([shape[:2] for shape, _ in shapes], axis=0)
    height, width = (
        _crop_side(given or min(float(side), options.max_side))
        for given, side in zip(
            (options.height, options.width), usual, strict=True
        )
    )
    return msgspec.structs.replace(
        options, color=color, height=height, width=width
    )


def _crop_side(side: float) -> int:
    return max(LEAST, int(side) // STEP * STEP)


def as_wanted(
    pixels: Pixels, options: Preprocessing
) -> tuple[Pixels, Pixels | None]:
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
    if options.repair == "inpaint" or image_decoder.is_grey(pixels):
        return luminance, None
    return luminance, parts[:, :, 1:].copy()


def with_holes(data: Raw, options: Preprocessing) -> Pixels:
    """A partly transparent picture as colours and a plane that is 255 in the holes [H, W, C + 1].

    Raises `InvalidInput` for a picture without an alpha channel.
    """
    if isinstance(data, np.ndarray) and data.ndim == 3 and data.shape[2] == 4:
        pixels, opacity = np.ascontiguousarray(data[:, :, :3]), data[:, :, 3]
    else:
        pixels = image_decoder.read_pixels(data)
        opacity = _opacity(data)
    return masked(pixels, opacity < 128, options)


def _opacity(data: Raw) -> Pixels:
    """The alpha channel of a picture [H, W]; raises `InvalidInput` where it has none."""
    alpha = (
        image_decoder.read_opacity(data) if isinstance(data, bytes) else None
    )
    if alpha is None:
        raise InvalidInput(
            "the picture does not say what to fill in: send a PNG or WebP with an alpha "
            "channel, transparent where the picture is missing, or the parameter 'mask'"
        )
    return alpha


def missing(data: bytes) -> Mask:
    """The holes of a mask [H, W]: its transparent pixels, or without any its white ones."""
    pixels, opacity = (
        image_decoder.read_pixels(data),
        image_decoder.read_opacity(data),
    )
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
            f"{pixels.shape[1]}x{pixels.shape[0]}: they have to be of one size"
        )
    plane = np.where(hole, 255, 0).astype(np.uint8)[:, :, None]
    return np.concatenate([as_wanted(pixels, options)[0], plane], axis=2)


def joined(pixels: Pixels, colors: Pixels | None) -> Pixels:
    """The inverse of `as_wanted`: [H, W] or [H, W, 3]; colours of another size are resized."""
    if colors is None:
        return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    luminance = Image.fromarray(pixels[:, :, 0])
    blue, red = (_plane(colors[:, :, at], luminance.size) for at in (0, 1))
    return np.asarray(
        Image.merge("YCbCr", [luminance, blue, red]).convert("RGB")
    )


def _plane(values: Pixels, size: tuple[int, int]) -> Image.Image:
    """Values [H, W] as a picture of this width and height."""
    plane = Image.fromarray(np.ascontiguousarray(values))
    if plane.size == size:
        return plane
    return plane.resize(size, Image.Resampling.BICUBIC)


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
        wanted = _crop(wanted, axis, int(rng.integers(room + 1)), side)
    return np.ascontiguousarray(wanted)


def kept_pair(
    sent: Pixels, clean: Pixels, options: Preprocessing
) -> tuple[Pixels, Pixels]:
    """The same crop of both pictures of a pair, [height, width, C] of the clean one; raises
    `InvalidInput` when the sizes do not fit the scale.
    """
    scale = clean.shape[0] // sent.shape[0]
    _check_scale(scale, options)
    rng = seeded(sent)
    small, large = (as_wanted(pixels, options)[0] for pixels in (sent, clean))
    for axis, side in enumerate(
        (options.height // scale, options.width // scale)
    ):
        small, room = _padded(small, axis, side)
        large, _ = _padded(large, axis, side * scale)
        start = int(rng.integers(room + 1))
        small = _crop(small, axis, start, side)
        large = _crop(large, axis, start * scale, side * scale)
    return np.ascontiguousarray(small), np.ascontiguousarray(large)


def _crop(pixels: Pixels, axis: int, start: int, side: int) -> Pixels:
    return pixels.take(range(start, start + side), axis)


def _check_scale(scale: int, options: Preprocessing) -> None:
    """Raises `InvalidInput` for pairs of another scale than the model's."""
    if scale == options.scale:
        return
    both_enlarge = options.scale > 1 and scale > 1
    hint = f"set scale={scale}" if both_enlarge else "it takes another recipe"
    raise InvalidInput(
        f"the pictures that should come out are {scale} times as large as those sent, "
        f"the model makes them {options.scale} times as large: {hint}"
    )


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
        widths = [(0, missing if at == axis else 0) for at in range(3)]
        pixels = np.pad(pixels, widths, "symmetric")
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
        return _with_random_holes(pixels)
    if options.repair == "denoise":
        noise = seeded(pixels).normal(0.0, options.test_sigma, pixels.shape)
        return rounded(pixels + noise)
    image = Image.fromarray(cut(pixels, options))
    size = (image.width // options.scale, image.height // options.scale)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _with_random_holes(pixels: Pixels) -> Pixels:
    """A picture [H, W, 4], white and transparent in its holes."""
    colors = np.asarray(Image.fromarray(pixels).convert("RGB"))
    missing = holes(pixels.shape[0], pixels.shape[1], seeded(pixels))
    filled = np.where(missing[:, :, None], 255, colors)
    return np.dstack([filled, np.where(missing, 0, 255)]).astype(np.uint8)


def holes(height: int, width: int, rng: np.random.Generator) -> Mask:
    """A mask of random boxes and strokes [H, W]."""
    image = Image.new("1", (width, height))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 5)):
        draw.rectangle(_random_box(height, width, rng), fill=1)
    for _ in range(rng.integers(1, 5)):
        ends = rng.uniform(size=4) * (width, height, width, height)
        thick = rng.uniform(0.01, 0.05) * min(height, width)
        draw.line(tuple(ends), fill=1, width=max(1, round(thick)))
    return np.array(image)


def _random_box(
    height: int, width: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box of up to a quarter of the sides."""
    shares = rng.uniform((0, 0, 0.05, 0.05), (1, 1, 0.25, 0.25))
    x, y, across, down = shares * (width, height, width, height)
    return x - across / 2, y - down / 2, x + across / 2, y + down / 2


def cut(pixels: Pixels, options: Preprocessing) -> Pixels:
    """A clean picture cropped to multiples of the scale; one smaller than the scale is padded."""
    missing = [(0, max(0, options.scale - side)) for side in pixels.shape[:2]]
    if any(after for _, after in missing):
        pixels = np.pad(
            pixels, [*missing, *[(0, 0)] * (pixels.ndim - 2)], "symmetric"
        )
    height, width = (
        side // options.scale * options.scale for side in pixels.shape[:2]
    )
    return pixels[:height, :width]


def unrepaired(pixels: Pixels, options: Preprocessing) -> Pixels:
    """The baseline: the degraded picture, upscaled by Pillow's bicubic filter where needed, holes
    filled with the mean colour of the rest.
    """
    if options.repair == "inpaint":
        return _filled_with_mean(pixels[:, :, :3], pixels[:, :, 3] < 128)
    if options.scale == 1:
        return pixels
    image = Image.fromarray(pixels)
    size = (image.width * options.scale, image.height * options.scale)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _filled_with_mean(pixels: Pixels, missing: Mask) -> Pixels:
    visible = pixels[~missing]
    mean = visible.mean(axis=0) if len(visible) else np.full(3, 127.5)
    return np.where(missing[:, :, None], rounded(mean), pixels)


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
