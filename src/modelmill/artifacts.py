"""The artifact store: files and folders kept by the sha256 of their content, never changed once
there.
"""

import hashlib
import os
import shutil
from pathlib import Path

from modelmill.errors import NotFound, from_os

CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Artifacts:
    """A folder of content by digest. Adding is atomic (rename) and adding twice is the same as
    once.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Where the content of a digest lies; raises `NotFound` when it is not here."""
        place = self._place(digest)
        if not place.exists():
            raise NotFound(
                f"artifact {digest[:12]} is missing from {self.root}"
            )
        return place

    def add_file(self, path: Path, digest: str = "") -> str:
        """Move a finished file in; returns its digest, which a caller that knows it already may
        give.
        """
        return self._move(path, digest or sha256_of(path))

    def add_folder(self, folder: Path, digest: str) -> str:
        """Move a finished folder in under the digest that its manifest has; returns the digest."""
        return self._move(folder, digest)

    def remove(self, digest: str) -> None:
        """Forget a file that nothing refers to any more."""
        self._place(digest).unlink(missing_ok=True)

    def _place(self, digest: str) -> Path:
        return self.root / "sha256" / digest[:2] / digest

    def _move(self, path: Path, digest: str) -> str:
        place = self._place(digest)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if path == place:
                return digest
            if not place.exists():
                os.rename(path, place)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise from_os(error, "storing an artifact") from error
        return digest
