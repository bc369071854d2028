"""Pictures in, pixels out: the decoding that all vision tasks share."""

import hashlib
import io
import warnings
from collections.abc import Sequence
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
    ImageOps,
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
BACKGROUND = (255, 255, 255)  # what shows through a transparent pixel

# Pillow refuses twice this number while it reads a header; our own check below refuses the rest.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class Preprocessing(Struct, frozen=True, kw_only=True):
    """How a picture becomes pixels of a fixed shape; travels in the manifest."""

    height: Annotated[int, msgspec.Meta(ge=0, le=4096, description="pixels; 0: from the data")] = 0
    width: Annotated[int, msgspec.Meta(ge=0, le=4096, description="pixels; 0: from the data")] = 0
    max_side: Annotated[
        int, msgspec.Meta(ge=8, le=4096, description="longest side when the size is taken from the data")
    ] = 64
    color: Annotated[
        Literal["auto", "grey", "rgb"], msgspec.Meta(description="auto: grey if all training pictures are")
    ] = "auto"
    fit: Annotated[
        Literal["stretch", "crop", "pad"],
        msgspec.Meta(description="how another aspect ratio is fitted: stretch, centre crop, or pad"),
    ] = "stretch"
    denoise: Annotated[Literal[0, 3, 5], msgspec.Meta(description="side of the median filter in pixels; 0: none")] = 0
    mean: Annotated[tuple[float, ...], msgspec.Meta(description="per channel, 0..1; from the data")] = ()
    std: Annotated[tuple[float, ...], msgspec.Meta(description="per channel, 0..1; from the data")] = ()

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that do not go together."""
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std go together: give both, or neither to take them from the data")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return 1 if self.color == "grey" else 3


def read_pixels(data: Raw) -> Pixels:
    """Any supported picture, upright, as uint8 [H, W] or [H, W, 3]; the first frame of an animation.

    Raises `InvalidInput` for what is no picture or is damaged, `TooLarge` past `MAX_PIXELS`.
    """
    if isinstance(data, np.ndarray):
        return _checked(data)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidInput("a picture is wanted as the bytes of an image file (PNG, JPEG, WebP, ...)")
    if not data:
        raise InvalidInput("the picture is empty (0 bytes)")
    try:
        return _decoded(bytes(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the picture claims more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise InvalidInput(f"not a readable picture: send one of {', '.join(FORMATS)}") from error
    except (MillError, MemoryError):
        raise
    except Exception as error:  # each of a dozen decoders has its own way to say that a file is damaged
        raise InvalidInput(f"the picture is damaged: {str(error)[:120] or type(error).__name__}") from error


def _checked(pixels: Any) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise InvalidInput(f"pixels are uint8 [H, W] or [H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
    if pixels.size == 0:
        raise InvalidInput("the picture is empty (0 pixels)")
    return np.asarray(pixels)


def _decoded(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise TooLarge(f"the picture has {image.width * image.height:,} pixels; at most {MAX_PIXELS:,}")
        turn = _orientation(image)
        pixels = _turbo(data, image) if image.format == "JPEG" and image.mode in ("L", "RGB") else None
        if pixels is None:
            image.load()
            pixels = _eight_bits(image)
        return _turned(pixels, turn)


def read_opacity(data: bytes) -> Pixels | None:
    """How opaque each pixel of a picture that `read_pixels` has read is, upright [H, W]; None where nothing says it."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return None
        turn = _orientation(image)
        return _turned(np.asarray(image.convert("RGBA").getchannel("A")), turn)


def _turbo(data: bytes, image: Image.Image) -> Pixels | None:
    """An ordinary JPEG in about half of Pillow's time; None when it has an oddity for Pillow to judge."""
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="Gray" if image.mode == "L" else "RGB", strict=True)
    except ValueError:
        return None
    return np.asarray(pixels.squeeze(-1) if image.mode == "L" else pixels, np.uint8)


