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
    is_binary = (
        "ignore" not in options
        and len(names) in (0, 2)
        and _black_and_white(source, masks)
    )
    if is_binary:
        table = np.full(256, -1, np.int16)
        table[[0, 255]] = 0, 1
        return Classes(names or ["background", "foreground"], table)
    void = {number for number, name in enumerate(names) if name.lower() in VOID}
    ignored = _ignored(options) | void
    used = [value for value in range(len(names) or 256) if value not in ignored]
    table = np.full(256, -1, np.int16)
    table[used] = np.arange(len(used))
    table[list(ignored)] = IGNORED
    return Classes([names[value] for value in used] if names else [], table)


def class_names(source: Source, classes: Classes, masks: Iterable[str]) -> list[str]:
    """All classes in order; without declared names `class VALUE` up to the largest value in use.

    Raises `InvalidInput` where there are fewer than two.
    """
    names = classes.names
    if not names:
        top = -1
        for mask in masks:
            numbers = classes.table[_unique(source, mask)]
            top = max(top, int(numbers[numbers != IGNORED].max(initial=-1)))
        values = np.flatnonzero((classes.table >= 0) & (classes.table != IGNORED))[
            : top + 1
        ]
        names = [f"class {value}" for value in values.tolist()]
    if len(names) < 2:
        raise InvalidInput(
            f"the masks of '{source.title}' hold {'one class' if names else 'no class'} only, of "
            "at least 2: "
            "see the options 'classes' and 'ignore'"
        )
    return names


def pair(
    source: Source, picture: str, mask: str, split: str | None, classes: Classes
) -> Item:
    """A picture and its mask as an item, whose problem says what is wrong with either."""
    read = functools.partial(_content, source, picture, mask, classes)
    return Item.later(picture, "", split, read)


def _content(source: Source, picture: str, mask: str, classes: Classes) -> Content:
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG", "BMP", "TIFF")) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise TooLarge(
                        f"it has {image.width * image.height:,} pixels; at most {MAX_PIXELS:,}"
                    )
                return _numbers(
                    np.asarray(image.convert("L") if image.mode == "LA" else image)
                )
    except (MillError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"it claims more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise InvalidInput(
            "it is no PNG, BMP or TIFF file (JPEG would blur class numbers)"
        ) from error
    except (
        Exception
    ) as error:  # each decoder has its own way to say that a file is damaged
        raise InvalidInput(
            f"it is damaged: {str(error)[:120] or type(error).__name__}"
        ) from error


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


def _target(data: bytes, size: tuple[int, int] | None, classes: Classes) -> bytes:
    """A mask in class numbers, as a PNG; raises `InvalidInput`."""
    values = values_of(data)
    if size is not None and values.shape != size:
        raise InvalidInput(
            f"it is {values.shape[1]}x{values.shape[0]}, the picture {size[1]}x{size[0]} "
            "(upright): "
            "they have to be of one size"
        )
    numbers = classes.table[values]
    if (unknown := np.unique(values[numbers < 0])).size:
        raise InvalidInput(
            f"it holds the values {', '.join(map(str, unknown[:10]))}, which are no class "
            f"({len(classes.names)} are known) and not ignored: see the options 'classes' and "
            "'ignore'"
        )
    return to_png(numbers.astype(np.uint8))


def _numbers(pixels: NDArray[Any]) -> Values:
    if pixels.ndim == 3:
        if not (pixels[..., :3] == pixels[..., :1]).all():
            raise InvalidInput(
                "it is coloured: a mask holds class numbers, as a grey or a palette PNG"
            )
        pixels = pixels[..., 0]
    if pixels.dtype.kind == "f" or (
        pixels.dtype.itemsize > 1 and (pixels.max() > 255 or pixels.min() < 0)
    ):
        raise InvalidInput(
            f"it holds values up to {pixels.max()}: class numbers are 0 to 255"
        )
    return np.asarray(pixels, np.uint8)


def _declared(source: Source, options: Mapping[str, str]) -> list[str]:
    """Declared names of the values from 0 on; empty without a declaration."""
    if "classes" in options:
        return _distinct(
            "the option 'classes'",
            [name.strip() for name in options["classes"].split(",")],
        )
    file = next((name for name in LISTS if name in source.names), "")
    if not file:
        return []
    lines = [
        line.strip()
        for line in source.read(file, 1 << 20)
        .decode("utf-8-sig", "replace")
        .splitlines()
    ]
    lines = [line for line in lines if line]
    matches = [NUMBERED.fullmatch(line) for line in lines]
    if lines and all(
        part is not None and int(part[1][:9]) == at for at, part in enumerate(matches)
    ):
        lines = [part[2].strip() for part in matches if part is not None]
    return _distinct(f"'{file}'", lines)


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
    words = [word.strip() for word in options.get("ignore", str(IGNORED)).split(",")]
    if not all(
        word.isdecimal() and len(word) < 4 and int(word) < 256 for word in words
    ):
        raise InvalidInput(
            f"ignore={options['ignore']:.40}: mask values from 0 to 255 are wanted, such as 0,255"
        )
    return {int(word) for word in words}


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
    chosen = [
        masks[at]
        for at in np.linspace(0, len(masks) - 1, min(SAMPLED, len(masks))).astype(int)
    ]
    values: set[int] = set()
    for mask in chosen:
        values |= set(_unique(source, mask).tolist())
        if not values <= {0, 255}:
            return False
    return values == {0, 255}
