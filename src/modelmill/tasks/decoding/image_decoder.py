"""Decoding of image files to pixels, shared by all vision tasks."""

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import simplejpeg
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    IcoImagePlugin,
    Image,
    ImageFilter,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from modelmill.errors import InvalidInput, MillError, TooLarge
from modelmill.tasks.base import Raw
from modelmill.types import Struct, TensorSpec

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""

MAX_PIXELS = 50_000_000
# Only these formats are ever tried: Pillow's others include some that start a program (EPS).
FORMATS = (
    JpegImagePlugin.JpegImageFile.format,
    PngImagePlugin.PngImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
    GifImagePlugin.GifImageFile.format,
    BmpImagePlugin.BmpImageFile.format,
    BmpImagePlugin.DibImageFile.format,
    TiffImagePlugin.TiffImageFile.format,
    AvifImagePlugin.AvifImageFile.format,
    Jpeg2KImagePlugin.Jpeg2KImageFile.format,
    PpmImagePlugin.PpmImageFile.format,
    IcoImagePlugin.IcoImageFile.format,
)
ROTATED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""
MARGINS = {8: 3.0, 4: 2.0, 2: 1.5}
"""Reductions of JPEG decoding by DCT scaling, and the margin over the target size that each needs.

On 40 photographs of animals at just these margins the 95th percentile of the difference from a full
decode averages 6 to 8 grey levels; of single pictures full of fine texture it reaches 19.
"""
COLOUR_SAMPLES = 64
"""Pictures that are read to see whether a data set is grey."""
BACKGROUND = (255, 255, 255)  # what shows through a transparent pixel

# Pillow refuses twice this number while it reads a header; our own check below refuses the rest.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class Preprocessing(Struct, frozen=True, kw_only=True):
    """How a picture becomes pixels of a fixed shape; travels in the manifest."""

    height: Annotated[
        int, msgspec.Meta(ge=0, le=4096, description="pixels; 0: from the data")
    ] = 0
    width: Annotated[
        int, msgspec.Meta(ge=0, le=4096, description="pixels; 0: from the data")
    ] = 0
    max_side: Annotated[
        int,
        msgspec.Meta(
            ge=8,
            le=4096,
            description="longest side when the size is taken from the data",
        ),
    ] = 64
    color: Annotated[
        Literal["auto", "grey", "rgb"],
        msgspec.Meta(description="auto: grey if all training pictures are"),
    ] = "auto"
    fit: Annotated[
        Literal["stretch", "crop", "pad"],
        msgspec.Meta(
            description="how another aspect ratio is fitted: stretch, centre crop, or pad"
        ),
    ] = "stretch"
    denoise: Annotated[
        Literal[0, 3, 5],
        msgspec.Meta(
            description="side of the median filter in pixels; 0: none"
        ),
    ] = 0
    mean: Annotated[
        tuple[float, ...],
        msgspec.Meta(description="per channel, 0..1; from the data"),
    ] = ()
    std: Annotated[
        tuple[float, ...],
        msgspec.Meta(description="per channel, 0..1; from the data"),
    ] = ()
    dct_scaling: Annotated[bool, msgspec.Meta(extra={"derived": True})] = False
    """Whether JPEGs are decoded at a reduced size; a model keeps the choice of its training."""

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that do not go together."""
        if len(self.mean) != len(self.std):
            raise ValueError(
                "mean and std go together: give both, or neither to take them from the data"
            )

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return 1 if self.color == "grey" else 3


def read_pixels(data: Raw) -> Pixels:
    """The pixels of a picture with EXIF orientation applied, uint8 [H, W] or [H, W, 3]; the first
    frame of an animation.

    Raises `InvalidInput` for other or damaged data, `TooLarge` beyond `MAX_PIXELS`.
    """
    return _read(data, None)[0]


def size_of(data: Raw) -> tuple[int, int]:
    """Height and width of an upright picture, by its header alone; raises as `read_pixels`."""
    if isinstance(data, np.ndarray):
        height, width = _checked(data).shape[:2]
        return height, width
    with _opened(data) as image:
        return _upright(image.height, image.width, _orientation(image))


def _read(
    data: Raw, options: Preprocessing | None
) -> tuple[Pixels, tuple[int, int]]:
    """The whole picture, or as few of its pixels as `options` needs; and its true height and
    width.
    """
    if isinstance(data, np.ndarray):
        pixels = _checked(data)
        return pixels, (pixels.shape[0], pixels.shape[1])
    with _opened(data) as image:
        orientation = _orientation(image)
        decoded = _decoded(data, image, orientation, options)
        size = _upright(image.height, image.width, orientation)
        return _oriented(decoded, orientation), size


def _decoded(
    data: Any,
    image: Image.Image,
    orientation: int,
    options: Preprocessing | None,
) -> Pixels:
    """The pixels of an opened picture, as they are stored."""
    if image.format == "JPEG" and image.mode in ("L", "RGB"):
        pixels = _decode_jpeg(data, image, orientation, options)
        if pixels is not None:
            return pixels
    image.load()
    return _eight_bits(image)


def _checked(pixels: Any) -> Pixels:
    if (
        pixels.dtype != np.uint8
        or pixels.ndim not in (2, 3)
        or (pixels.ndim == 3 and pixels.shape[2] != 3)
    ):
        raise InvalidInput(
            f"pixels are uint8 [H, W] or [H, W, 3], not {pixels.dtype} {list(pixels.shape)}"
        )
    if pixels.size == 0:
        raise InvalidInput("the picture is empty (0 pixels)")
    return np.asarray(pixels)


def read_opacity(data: bytes) -> Pixels | None:
    """The alpha channel of a readable picture, upright [H, W]; None if it has none."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return None
        orientation = _orientation(image)
        return _oriented(
            np.asarray(image.convert("RGBA").getchannel("A")), orientation
        )


