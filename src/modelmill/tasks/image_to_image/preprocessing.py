"""How pictures go into repair and come out: what is repaired, in which colours, and what training
keeps of them.
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
"""Kept sides are multiples of this: of every scale, and of what networks halve."""
LEAST = 48


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
        """Of what the model takes: the colours, and for inpainting what is missing."""
        return self.channels + (self.repair == "inpaint")


def prepare(samples: Sequence[Raw], how: Preprocessing) -> Preprocessing:
    """Fill in what is left to the data: colour, and how much of a picture training keeps."""
    seen = [
        (pixels.shape, how.color == "auto" and image_decoder.is_grey(pixels))
        for pixels in map(image_decoder.read_pixels, samples)
    ]
    color = (
        how.color
        if how.color != "auto"
        else ("grey" if all(grey for _, grey in seen) else "rgb")
    )
    height, width = (
        _kept(
            given
            or min(float(np.median([shape[axis] for shape, _ in seen])), how.max_side)
        )
        for axis, given in enumerate((how.height, how.width))
    )
    return msgspec.structs.replace(how, color=color, height=height, width=width)


def _kept(side: float) -> int:
    return max(LEAST, int(side) // STEP * STEP)


def as_wanted(pixels: Pixels, how: Preprocessing) -> tuple[Pixels, Pixels | None]:
    """Pixels as the model wants them [H, W, C], and the colours [H, W, 2] that a grey model leaves
    alone.

    Colours are Cb and Cr of JPEG's YCbCr (ITU-T T.871), so that luminance is what Pillow calls L.
    """
    if how.color != "grey":
        return np.asarray(Image.fromarray(pixels).convert("RGB")), None
    if pixels.ndim == 2:
        return pixels[:, :, None], None
    parts = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    luminance = np.ascontiguousarray(parts[:, :, :1])
    return luminance, None if how.repair == "inpaint" or image_decoder.is_grey(
        pixels
    ) else parts[:, :, 1:].copy()


def with_holes(data: Raw, how: Preprocessing) -> Pixels:
    """A picture of which parts are transparent, as colours and a plane that is 255 where they are
    [H, W, C + 1].

    Raises `InvalidInput` for a picture that can't say what is missing.
    """
    if isinstance(data, np.ndarray) and data.ndim == 3 and data.shape[2] == 4:
        pixels, opacity = np.ascontiguousarray(data[:, :, :3]), data[:, :, 3]
    else:
        pixels = image_decoder.read_pixels(data)
        found = (
            None
            if isinstance(data, np.ndarray | str)
            else image_decoder.read_opacity(data)
        )
        if found is None:
            raise InvalidInput(
                "the picture does not say what to fill in: send a PNG or WebP with an alpha "
                "channel, "
                "transparent where the picture is missing, or the parameter 'mask'"
            )
        opacity = found
    return masked(pixels, opacity < 128, how)


def missing(data: bytes) -> Mask:
    """What a mask says is missing [H, W]: where it is transparent, or if it is nowhere, where it is
    white.
    """
    pixels, opacity = image_decoder.read_pixels(data), image_decoder.read_opacity(data)
    if opacity is not None and (opacity < 128).any():
        return opacity < 128
    return (pixels if pixels.ndim == 2 else pixels.mean(axis=2)) >= 128


def masked(pixels: Pixels, hole: Mask, how: Preprocessing) -> Pixels:
    """Colours, and a plane that is 255 where they are missing [H, W, C + 1]; raises
    `InvalidInput`.
    """
    if hole.shape != pixels.shape[:2]:
        raise InvalidInput(
            f"mask is {hole.shape[1]}x{hole.shape[0]}, the picture "
            f"{pixels.shape[1]}x{pixels.shape[0]}: "
            "they have to be of one size"
        )
    return np.concatenate(
        [
            as_wanted(pixels, how)[0],
            np.where(hole, 255, 0).astype(np.uint8)[:, :, None],
        ],
        axis=2,
    )


def joined(pixels: Pixels, colors: Pixels | None) -> Pixels:
    """What `as_wanted` took apart: [H, W], or [H, W, 3]; colours of another size are enlarged."""
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


def measured(pixels: Pixels, how: Preprocessing) -> Pixels:
    """The pixels [H, W, C] on which a model is measured: luminance where it repairs luminance."""
    return as_wanted(pixels, how)[0]


def kept(pixels: Pixels, how: Preprocessing) -> Pixels:
    """The part of a picture that training keeps [height, width, C]: the same one for the same
    picture.

    A smaller picture is continued by its mirror image.
    """
    wanted = as_wanted(pixels, how)[0]
    rng = seeded(pixels)
    for axis, side in enumerate((how.height, how.width)):
        wanted, room = _continued(wanted, axis, side)
        start = int(rng.integers(room + 1))
        wanted = wanted.take(range(start, start + side), axis)
    return np.ascontiguousarray(wanted)


def kept_pair(sent: Pixels, clean: Pixels, how: Preprocessing) -> tuple[Pixels, Pixels]:
    """The same part of both pictures of a pair: [height, width, C] of the clean one; raises
    `InvalidInput`.
    """
    scale = clean.shape[0] // sent.shape[0]
    if scale != how.scale:
        hint = (
            f"set scale={scale}"
            if how.scale > 1 and scale > 1
            else "it takes another recipe"
        )
        raise InvalidInput(
            f"the pictures that should come out are {scale} times as large as those sent, "
            f"the model makes them {how.scale} times as large: {hint}"
        )
    rng = seeded(sent)
    parts = [as_wanted(sent, how)[0], as_wanted(clean, how)[0]]
    for axis, side in enumerate((how.height // scale, how.width // scale)):
        start = 0
        for number, factor in enumerate((1, scale)):
            parts[number], room = _continued(parts[number], axis, side * factor)
            start = start if number else int(rng.integers(room + 1))
            parts[number] = parts[number].take(
                range(start * factor, (start + side) * factor), axis
            )
    return np.ascontiguousarray(parts[0]), np.ascontiguousarray(parts[1])


def check_pairs(how: Preprocessing) -> None:
    """Raises `InvalidInput` where pairs teach nothing."""
    if how.repair == "inpaint":
        raise InvalidInput(
            "inpaint makes the holes itself: give it whole pictures, not pairs"
        )


def _continued(pixels: Pixels, axis: int, side: int) -> tuple[Pixels, int]:
    """At least `side` long by its mirror image, and how much longer than that."""
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


def damaged(pixels: Pixels, how: Preprocessing) -> Pixels:
    """A clean picture as it is sent to be repaired, always the same for the same picture.

    Noise is white and Gaussian with the deviation `test_sigma`, rounded and clipped as in a file; a
    picture to be enlarged is made smaller by Pillow's bicubic filter (antialiased, a = -0.5), after
    its sides were cut to multiples; one to be filled in is transparent in places [H, W, 4].
    """
    if how.repair == "inpaint":
        colors = np.asarray(Image.fromarray(pixels).convert("RGB"))
        missing = holes(pixels.shape[0], pixels.shape[1], seeded(pixels))
        return np.dstack(
            [np.where(missing[:, :, None], 255, colors), np.where(missing, 0, 255)]
        ).astype(np.uint8)
    if how.repair == "denoise":
        noisy = pixels + seeded(pixels).normal(0.0, how.test_sigma, pixels.shape)
        return np.asarray(np.clip(np.rint(noisy), 0, 255), np.uint8)
    image = Image.fromarray(cut(pixels, how))
    size = (image.width // how.scale, image.height // how.scale)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def holes(height: int, width: int, rng: np.random.Generator) -> Mask:
    """Where a picture is to be filled in [H, W]: some boxes and strokes at random places."""
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


def cut(pixels: Pixels, how: Preprocessing) -> Pixels:
    """A clean picture with sides that are multiples of the scale; one that is smaller than it is
    continued first.
    """
    missing = [(0, max(0, how.scale - side)) for side in pixels.shape[:2]]
    if any(after for _, after in missing):
        pixels = np.pad(pixels, [*missing, *[(0, 0)] * (pixels.ndim - 2)], "symmetric")
    height, width = (side // how.scale * how.scale for side in pixels.shape[:2])
    return pixels[:height, :width]


def unrepaired(pixels: Pixels, how: Preprocessing) -> Pixels:
    """What repair has to beat: the picture as it was sent, enlarged by Pillow's bicubic filter
    where it has to be.

    Holes are filled with the mean colour of the rest.
    """
    if how.repair == "inpaint":
        missing = pixels[:, :, 3] < 128
        known = pixels[:, :, :3][~missing]
        mean = known.mean(axis=0) if len(known) else np.full(3, 127.5)
        return np.where(missing[:, :, None], rounded(mean), pixels[:, :, :3])
    if how.scale == 1:
        return pixels
    image = Image.fromarray(pixels)
    size = (image.width * how.scale, image.height * how.scale)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def check_size(pixels: Pixels, how: Preprocessing) -> None:
    """Raises `TooLarge` for a picture whose answer would be larger than any picture may be."""
    count = pixels.shape[0] * pixels.shape[1] * how.scale**2
    if count > image_decoder.MAX_PIXELS:
        raise TooLarge(
            f"enlarged {how.scale} times the picture would have {count:,} pixels; at most "
            f"{image_decoder.MAX_PIXELS:,}"
        )


def rounded(values: np.ndarray[Any, Any]) -> Pixels:
    """Levels 0..255 as pixels."""
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
