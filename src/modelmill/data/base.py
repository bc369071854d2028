"""An item of a data set, and the source that a reader reads items from: a folder, a file or a
zip.
"""

import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelmill.data.names import check_member, is_junk, locate, view
from modelmill.errors import (
    InvalidInput,
    MillError,
    NotFound,
    TooLarge,
    from_os,
    unknown_setting,
)

LIMIT = 64 << 20
UNPACKED = 200
"""How many times its size an archive may unpack to; real data reach about 20."""
UNPACKED_BYTES = 1 << 30
"""What any archive may unpack to, however small it is."""
SPLITS = ("train", "val", "test")
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,
    LookupError,
)
Opener = Callable[[str], Any]


class Box(msgspec.Struct, frozen=True):
    """An object in a picture: its class and its corners in pixels of the upright picture, the far
    ones excluded.

    `ignored` marks what is there but neither trained on nor counted (VOC's `difficult`, COCO's
    crowds).
    """

    label: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    ignored: bool = False


Data = bytes | str | NDArray[np.uint8]
Target = list[Box] | tuple[Any, ...] | bytes | str | None


class Content(NamedTuple):
    """What a reader finds of an item when it is asked for it."""

    data: Data
    target: Target = None
    problem: str = ""


class Item:
    """One example as a reader found it.

    `name` is its path or row, unique in the set; `data` an encoded picture, a text, or decoded
    pixels (uint8 [H, W] or [H, W, C]); `split` what the set declares; `problem` why the reader
    could not read it. `target` is what the format's TARGET says: for `boxes` a list of `Box`, for
    `mask` the mask as an encoded picture of class numbers, for `picture` the encoded picture that
    should come out, for `text` a text, for `texts` a tuple of them that are equally right, for
    `scored` a tuple of a text and how alike it is, for `answers` a tuple of (text, place in the
    passage); `label` is then the class that the splits are balanced by, or "".

    A reader that passes over many files makes items with `Item.later`: their data, target and
    problem are read when one of them is first asked for, while the source is open.
    """

    __slots__ = ("_data", "_problem", "_read", "_target", "label", "name", "split")

    def __init__(
        self,
        name: str,
        label: str,
        data: Data,
        split: str | None = None,
        problem: str = "",
        target: Target = None,
    ) -> None:
        self.name = name
        self.label = label
        self.split = split
        self._data = data
        self._problem = problem
        self._target = target
        self._read: Callable[[], Content] | None = None

    @classmethod
    def later(
        cls, name: str, label: str, split: str | None, read: Callable[[], Content]
    ) -> Self:
        """An item whose content `read` finds when it is asked for; a `MillError` that it raises
        becomes the problem.
        """
        item = cls(name, label, b"", split)
        item._read = read
        return item

    @property
    def waits(self) -> bool:
        """Whether the content has not been read yet."""
        return self._read is not None

    def again(self) -> Self:
        """The item as it is now, to read from; this one keeps waiting."""
        item = type(self)(
            self.name, self.label, self._data, self.split, self._problem, self._target
        )
        item._read = self._read
        return item

    def read(self) -> Self:
        """The item itself, its content read: for use after the source is closed."""
        self._load()
        return self

    @property
    def data(self) -> Data:
        """What a model is asked about."""
        self._load()
        return self._data

    @property
    def problem(self) -> str:
        """Why the reader could not read it, or nothing."""
        self._load()
        return self._problem

    @problem.setter
    def problem(self, said: str) -> None:
        self._load()
        self._problem = said

    @property
    def target(self) -> Target:
        """What a model should answer."""
        if self._target is None:
            self._load()
        return self._target

    @target.setter
    def target(self, wanted: Target) -> None:
        self._target = wanted

    def _load(self) -> None:
        if self._read is None:
            return
        read, self._read = self._read, None
        try:
            found = read()
        except MillError as error:
            self._problem = error.message
            return
        self._data = found.data
        self._problem = found.problem
        if self._target is None:
            self._target = found.target


