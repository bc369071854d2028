"""`Item`, an example of a data set, and `Source`, the folder, file or zip that items are read
from.
"""

import gzip
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
"""Bytes of one file that are read at most."""
UNPACKED = 200
"""How many times its size an archive may unpack to; real data reach about 20."""
UNPACKED_BYTES = 1 << 30
"""Bytes that any archive may unpack to, however small it is."""
BOMB = f"the archive unpacks to more than {UNPACKED} times its size: it is refused as a bomb"
SPLITS = ("train", "val", "test")
"""All splits, in the order of their codes."""
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
"""What the libraries of archives raise for damaged content."""
Opener = Callable[[str], Any]


class Box(msgspec.Struct, frozen=True):
    """A bounding box: class and corners in pixels of the upright picture; xmax and ymax are
    excluded.

    `ignored` marks objects that are neither trained on nor counted (VOC's `difficult`, COCO's
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
    """The content of an item, read lazily."""

    data: Data
    target: Target = None
    problem: str = ""


class Item:
    """One example of a data set, as its reader yields it.

    `name` is its path or row, unique in the set; `data` an encoded picture, a recording, a text, or
    decoded pixels (uint8 [H, W] or [H, W, C]); `split` the declared split; `problem` why it can't
    be read, "" if it can. `target` depends on the format's TARGET: for `boxes` a list of `Box`, for
    `mask` an encoded picture of class numbers, for `picture` the encoded target picture, for `text`
    a text, for `texts` a tuple of equally right texts, for `scored` a tuple of the second text and
    the similarity, for `answers` a tuple of (text, offset in the passage). `label` is the class, or
    with a target the class by which splits are balanced, or "".

    Readers of many files make lazy items with `Item.later`: data, target and problem are read on
    first access, while the source is open.
    """

    __slots__ = (
        "_data",
        "_problem",
        "_read",
        "_target",
        "label",
        "name",
        "split",
    )

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
        cls,
        name: str,
        label: str,
        split: str | None,
        read: Callable[[], Content],
    ) -> Self:
        """A lazy item, whose content `read` returns on first access; a `MillError` that it raises
        becomes the problem.
        """
        item = cls(name, label, b"", split)
        item._read = read
        return item

    @property
    def waits(self) -> bool:
        """Whether the content is still to be read."""
        return self._read is not None

    def again(self) -> Self:
        """A copy to read from; this item stays lazy."""
        item = type(self)(
            self.name,
            self.label,
            self._data,
            self.split,
            self._problem,
            self._target,
        )
        item._read = self._read
        return item

    def read(self) -> Self:
        """The item itself with its content read, for use after the source is closed."""
        self._load()
        return self

    @property
    def data(self) -> Data:
        """The input."""
        self._load()
        return self._data

    @property
    def problem(self) -> str:
        """Why it can't be read, or ""."""
        self._load()
        return self._problem

    @problem.setter
    def problem(self, problem: str) -> None:
        self._load()
        self._problem = problem

    @property
    def target(self) -> Target:
        """The expected output, in the form of the format's TARGET."""
        if self._target is None:
            self._load()
        return self._target

    @target.setter
    def target(self, target: Target) -> None:
        self._target = target

    def _load(self) -> None:
        if self._read is None:
            return
        read, self._read = self._read, None
        try:
            content = read()
        except MillError as error:
            self._problem = error.message
            return
        self._data = content.data
        self._problem = content.problem
        if self._target is None:
            self._target = content.target


