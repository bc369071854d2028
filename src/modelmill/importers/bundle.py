"""A bundle that this platform, or another one, has made: a zip of its folder."""

import shutil
import zipfile
from pathlib import Path

import msgspec

from modelmill import bundle
from modelmill.artifacts import sha256_of
from modelmill.data.names import check_member
from modelmill.errors import InvalidInput, StorageFull, TooLarge
from modelmill.importers.base import Importer, Options
from modelmill.types import Manifest

MANIFEST_BYTES = 16 << 20
UNPACKED = 20
"""How many times its size a bundle may unpack to; weights hardly shrink."""
UNPACKED_BYTES = 64 << 20
"""What any bundle may unpack to, however small it is."""
MEMBERS = 10_000
"""Most files of a bundle."""
FREE_BYTES = 64 << 20
"""Room on the disk that unpacking leaves."""


class BundleImporter(Importer):
    """Any zip that no other importer knows: what is missing in it is said."""

    SUMMARY = "a bundle as a folder or a zip"
    RANK = 0

    def detect(self, path: Path) -> bool:
        """Any zip."""
        return zipfile.is_zipfile(path)

    def convert(self, path: Path, draft: Path, options: Options) -> Manifest:
        """The files that the manifest names, their digests checked; whatever else the zip holds
        stays there.
        """
        with zipfile.ZipFile(path) as archive:
            top, manifest = _manifest_in(archive)
            members = _members(archive, top, manifest)
            _check_sizes(path, draft, list(members.values()))
            for name, digest in manifest.files.items():
                _unpack(archive, members[name], draft / name)
                if sha256_of(draft / name) != digest:
                    raise InvalidInput(
                        f"the bundle's {name} was changed since it was sealed (sha256 differs)"
                    )
        return msgspec.structs.replace(manifest, files={})


def _manifest_in(archive: zipfile.ZipFile) -> tuple[str, Manifest]:
    """The first manifest in a zip, and before it its folder: empty, or with a slash at its end.

    Raises `InvalidInput`.
    """
    for member in _infos(archive).values():
        folder, slash, name = member.filename.rpartition("/")
        if name == bundle.MANIFEST:
            return folder + slash, _manifest(archive, member)
    raise _no_bundle()


def _no_bundle() -> InvalidInput:
    return InvalidInput(
        f"the zip is not a bundle: it has no {bundle.MANIFEST}; a bare model.onnx "
        "needs no zip"
    )


def _infos(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by name: of several with one name the last counts."""
    return {info.filename: info for info in archive.infolist()}


def _manifest(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Manifest:
    if member.file_size > MANIFEST_BYTES:
        raise _no_bundle()
    try:
        return msgspec.json.decode(archive.read(member), type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"the bundle's {bundle.MANIFEST} can't be read: {error}"
        ) from error


def _members(
    archive: zipfile.ZipFile, top: str, manifest: Manifest
) -> dict[str, zipfile.ZipInfo]:
    """The files of a manifest in a zip; raises `InvalidInput` for an unsafe name, or one that is
    missing.
    """
    infos = _infos(archive)
    for name in manifest.files:
        check_member("the bundle", name)
        if top + name not in infos:
            raise InvalidInput(f"the bundle lacks the file {name}")
    return {name: infos[top + name] for name in manifest.files}


def _unpack(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def _check_sizes(
    path: Path, draft: Path, members: list[zipfile.ZipInfo]
) -> None:
    """Refuse a bomb before any of it is on the disk.

    A zip gives no more of a member than the size that it declares. Raises `InvalidInput`,
    `TooLarge` or `StorageFull`.
    """
    if len(members) > MEMBERS:
        raise TooLarge(
            f"the bundle names {len(members)} files: at most {MEMBERS} are taken"
        )
    unpacked = sum(member.file_size for member in members)
    most = max(UNPACKED_BYTES, UNPACKED * path.stat().st_size)
    if unpacked > most:
        raise TooLarge(
            f"the bundle unpacks to {unpacked >> 20} MiB: a zip of its size may unpack "
            f"to {most >> 20} MiB"
        )
    _check_room(draft, unpacked)


def _check_room(draft: Path, size: int) -> None:
    """Raises `StorageFull`."""
    room = shutil.disk_usage(draft).free - FREE_BYTES
    if size > room:
        raise StorageFull(
            f"the bundle unpacks to {size >> 20} MiB, and the disk has room for "
            f"{max(room, 0) >> 20} MiB: free some"
        )


IMPORTER = BundleImporter()
