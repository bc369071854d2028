"""Masks of class numbers: the class of each value, and the check of a mask against its picture."""

import functools
import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from modelmill.data.base import Content, Item, Source
from modelmill.data.names import shown
from modelmill.errors import InvalidInput, MillError, TooLarge

IGNORED = 255
"""The class number of pixels that are neither trained on nor counted."""
MAX_PIXELS = 50_000_000
LISTS = ("classes.txt", "labels.txt", "codes.txt")
VOID = frozenset({"void", "unlabelled", "unlabeled", "ignore", "ignored"})
NUMBERED = re.compile(r"(\d+)\s*[\s:,=]\s*(.+)")
SAMPLED = 32
"""Masks that are read to see whether a set uses 0 and 255 for two classes."""
OPTIONS = {
    "classes": "names of the mask values 0, 1, 2, ..., separated by commas; default: classes.txt "
    "of the set",
    "ignore": "mask values that stand for no class, separated by commas; default: 255, and names "
    "such as void",
}

Values = NDArray[np.uint8]


class Classes(msgspec.Struct, frozen=True):
    """The classes of mask values.

    `table` int16 [256] gives each value's class number, `IGNORED`, or -1 for an unknown one;
    `names` are the classes by number, empty where none are declared.
    """

    names: list[str]
    table: NDArray[np.int16]


def classes_of(
    source: Source, options: Mapping[str, str], masks: Sequence[str]
) -> Classes:
    """The classes that the options or a file of the set declare; raises `InvalidInput`."""
    names = _declared(source, options)
    may_be_binary = "ignore" not in options and len(names) in (0, 2)
    if may_be_binary and _black_and_white(source, masks):
        return _two_classes(names or ["background", "foreground"])
    void = {number for number, name in enumerate(names) if name.lower() in VOID}
    return _numbered(names, _ignored(options) | void)


def _two_classes(names: list[str]) -> Classes:
    """The classes of masks in black and white."""
    table = np.full(256, -1, np.int16)
    table[[0, 255]] = 0, 1
    return Classes(names, table)


def _numbered(names: list[str], ignored: set[int]) -> Classes:
    """Classes by the order of their values, without those that are ignored."""
    used = [value for value in range(len(names) or 256) if value not in ignored]
    table = np.full(256, -1, np.int16)
    table[used] = np.arange(len(used))
    table[list(ignored)] = IGNORED
    return Classes([names[value] for value in used] if names else [], table)


def class_names(
    source: Source, classes: Classes, masks: Iterable[str]
) -> list[str]:
    """All classes in order; without declared names `class VALUE` up to the largest value in use.

    Raises `InvalidInput` where there are fewer than two.
    """
    names = classes.names or _names_by_value(source, classes.table, masks)
    if len(names) < 2:
        raise InvalidInput(
            f"the masks of '{source.title}' hold {'one class' if names else 'no class'} only, of "
            "at least 2: "
            "see the options 'classes' and 'ignore'"
        )
    return names


def _names_by_value(
    source: Source, table: NDArray[np.int16], masks: Iterable[str]
) -> list[str]:
    """Names of the classes up to the largest one that masks hold."""
    top = -1
    for mask in masks:
        numbers = table[_unique(source, mask)]
        top = max(top, int(numbers[numbers != IGNORED].max(initial=-1)))
    values = np.flatnonzero((table >= 0) & (table != IGNORED))[: top + 1]
    return [f"class {value}" for value in values.tolist()]


def pair(
    source: Source, picture: str, mask: str, split: str | None, classes: Classes
) -> Item:
    """A picture and its mask as an item, whose problem says what is wrong with either."""
    read = functools.partial(_content, source, picture, mask, classes)
    return Item.later(picture, "", split, read)


def _content(
    source: Source, picture: str, mask: str, classes: Classes
) -> Content:
    data = source.read(picture)
    try:
        target = _target(source.read(mask), upright_size(data), classes)
    except MillError as error:
        return Content(b"", problem=f"its mask {shown(mask)}: {error.message}")
    return Content(data, target)


def values_of(data: bytes) -> Values:
    """The values of a mask file, uint8 [H, W]; raises `InvalidInput` for a file without class
    numbers, `TooLarge` for one of too many pixels.
    """
    try:
        return _decoded(data)
    except (MillError, MemoryError):
        raise
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise TooLarge(f"it claims more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise InvalidInput(
            "it is no PNG, BMP or TIFF file (JPEG would blur class numbers)"
        ) from error
    # each decoder has its own way to say that a file is damaged
    except Exception as error:
        raise InvalidInput(
            f"it is damaged: {str(error)[:120] or type(error).__name__}"
        ) from error


