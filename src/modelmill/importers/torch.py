"""A bare `model.pt2` of `torch.export.save`: tensors in, tensors out."""

import shutil
import zipfile
from pathlib import Path

from modelmill.data.names import base_of
from modelmill.engines.base import engine_named
from modelmill.engines.torch import FILE
from modelmill.importers.base import Importer, Options, bare, check_trust
from modelmill.types import Manifest

MARKS = ("archive_format", "serialized_exported_program.json")
"""A member of the zip that this torch writes, and one that versions before 2.8 wrote."""


class TorchImporter(Importer):
    """Zips that hold an exported program."""

    SUMMARY = "a model.pt2 of torch.export.save"
    RANK = 1

    def detect(self, path: Path) -> bool:
        """By the names in the zip."""
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(base_of(name) in MARKS for name in archive.namelist())

    def convert(self, path: Path, draft: Path, options: Options) -> Manifest:
        """The file itself, with the inputs and outputs of the program."""
        check_trust(options, f"a {FILE} of torch.export")
        shutil.copyfile(path, draft / FILE)
        return bare(
            path, "torch", engine_named("torch").signature(draft), options
        )


IMPORTER = TorchImporter()
