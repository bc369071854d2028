"""Which files of a folder or an archive are data, and their names; standard library only."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from modelmill.errors import InvalidInput, NotFound, from_os

Member = TypeVar("Member")

JUNK = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
NOTE = re.compile(
    r"(?:readme|licen[sc]e)[^/]*?(?:\.(?:txt|rst|html|pdf))?|[^/]*\.md",
    re.IGNORECASE,
)
TABLE = re.compile(r".*\.(?:csv|tsv|zip)", re.IGNORECASE)
ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
UNSAFE = re.compile(r"\Z|/|[A-Za-z]:|.*\\|(?:.*/)?\.\.(?:/|$)", re.DOTALL)


def split_of(word: str) -> str | None:
    """The split (train, val, test) that a folder, file or cell names, also by aliases; None if
    none.
    """
    return ALIASES.get(word.strip().lower())


def only_split(words: Iterable[str]) -> str | None:
    """The split that some of these words name; None where none or several are named."""
    splits = {split for word in words if (split := split_of(word))}
    return splits.pop() if len(splits) == 1 else None


def split_of_folders(path: str) -> str | None:
    """The split that the first folder of a '/'-separated path with a split's name tells, or
    None.
    """
    splits = map(split_of, path.split("/"))
    return next((split for split in splits if split), None)


def split_of_file(path: str) -> str | None:
    """The split that the first folder of a file with a split's name tells, or None."""
    return split_of_folders(folder_of(path))


def base_of(path: str) -> str:
    """The last part of a '/'-separated path: the name of the file."""
    return path.rpartition("/")[2]


def folder_of(path: str) -> str:
    """What comes before the name of the file; empty where it is in no folder."""
    return path.rpartition("/")[0]


def top_folder(path: str) -> str:
    """The first folder of a '/'-separated path; empty where the file is in none."""
    return path.partition("/")[0] if "/" in path else ""


def is_junk(name: str) -> bool:
    """Whether a '/'-separated name is hidden or made by an operating system."""
    return any(
        (part.startswith(".") and part != ".") or part in JUNK
        for part in name.split("/")
    )


def is_note(name: str) -> bool:
    """Whether a top-level name is a README, a licence or a Markdown page."""
    return NOTE.fullmatch(name) is not None and TABLE.fullmatch(name) is None


def check_member(archive: str, name: str) -> None:
    """Refuse a member name that could lead out of an archive; raises `InvalidInput`."""
    if UNSAFE.match(name):
        raise InvalidInput(
            f"'{archive}' holds the unsafe name {shown(name)!r}: use relative names with '/', "
            "without '..'"
        )


def view(members: Mapping[str, Member]) -> dict[str, Member]:
    """The members that are data, sorted by name, without a top folder that all of them share."""
    data = {name: member for name, member in members.items() if _is_data(name)}
    if _share_a_folder(data):
        data = {name.partition("/")[2]: member for name, member in data.items()}
    return {name: data[name] for name in sorted(data) if not is_note(name)}


def _is_data(name: str) -> bool:
    return not is_junk(name) and not is_note(name)


def _share_a_folder(names: Iterable[str]) -> bool:
    tops = {top_folder(name) for name in names}
    return len(tops) == 1 and tops != {""}


def locate(path: Path) -> tuple[Path, dict[str, Path] | None]:
    """The data at a path: a zip and None, or the path and its files by name.

    A folder that holds one zip and nothing else stands for that zip. Raises `NotFound`, and
    `InvalidInput` for a folder of several zips.
    """
    if not path.exists():
        raise NotFound(f"there is no file or folder at '{path}'")
    if not path.is_dir():
        return (path, None) if is_zip(path) else (path, {path.name: path})
    files = list_folder(path)
    archive = _only_archive(path, view(files))
    return (archive, None) if archive else (path, files)


def _only_archive(folder: Path, data: Mapping[str, Path]) -> Path | None:
    """The zip that a folder holds, and nothing else; raises `InvalidInput` for several."""
    if not data or not all(name.lower().endswith(".zip") for name in data):
        return None
    if len(data) > 1:
        raise InvalidInput(
            f"'{folder}' holds several archives, pick one of them: "
            f"{', '.join(list(data)[:10])}"
        )
    return next(iter(data.values()))


def is_zip(path: Path) -> bool:
    """Whether a file claims to be a zip, by its name or its first bytes."""
    try:
        with path.open("rb") as file:
            return path.suffix.lower() == ".zip" or file.read(4) in (
                b"PK\x03\x04",
                b"PK\x05\x06",
            )
    except OSError as error:
        raise from_os(error, "reading the data") from error


def list_folder(folder: Path) -> dict[str, Path]:
    """All regular files of a folder that are not junk, by '/'-separated name, without links that
    lead outside.
    """
    root = os.path.realpath(folder)
    try:
        return dict(_walk(folder, "", root, (root,)))
    except OSError as error:
        raise from_os(error, "reading the data") from error


def _walk(
    folder: Path, prefix: str, root: str, parents: tuple[str, ...]
) -> Iterator[tuple[str, Path]]:
    for entry in os.scandir(folder):
        # Names that are not UTF-8 could not travel as JSON.
        name = prefix + os.fsencode(entry.name).decode(
            "utf-8", "backslashreplace"
        )
        real = _real_path(entry, parents[-1])
        if is_junk(name) or os.path.commonpath((real, root)) != root:
            continue
        if entry.is_dir():
            if real not in parents:  # a link to a parent would never end
                yield from _walk(
                    Path(entry.path), f"{name}/", root, (*parents, real)
                )
        elif entry.is_file():
            yield name, Path(entry.path)


def _real_path(entry: os.DirEntry[str], parent: str) -> str:
    """Where an entry of a folder whose real path is `parent` lies, links followed."""
    if entry.is_symlink():
        return os.path.realpath(entry.path)
    return os.path.join(parent, entry.name)


def shown(text: str, limit: int = 160) -> str:
    """A name or value from the data, cut to `limit` characters and printable on one line."""
    cut = text if len(text) <= limit else f"{text[:limit]}…"
    return "".join(
        char if char.isprintable() else f"\\x{ord(char):02x}" for char in cut
    )