def _orientation(image: Image.Image) -> int:
    """EXIF's (or XMP's) orientation, 1 when there is none or the metadata are broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata raise whatever they like; the pixels may still be fine
        return 1


def _eight_bits(image: Image.Image) -> Pixels:
    """The pixels of any Pillow mode as grey or RGB; transparency over white, 16 bits scaled to 8."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image).astype(np.float32)
        top = 255.0 if values.max(initial=0) <= 255 and mode == "I" else 65535.0
        scale = 255.0 / (1.0 if mode == "F" and values.max(initial=0) <= 1 else top)
        return np.asarray(np.clip(values * scale + 0.5, 0, 255), np.uint8)
    if mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if mode in ("LA", "La", "RGBa", "RGBA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        over = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return np.asarray(Image.alpha_composite(over, image).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels as they should be seen (EXIF 2.32, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def fingerprint(data: Raw) -> str:
    """The sha256 of the pixels and their shape: the same picture in another file is the same picture."""
    pixels = read_pixels(data)
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def is_grey(pixels: Pixels) -> bool:
    """Whether a picture has no colour."""
    return pixels.ndim == 2 or bool((pixels == pixels[:, :, :1]).all())


def decode(data: Raw, how: Preprocessing) -> Pixels:
    """One picture as uint8 [height, width, channels], as the model wants it."""
    pixels = read_pixels(data)
    shape = (how.height, how.width, how.channels)
    if not how.denoise and shape in (pixels.shape, (*pixels.shape, 1)):
        return pixels.reshape(shape)
    image = Image.fromarray(pixels).convert("L" if how.color == "grey" else "RGB")
    if how.denoise:
        image = image.filter(ImageFilter.MedianFilter(how.denoise))
    size = (how.width, how.height)
    if how.fit == "crop":
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    elif how.fit == "pad":
        image = ImageOps.pad(image, size, Image.Resampling.BILINEAR)
    elif image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(how.height, how.width, how.channels)


def prepare(samples: Sequence[Raw], how: Preprocessing) -> Preprocessing:
    """Fill in what is left to the data: size, colour, and the mean and deviation of each channel."""
    # One picture at a time: a thousand photographs would not fit in memory.
    seen = [(pixels.shape, is_grey(pixels)) for pixels in map(read_pixels, samples)]
    height, width = _size([shape for shape, _ in seen], how)
    color = how.color if how.color != "auto" else ("grey" if all(grey for _, grey in seen) else "rgb")
    how = msgspec.structs.replace(how, height=height, width=width, color=color)
    if how.mean and how.std:
        if {len(how.mean), len(how.std)} != {how.channels}:
            raise InvalidInput(f"mean and std want {how.channels} values each for {how.color} pictures")
        return how
    total, squares = np.zeros(how.channels), np.zeros(how.channels)
    for sample in samples:
        values = decode(sample, how) / 255
        total += values.mean(axis=(0, 1))
        squares += (values**2).mean(axis=(0, 1))
    mean = total / len(samples)
    std = np.sqrt(np.maximum(squares / len(samples) - mean**2, 0))
    return msgspec.structs.replace(
        how,
        mean=tuple(round(float(x), 5) for x in mean),
        std=tuple(max(round(float(x), 5), 0.01) for x in std),
    )


def _size(shapes: list[tuple[int, ...]], how: Preprocessing) -> tuple[int, int]:
    if how.height and how.width:
        return how.height, how.width
    height = how.height or int(np.median([shape[0] for shape in shapes]))
    width = how.width or int(np.median([shape[1] for shape in shapes]))
    if not (how.height or how.width) and max(height, width) > how.max_side:
        scale = how.max_side / max(height, width)
        # Multiples of 8 halve cleanly in the network.
        height, width = (max(8, round(side * scale / 8) * 8) for side in (height, width))
    return height, width


def tensor(how: Preprocessing) -> TensorSpec:
    """The model's input: raw pixels, batch first; the network itself normalises."""
    return TensorSpec(name="image", datatype="UINT8", shape=[-1, how.height, how.width, how.channels])


def png(pixels: Pixels) -> bytes:
    """Pixels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Placement(NamedTuple):
    """Where a picture lies in the model's frame, in the frame's pixels; beyond the frame, where it was cropped."""

    left: float
    top: float
    width: float
    height: float


def upright_size(data: Raw) -> tuple[int, int]:
    """Height and width of a picture as it should be seen, from its header alone; raises as `read_pixels`."""
    if not isinstance(data, bytes | bytearray | memoryview) or not data:
        height, width = read_pixels(data).shape[:2]
        return height, width
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            size = image.height, image.width
            return size[::-1] if _orientation(image) in (5, 6, 7, 8) else size
    except Exception:  # what is wrong is said where the whole picture is read
        height, width = read_pixels(data).shape[:2]
        return height, width


def placed(size: tuple[int, int], how: Preprocessing) -> Placement:
    """Where `decode` puts a picture of this height and width."""
    height, width = size
    if how.fit == "stretch":
        return Placement(0, 0, how.width, how.height)
    if how.fit == "crop":  # as ImageOps.fit: the middle, as large as it can be
        scale = max(how.width / width, how.height / height)
        across, down = width * scale, height * scale
        return Placement((how.width - across) / 2, (how.height - down) / 2, across, down)
    # as ImageOps.pad: whole pixels
    across, down = how.width, how.height
    if width / height > how.width / how.height:
        down = round(height / width * how.width)
    elif width / height < how.width / how.height:
        across = round(width / height * how.height)
    if across != how.width:
        return Placement(round((how.width - across) * 0.5), 0, across, down)
    return Placement(0, round((how.height - down) * 0.5), across, down)