class Source:
    """Files under '/'-separated relative `names`, sorted; a context manager."""

    def __init__(
        self,
        title: str,
        names: list[str],
        opener: Opener,
        close: Callable[[], None],
        budget: int | None = None,
    ) -> None:
        self._budget = None if budget is None else [budget]
        self.title = title
        self.names = names
        self._known = frozenset(names)
        self._opener = opener
        self._close = close

    def open(self, name: str) -> BinaryIO:
        """A file to read from start to end; a damaged one raises `InvalidInput` while it is
        read.
        """
        if name not in self._known:
            raise NotFound(f"'{self.title}' holds no '{name}'")
        with _damage(name):
            return guarded(self._opener(name), name, self._budget)

    def read(self, name: str, limit: int = LIMIT) -> bytes:
        """A whole file; raises `TooLarge` once it proves longer than `limit` bytes."""
        with self.open(name) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise TooLarge(f"'{name}' is larger than {limit >> 20} MiB")
        return data

    def item(
        self, name: str, label: str, split: str | None, target: Target = None
    ) -> Item:
        """A file as an item, read when it is asked for; its problem says why it can't be read."""
        item = Item.later(name, label, split, lambda: Content(self.read(name)))
        item.target = target
        return item

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the archive, when it is one."""
        self._close()


def open_source(path: Path, title: str = "") -> Source:
    """The data at a path: a folder, a file, a zip, or a folder that holds nothing but one zip.

    `title` is what errors call it; its name when not given.

    Raises `NotFound`, and `InvalidInput` for an unsafe or damaged zip, several zips, or no data at
    all.
    """
    place, found = locate(path)
    if found is None:
        return _open_zip(place, title or place.name)
    files = view(found)
    _refuse_nothing(title or str(path), files)
    return Source(
        title or path.name,
        list(files),
        lambda name: files[name].open("rb"),
        lambda: None,
    )


def check_options(options: Mapping[str, str], known: Iterable[str]) -> None:
    """Refuse an option that a format does not read; raises `InvalidInput`."""
    for name in options:
        if name not in known:
            raise unknown_setting(name, known)


def guarded(file: Any, name: str, budget: list[int] | None = None) -> BinaryIO:
    """A readable file whose every kind of damage is an `InvalidInput` naming it; closing closes
    both.

    `budget` holds how many bytes may still be read from all files of an archive; past it,
    `TooLarge`.
    """
    return cast("BinaryIO", io.BufferedReader(_Guarded(file, name, budget), 1 << 16))


class _Guarded(io.RawIOBase):
    def __init__(self, file: Any, name: str, budget: list[int] | None = None) -> None:
        self._file = file
        self._name = name
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _damage(self._name):
            data = self._file.read(len(buffer))
        if self._budget is not None:
            self._budget[0] -= len(data)
            if self._budget[0] < 0:
                raise TooLarge(
                    f"the archive unpacks to more than {UNPACKED} times its size: it is refused "
                    "as a bomb"
                )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _damage(name: str) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise InvalidInput(f"'{name}' is damaged: {error}") from error
    except OSError as error:
        if error.errno is None:  # what gzip and bz2 raise for content that is wrong
            raise InvalidInput(f"'{name}' is damaged: {error}") from error
        raise from_os(error, f"reading '{name}'") from error


def _open_zip(path: Path, title: str) -> Source:
    with _damage(title):
        archive = zipfile.ZipFile(path)
    try:
        files = view(_members(path, title, archive.infolist()))
        _refuse_nothing(title, files)
    except BaseException:
        archive.close()
        raise
    budget = 2 * max(
        UNPACKED_BYTES, UNPACKED * path.stat().st_size
    )  # a reader may look at a file before it reads it
    return Source(
        title,
        list(files),
        lambda name: archive.open(files[name]),
        archive.close,
        budget,
    )


def _members(
    path: Path, title: str, infos: list[zipfile.ZipInfo]
) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        _check_info(title, info)
        if info.is_dir() or is_junk(info.filename):
            continue
        if info.filename in members:
            raise InvalidInput(f"'{title}' holds '{info.filename}' twice")
        members[info.filename] = info
    # Members that share their bytes make a small file unpack to any size.
    if sum(info.compress_size for info in members.values()) > path.stat().st_size:
        raise InvalidInput(f"'{title}' is not a sound zip: its members overlap")
    return members


def _check_info(archive: str, info: zipfile.ZipInfo) -> None:
    check_member(archive, info.filename)
    if stat.S_ISLNK(info.external_attr >> 16):
        raise InvalidInput(
            f"'{archive}' holds the link '{info.filename}': put the file itself there"
        )
    if info.flag_bits & 1:
        raise InvalidInput(f"'{archive}' is encrypted: send it without a password")


def _refuse_nothing(title: str, files: Mapping[str, object]) -> None:
    if not files:
        raise InvalidInput(
            f"'{title}' holds no data (hidden files, READMEs, licences, links that lead outside "
            "do not count)"
        )