@contextmanager
def _opened(data: Any) -> Iterator[Image.Image]:
    """An opened picture whose header was checked; any error of decoding raises `InvalidInput` or
    `TooLarge`.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidInput(
            "a picture is wanted as the bytes of an image file (PNG, JPEG, WebP, ...)"
        )
    if not data:
        raise InvalidInput("the picture is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image)
            yield image
    except (MillError, MemoryError):
        raise
    except Exception as error:
        # Each of a dozen decoders raises its own class for a damaged file.
        raise _error_of(error) from error


def _check_size(image: Image.Image) -> None:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise TooLarge(
            f"the picture has {pixels:,} pixels; at most {MAX_PIXELS:,}"
        )


def _error_of(error: Exception) -> MillError:
    """A decoder's error, as the caller reads it."""
    if isinstance(
        error, Image.DecompressionBombError | Image.DecompressionBombWarning
    ):
        return TooLarge(f"the picture claims more than {MAX_PIXELS:,} pixels")
    if isinstance(error, UnidentifiedImageError):
        return InvalidInput(
            f"not a readable picture: send one of {', '.join(FORMATS)}"
        )
    reason = str(error)[:120] or type(error).__name__
    return InvalidInput(f"the picture is damaged: {reason}")


def _upright(height: int, width: int, orientation: int) -> tuple[int, int]:
    return (width, height) if orientation in ROTATED else (height, width)


def _reduction(
    image: Image.Image, orientation: int, options: Preprocessing
) -> int:
    """The reduction at which a JPEG may be decoded: 1, 2, 4 or 8."""
    # The median filter is meant for pixels at their original size.
    if not options.dct_scaling or options.denoise:
        return 1
    height, width = _upright(image.height, image.width, orientation)
    shares = options.height / height, options.width / width
    share = min(shares) if options.fit == "pad" else max(shares)
    return next(
        (
            factor
            for factor, margin in MARGINS.items()
            if share * factor * margin <= 1
        ),
        1,
    )


