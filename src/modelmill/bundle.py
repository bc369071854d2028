"""A model on disk: a folder of files and `manifest.json`, which names every file with its sha256.

A bundle is built in a draft folder; `seal` writes the manifest last and renames the folder into
place, so a half-written bundle can't be seen. `open_bundle` verifies every file before anything
reads it.
"""

import os
from pathlib import Path

import msgspec

from modelmill.artifacts import sha256_of
from modelmill.errors import BundleCorrupt, from_os
from modelmill.types import Manifest

MANIFEST = "manifest.json"


def seal(draft: Path, manifest: Manifest, target: Path) -> str:
    """Finish a draft: digest its files, write the manifest, rename the folder to `target`.

    Returns the bundle's digest (the sha256 of its manifest). Raises `StorageFull` or `MillError`.
    """
    try:
        files = {
            str(path.relative_to(draft)): sha256_of(path)
            for path in _files(draft)
        }
        _write_manifest(draft, msgspec.structs.replace(manifest, files=files))
        os.rename(draft, target)
    except OSError as error:
        raise from_os(error, "writing the bundle") from error
    return digest_of(target)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """The manifest as JSON; it is on disk when this returns."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    with (folder / MANIFEST).open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def digest_of(folder: Path) -> str:
    """The digest of a sealed bundle: that of its manifest, which covers all other files."""
    return sha256_of(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a sealed bundle; raises `BundleCorrupt`."""
    try:
        return msgspec.json.decode(
            (folder / MANIFEST).read_bytes(), type=Manifest
        )
    except FileNotFoundError as error:
        raise BundleCorrupt(
            f"{folder} is not a bundle: it has no {MANIFEST}"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleCorrupt(
            f"the manifest of {folder} can't be read: {error}"
        ) from error


def open_bundle(folder: Path) -> Manifest:
    """The manifest, after every file it names was found unchanged; raises `BundleCorrupt` naming
    the file.
    """
    manifest = read_manifest(folder)
    for name, digest in manifest.files.items():
        _verify(folder, name, digest)
    return manifest


def _verify(folder: Path, name: str, digest: str) -> None:
    try:
        problem = _problem(folder, name, digest)
    except (ValueError, OSError) as error:
        # A name that no file can have, or a file that can't be read.
        raise BundleCorrupt(
            f"{folder}: {name[:80]!r} can't be read: {error}"
        ) from error
    if problem:
        raise BundleCorrupt(problem)


def _problem(folder: Path, name: str, digest: str) -> str:
    """What is wrong with a file of a bundle; empty where it is the one that was sealed."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return (
            f"the manifest of {folder} names a file outside the bundle: {name}"
        )
    if not path.is_file():
        return f"{folder} lacks the file {name}"
    if sha256_of(path) != digest:
        return f"{folder}: {name} was changed since it was written (sha256 differs)"
    return ""


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MANIFEST
    )