class Source:
    """The files of a data set by '/'-separated relative `names`, sorted; a context manager."""

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
        """A file for reading from start to end; damage raises `InvalidInput` while it is read, an
        unknown name `NotFound`.
        """
        if name not in self._known:
            raise NotFound(f"'{self.title}' holds no '{name}'")
        with _damage(name):
            return guarded(self._opener(name), name, self._budget)

    def read(self, name: str, limit: int = LIMIT) -> bytes:
        """The bytes of a file; raises `TooLarge` when it is longer than `limit` bytes."""
        with self.open(name) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise TooLarge(f"'{name}' is larger than {limit >> 20} MiB")
        return data

    def item(
        self, name: str, label: str, split: str | None, target: Target = None
    ) -> Item:
        """A file as a lazy item, whose problem says why it can't be read."""
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
    """The source at a path: a folder, a file, a zip, or a folder that holds one zip alone.

    `title` names it in errors (default: the name of the path). Raises `NotFound`, and
    `InvalidInput` for an unsafe or damaged zip, several zips, or no data.
    """
    location, members = locate(path)
    if members is None:
        return _open_zip(location, title or location.name)
    files = view(members)
    _refuse_nothing(title or str(path), files)
    return Source(
        title or path.name,
        list(files),
        lambda name: files[name].open("rb"),
        lambda: None,
    )


def check_options(options: Mapping[str, str], known: Iterable[str]) -> None:
    """Raises `InvalidInput` for an option that a format does not read, with the nearest name."""
    for name in options:
        if name not in known:
            raise unknown_setting(name, known)


def unzipped(source: Source, name: str) -> BinaryIO:
    """A file for reading, unpacked where its name ends in .gz."""
    file = source.open(name)
    return (
        guarded(gzip.GzipFile(fileobj=file), name)
        if name.endswith(".gz")
        else file
    )


def guarded(file: Any, name: str, budget: list[int] | None = None) -> BinaryIO:
    """A readable file that raises `InvalidInput` with its name for any kind of damage; closing it
    closes `file`.

    `budget` holds the bytes that may still be read from all files of an archive; beyond it reading
    raises `TooLarge`.
    """
    return cast(
        "BinaryIO", io.BufferedReader(_Guarded(file, name, budget), 1 << 16)
    )


class _Guarded(io.RawIOBase):
    def __init__(
        self, file: Any, name: str, budget: list[int] | None = None
    ) -> None:
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
                raise TooLarge(BOMB)
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
        if error.errno is None:  # gzip and bz2 raise this for damaged content
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
    return Source(
        title,
        list(files),
        lambda name: archive.open(files[name]),
        archive.close,
        _budget(path),
    )


def _budget(archive: Path) -> int:
    """How many bytes may be read from an archive: twice what it may unpack to, for `detect` of a
    format may read a file before `read` does.
    """
    return 2 * max(UNPACKED_BYTES, UNPACKED * archive.stat().st_size)


def _members(
    path: Path, title: str, infos: list[zipfile.ZipInfo]
) -> dict[str, zipfile.ZipInfo]:
    """The files of a zip by name; raises `InvalidInput` for what no data set needs."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        _check_info(title, info)
        if info.is_dir() or is_junk(info.filename):
            continue
        if info.filename in members:
            raise InvalidInput(f"'{title}' holds '{info.filename}' twice")
        members[info.filename] = info
    _check_overlaps(path, title, members.values())
    return members


def _check_overlaps(
    path: Path, title: str, infos: Iterable[zipfile.ZipInfo]
) -> None:
    """Members that share their bytes make a small file unpack to any size."""
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        raise InvalidInput(f"'{title}' is not a sound zip: its members overlap")


def _check_info(archive: str, info: zipfile.ZipInfo) -> None:
    check_member(archive, info.filename)
    if stat.S_ISLNK(info.external_attr >> 16):
        raise InvalidInput(
            f"'{archive}' holds the link '{info.filename}': put the file itself there"
        )
    if info.flag_bits & 1:
        raise InvalidInput(
            f"'{archive}' is encrypted: send it without a password"
        )


def _refuse_nothing(title: str, files: Mapping[str, object]) -> None:
    if not files:
        raise InvalidInput(
            f"'{title}' holds no data (hidden files, READMEs, licences, links that lead outside "
            "do not count)"
        )