def _decode_jpeg(
    data: Any,
    image: Image.Image,
    orientation: int,
    options: Preprocessing | None,
) -> Pixels | None:
    """Decode a JPEG with libjpeg-turbo in about half of Pillow's time; None where only Pillow
    can.
    """
    reduction = (
        1 if options is None else _reduction(image, orientation, options)
    )
    grey = image.mode == "L" or _reads_grey(options)
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            colorspace="Gray" if grey else "RGB",
            min_height=-(-image.height // reduction),
            min_width=-(-image.width // reduction),
            strict=True,
        )
    except ValueError:
        return None
    return np.asarray(pixels.squeeze(-1) if grey else pixels, np.uint8)


def _reads_grey(options: Preprocessing | None) -> bool:
    """Whether a coloured JPEG may be decoded to grey at once."""
    return (
        options is not None and options.dct_scaling and options.color == "grey"
    )


def _orientation(image: Image.Image) -> int:
    """EXIF's (or XMP's) orientation, 1 when there is none or the metadata are broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(image.getexif().get(0x0112, 1))
    except Exception:
        # Broken metadata raise any error; the pixels may still be readable.
        return 1


def _eight_bits(image: Image.Image) -> Pixels:
    """The pixels of any Pillow mode as grey or RGB; transparency over white, 16 bits scaled to
    8.
    """
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _scaled(np.asarray(image).astype(np.float32), mode)
    if mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if (
        mode in ("LA", "La", "RGBa", "RGBA", "PA")
        or "transparency" in image.info
    ):
        image = image.convert("RGBA")
        over = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return np.asarray(Image.alpha_composite(over, image).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _scaled(values: np.ndarray[Any, Any], mode: str) -> Pixels:
    """Numbers of a mode of more than 8 bits as 0..255, by the largest of them: up to 1, 255 or
    65,535.
    """
    largest = values.max(initial=0)
    top = 255.0 if largest <= 255 and mode == "I" else 65535.0
    scale = 255.0 / (1.0 if mode == "F" and largest <= 1 else top)
    return np.asarray(np.clip(values * scale + 0.5, 0, 255), np.uint8)


def _oriented(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels with an EXIF orientation applied (EXIF 2.32, tag 0x0112)."""
    if orientation in ROTATED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def fingerprint(data: Raw) -> str:
    """The sha256 of the pixels and their shape, which is equal for the same picture in another
    file.
    """
    pixels = read_pixels(data)
    return hashlib.sha256(
        repr(pixels.shape).encode() + pixels.tobytes()
    ).hexdigest()


def is_grey(pixels: Pixels) -> bool:
    """Whether a picture has no colour."""
    return pixels.ndim == 2 or bool((pixels == pixels[:, :, :1]).all())


def decode(data: Raw, options: Preprocessing) -> Pixels:
    """A picture as the model's input, uint8 [height, width, channels]."""
    pixels, (true_height, true_width) = _read(data, options)
    shape = (options.height, options.width, options.channels)
    if not options.denoise and shape in (pixels.shape, (*pixels.shape, 1)):
        return pixels.reshape(shape)
    image = _prepared(Image.fromarray(pixels), options)
    image = _resized(image, true_width / true_height, options)
    return np.asarray(image).reshape(shape)


def _prepared(image: Image.Image, options: Preprocessing) -> Image.Image:
    """A picture in the model's colours, and without noise where that is wanted."""
    mode = "L" if options.color == "grey" else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if options.denoise:
        image = image.filter(ImageFilter.MedianFilter(options.denoise))
    return image


def _resized(
    image: Image.Image, ratio: float, options: Preprocessing
) -> Image.Image:
    """Resize to the model's size; `ratio` is width by height of the original picture."""
    size = (options.width, options.height)
    box: Box = (0.0, 0.0, float(image.width), float(image.height))
    if options.fit == "crop":
        box = _middle(image, ratio, options)
    elif options.fit == "pad":
        size = _padded_size(ratio, options)
    resized = image.resize(size, Image.Resampling.BILINEAR, box=box)
    if size == (options.width, options.height):
        return resized
    padded = Image.new(image.mode, (options.width, options.height))
    left, top = options.width - size[0], options.height - size[1]
    padded.paste(resized, (round(left / 2), round(top / 2)))
    return padded


def _middle(image: Image.Image, ratio: float, options: Preprocessing) -> Box:
    """The largest part in the middle of a picture that has the ratio of the model's sides."""
    target_ratio = options.width / options.height
    width = image.width * min(1.0, target_ratio / ratio)
    height = image.height * min(1.0, ratio / target_ratio)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return left, top, left + width, top + height


def _padded_size(ratio: float, options: Preprocessing) -> tuple[int, int]:
    """Width and height of a whole picture of this ratio in the model's frame."""
    if ratio > options.width / options.height:
        return options.width, max(1, round(options.width / ratio))
    return max(1, round(options.height * ratio)), options.height


class Look(Struct, frozen=True, kw_only=True):
    """Statistics of pictures: median height and width, and whether all are grey."""

    height: int
    width: int
    grey: bool

    def for_model(self, options: Preprocessing) -> tuple[int, int]:
        """Height and width of the model's input for such pictures."""
        return _size([(self.height, self.width)], options)


def look(samples: Sequence[Raw]) -> Look:
    """The statistics of samples: all sizes, colours of some; raises `InvalidInput` for a damaged
    picture.
    """
    sizes = np.median([size_of(sample) for sample in samples], axis=0)
    sampled = samples[:: max(1, len(samples) // COLOUR_SAMPLES)]
    return Look(
        height=int(sizes[0]),
        width=int(sizes[1]),
        grey=all(is_grey(read_pixels(sample)) for sample in sampled),
    )


def prepare(samples: Sequence[Raw], options: Preprocessing) -> Preprocessing:
    """Settings with size, colour, and mean and deviation of each channel taken from the samples."""
    # One picture at a time: a thousand photographs would not fit in memory.
    shapes = [
        (pixels.shape, is_grey(pixels)) for pixels in map(read_pixels, samples)
    ]
    height, width = _size([shape for shape, _ in shapes], options)
    color = options.color
    if color == "auto":
        color = "grey" if all(grey for _, grey in shapes) else "rgb"
    options = msgspec.structs.replace(
        options, height=height, width=width, color=color, dct_scaling=True
    )
    if options.mean and options.std:
        _check_channels(options)
        return options
    mean, std = _statistics(samples, options)
    return msgspec.structs.replace(options, mean=mean, std=std)


def _check_channels(options: Preprocessing) -> None:
    if {len(options.mean), len(options.std)} != {options.channels}:
        raise InvalidInput(
            f"mean and std want {options.channels} values each for {options.color} pictures"
        )


def _statistics(
    samples: Sequence[Raw], options: Preprocessing
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, 0..1, the deviation at least 0.01."""
    total, squares = np.zeros(options.channels), np.zeros(options.channels)
    for sample in samples:
        values = decode(sample, options) / 255
        total += values.mean(axis=(0, 1))
        squares += (values**2).mean(axis=(0, 1))
    mean = total / len(samples)
    std = np.sqrt(np.maximum(squares / len(samples) - mean**2, 0))
    return (
        tuple(round(float(x), 5) for x in mean),
        tuple(max(round(float(x), 5), 0.01) for x in std),
    )


def _size(
    shapes: list[tuple[int, ...]], options: Preprocessing
) -> tuple[int, int]:
    """Height and width of the model's input for pictures of these shapes."""
    if options.height and options.width:
        return options.height, options.width
    height = options.height or int(np.median([shape[0] for shape in shapes]))
    width = options.width or int(np.median([shape[1] for shape in shapes]))
    if (
        options.height
        or options.width
        or max(height, width) <= options.max_side
    ):
        return height, width
    scale = options.max_side / max(height, width)
    return _rounded(height * scale), _rounded(width * scale)


def _rounded(side: float) -> int:
    """The nearest multiple of 8: these halve cleanly in the network."""
    return max(8, round(side / 8) * 8)


def tensor(options: Preprocessing) -> TensorSpec:
    """The model's input: raw pixels, batch first; the network itself normalises."""
    return TensorSpec(
        name="image",
        datatype="UINT8",
        shape=[-1, options.height, options.width, options.channels],
    )


def png(pixels: Pixels) -> bytes:
    """Pixels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(
        pixels.squeeze(-1)
        if pixels.ndim == 3 and pixels.shape[2] == 1
        else pixels
    ).save(buffer, "PNG")
    return buffer.getvalue()


class Placement(NamedTuple):
    """The position of a picture in the model's input, in pixels; beyond it where it was cropped."""

    left: float
    top: float
    width: float
    height: float


def placed(size: tuple[int, int], options: Preprocessing) -> Placement:
    """Where `decode` puts a picture of this height and width."""
    height, width = size
    if options.fit == "stretch":
        return Placement(0, 0, options.width, options.height)
    if (
        options.fit == "crop"
    ):  # as ImageOps.fit: the middle, as large as it can be
        scale = max(options.width / width, options.height / height)
        return _centred(width * scale, height * scale, options)
    return _placed_whole(height, width, options)


def _centred(width: float, height: float, options: Preprocessing) -> Placement:
    left, top = (options.width - width) / 2, (options.height - height) / 2
    return Placement(left, top, width, height)


def _placed_whole(height: int, width: int, options: Preprocessing) -> Placement:
    """In the middle and at whole pixels, as ImageOps.pad."""
    across, down = options.width, options.height
    if width / height > across / down:
        down = round(height / width * across)
    elif width / height < across / down:
        across = round(width / height * down)
    if across != options.width:
        return Placement(round((options.width - across) * 0.5), 0, across, down)
    return Placement(0, round((options.height - down) * 0.5), across, down)
