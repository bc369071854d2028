"""A bare `model.onnx`: tensors in, tensors out."""

import shutil
import zipfile
from pathlib import Path

from modelmill.engines.base import engine_named
from modelmill.engines.onnx_file import FILE
from modelmill.importers.base import Importer, Options, bare
from modelmill.types import Manifest


class OnnxImporter(Importer):
    """Any file that is no archive: what is wrong with it, the engine says best."""

    SUMMARY = "a bare model.onnx"
    RANK = 0

    def detect(self, path: Path) -> bool:
        """Everything but archives."""
        return not zipfile.is_zipfile(path)

    def convert(self, path: Path, draft: Path, options: Options) -> Manifest:
        """The file itself, with the inputs and outputs that it names."""
        shutil.copyfile(path, draft / FILE)
        return bare(
            path, "onnx", engine_named("onnx").signature(draft), options
        )


IMPORTER = OnnxImporter()