def _decoded(data: bytes) -> Values:
    """The values of a mask file; raises Pillow's errors too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(
            io.BytesIO(data), formats=("PNG", "BMP", "TIFF")
        ) as image:
            _check_pixels(image.width * image.height)
            return _numbers(
                np.asarray(image.convert("L") if image.mode == "LA" else image)
            )


def _check_pixels(pixels: int) -> None:
    """Raises `TooLarge`."""
    if pixels > MAX_PIXELS:
        raise TooLarge(f"it has {pixels:,} pixels; at most {MAX_PIXELS:,}")


def upright_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a picture with EXIF applied; None if it can't be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                rotated = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
                return (
                    (image.width, image.height)
                    if rotated
                    else (image.height, image.width)
                )
    except Exception:  # the check says what is wrong with the picture itself
        return None


def to_png(mask: Values) -> bytes:
    """A mask as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(mask).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _target(
    data: bytes, size: tuple[int, int] | None, classes: Classes
) -> bytes:
    """A mask in class numbers, as a PNG; raises `InvalidInput`."""
    values = values_of(data)
    if size is not None:
        _check_size(values.shape, size)
    numbers = classes.table[values]
    _check_known(values[numbers < 0], len(classes.names))
    return to_png(numbers.astype(np.uint8))


def _check_size(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """Raises `InvalidInput` for a mask that is not of its picture's size."""
    if shape != size:
        raise InvalidInput(
            f"it is {shape[1]}x{shape[0]}, the picture {size[1]}x{size[0]} "
            "(upright): they have to be of one size"
        )


def _check_known(strangers: Values, known: int) -> None:
    """Raises `InvalidInput` where there are values without a class."""
    if strangers.size:
        values = ", ".join(map(str, np.unique(strangers)[:10]))
        raise InvalidInput(
            f"it holds the values {values}, which are no class "
            f"({known} are known) and not ignored: see the options 'classes' and 'ignore'"
        )


def _numbers(pixels: NDArray[Any]) -> Values:
    """Class numbers of an image's pixels; raises `InvalidInput`."""
    if pixels.ndim == 3:
        pixels = _grey(pixels)
    is_float = pixels.dtype.kind == "f"
    is_wide = pixels.dtype.itemsize > 1
    if is_float or (is_wide and (pixels.max() > 255 or pixels.min() < 0)):
        raise InvalidInput(
            f"it holds values up to {pixels.max()}: class numbers are 0 to 255"
        )
    return np.asarray(pixels, np.uint8)


def _grey(pixels: NDArray[Any]) -> NDArray[Any]:
    """The one value of grey pixels [H, W, channels]; raises `InvalidInput` for colours."""
    if not (pixels[..., :3] == pixels[..., :1]).all():
        raise InvalidInput(
            "it is coloured: a mask holds class numbers, as a grey or a palette PNG"
        )
    return pixels[..., 0]


def _declared(source: Source, options: Mapping[str, str]) -> list[str]:
    """Declared names of the values from 0 on; empty without a declaration."""
    if "classes" in options:
        names = [name.strip() for name in options["classes"].split(",")]
        return _distinct("the option 'classes'", names)
    file = next((name for name in LISTS if name in source.names), "")
    if not file:
        return []
    text = source.read(file, 1 << 20).decode("utf-8-sig", "replace")
    return _distinct(f"'{file}'", _listed(text))


def _listed(text: str) -> list[str]:
    """The names of a file of classes, one a line; without their numbers, where all lines have
    theirs.
    """
    lines = [
        stripped for line in text.splitlines() if (stripped := line.strip())
    ]
    matches = [match for line in lines if (match := NUMBERED.fullmatch(line))]
    numbers = [int(match[1][:9]) for match in matches]
    if numbers != list(range(len(lines))):
        return lines
    return [match[2].strip() for match in matches]


def _distinct(file: str, names: list[str]) -> list[str]:
    if not all(names) or len(set(names)) < len(names):
        raise InvalidInput(
            f"{file} holds an empty name, or one twice: each mask value from 0 on wants its own"
        )
    if not 2 <= len(names) <= IGNORED:
        raise InvalidInput(
            f"{file} holds {len(names)} names; 2 to {IGNORED} are possible"
        )
    return names


def _ignored(options: Mapping[str, str]) -> set[int]:
    words = [
        word.strip() for word in options.get("ignore", str(IGNORED)).split(",")
    ]
    if not all(map(_is_mask_value, words)):
        raise InvalidInput(
            f"ignore={options['ignore']:.40}: mask values from 0 to 255 are wanted, such as 0,255"
        )
    return {int(word) for word in words}


def _is_mask_value(word: str) -> bool:
    return word.isdecimal() and len(word) < 4 and int(word) < 256


def _unique(source: Source, mask: str) -> NDArray[np.intp]:
    """Pixel values that occur in a mask; empty if it can't be read (the error is reported where the
    mask is used).
    """
    try:
        return np.flatnonzero(
            np.bincount(values_of(source.read(mask)).ravel(), minlength=256)
        )
    except MillError:
        return np.array([], np.intp)


def _black_and_white(source: Source, masks: Sequence[str]) -> bool:
    """Whether sampled masks hold the values 0 and 255 alone."""
    values: set[int] = set()
    for mask in _sample_of(masks):
        values |= set(_unique(source, mask).tolist())
        if not values <= {0, 255}:
            return False
    return values == {0, 255}


def _sample_of(masks: Sequence[str]) -> list[str]:
    """Some masks, evenly spaced."""
    places = np.linspace(0, len(masks) - 1, min(SAMPLED, len(masks))).astype(
        int
    )
    return [masks[at] for at in places]
