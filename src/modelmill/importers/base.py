"""The contract of an importer: a model as somebody else wrote it becomes the files of a bundle.

An importer is a module `importers/<name>.py` with an instance of a subclass of `Importer`,
`IMPORTER`.
"""

from abc import ABC, abstractmethod
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from modelmill import __version__, plugins
from modelmill.artifacts import sha256_of
from modelmill.engines.base import Signature
from modelmill.errors import InvalidInput
from modelmill.types import Lineage, Manifest, Struct


class Options(Struct, frozen=True, kw_only=True):
    """What was said with the file: the names of the classes, in order, and whether its sender
    vouches that it may run code.
    """

    labels: list[str] = msgspec.field(default_factory=list)
    trust: bool = False
    job: int = 0


class Importer(ABC):
    """Models of one kind of file."""

    SUMMARY: str
    """What it takes, for people: a file, or a folder as a zip."""
    RANK: int = 1
    """Where several importers fit, the highest is meant."""

    @abstractmethod
    def detect(self, path: Path) -> bool:
        """Whether a file looks like one of these; cheap, and runs nothing that is in it."""

    @abstractmethod
    def convert(self, path: Path, draft: Path, options: Options) -> Manifest:
        """Leave the files of the model in a draft of a bundle.

        A model without a task takes and gives tensors (`bare`). Raises `InvalidInput` saying what
        can't be served and what could, and `NotInstalled`.
        """


def importer_named(name: str) -> Importer:
    """The importer; raises `NotFound` naming those that exist, `InvalidInput` for a plugin that is
    none.
    """
    importer = getattr(plugins.load("importers", name), "IMPORTER", None)
    if not isinstance(importer, Importer):
        raise InvalidInput(
            f"the plugin '{name}' is not an importer: its module needs IMPORTER, an instance of a "
            "subclass of modelmill.importers.base.Importer"
        )
    return importer


def importer_for(path: Path) -> Importer:
    """The importer of the highest rank that takes a file; raises `InvalidInput` saying what can be
    brought.
    """
    found = [importer_named(name) for name in plugins.names("importers")]
    for importer in sorted(found, key=lambda one: -one.RANK):
        if importer.detect(path):
            return importer
    raise InvalidInput(
        "nothing here reads this file; a model can be brought as "
        f"{'; '.join(one.SUMMARY for one in found)}"
    )


def check_trust(options: Options, what: str) -> None:
    """Raises `InvalidInput` where a file may run code and nobody vouches for it."""
    if not options.trust:
        raise InvalidInput(
            f"{what} may run code while it is opened: bring it with --trust (SDK and REST: trust) "
            "if you trust where it comes from"
        )


def bare(
    path: Path, engine: str, signature: Signature, options: Options
) -> Manifest:
    """The manifest of a model without a task: tensors in, tensors out."""
    inputs, outputs = signature
    return Manifest(
        task="",
        engine=engine,
        inputs=inputs,
        outputs=outputs,
        preprocessing={},
        labels=options.labels,
        lineage=Lineage(
            dataset="",
            data_digest=sha256_of(path),
            recipe="",
            settings={},
            seed=0,
            code_version=__version__,
            job=options.job,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
