"""A finished model brought from elsewhere: a bare `model.onnx`, or a zip of a bundle, becomes a
sealed bundle.

So does a model that answers vectors together with the items of an index.

It is opened and tried in this process, so that a file that ends its reader ends a job and not a
gateway.
"""

import shutil
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from modelmill import __version__, bundle
from modelmill.artifacts import sha256_of
from modelmill.cluster.child import Report
from modelmill.data.names import check_member
from modelmill.engines.base import engine_named
from modelmill.errors import BundleCorrupt, InvalidInput, StorageFull, TooLarge
from modelmill.independence import batches
from modelmill.jobs import neighbours
from modelmill.jobs.card import CARD, brought_card
from modelmill.jobs.process import Events, Stop, run
from modelmill.predictor import Predictor
from modelmill.types import JobSpec, Json, Lineage, Manifest

ENGINE = "onnx"
MANIFEST_BYTES = 16 << 20
UNPACKED = 20
"""How many times its size a bundle may unpack to; weights hardly shrink."""
UNPACKED_BYTES = 64 << 20
"""What any bundle may unpack to, however small it is."""
MEMBERS = 10_000
"""Most files of a bundle."""
FREE_BYTES = 64 << 20
"""Room on the disk that unpacking leaves."""


def main(spec: bytes, report: Report) -> int:
    """Entry of the job process."""
    return run(spec, register)


def register(spec: JobSpec, events: Events, stop: Stop) -> Json:
    """Leaves a sealed `bundle` in the job's folder; raises `InvalidInput` for what can't be
    served.
    """
    folder, upload = Path(spec.folder), Path(spec.bundle)
    sealed, draft = folder / "bundle", folder / "bundle.draft"
    if not sealed.exists():
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            events.stage("reading the model")
            manifest = _brought(upload, draft, spec)
            events.stage("trying it")
            tried = _try(draft, manifest, spec.threads)
            if not (draft / CARD).exists():
                (draft / CARD).write_text(brought_card(spec.name, tried), "utf-8")
            bundle.seal(draft, tried, sealed)
        except BaseException:  # what is refused leaves nothing there
            shutil.rmtree(draft, ignore_errors=True)
            raise
    manifest = bundle.open_bundle(sealed)
    return {
        "metrics": manifest.metrics,
        "bundle": bundle.digest_of(sealed),
        "task": manifest.task,
    }


def _brought(upload: Path, draft: Path, spec: JobSpec) -> Manifest:
    """Leaves the files of the model in the draft, whichever way it was brought."""
    if "source" in spec.settings:
        return neighbours.assemble(upload, draft, spec)
    if zipfile.is_zipfile(upload):
        return _unpack(upload, draft)
    return _wrap(upload, draft, spec)


def _try(draft: Path, manifest: Manifest, threads: int) -> Manifest:
    """Open the model, have it answer its golden set, and find out whether calls share batches.

    Raises `InvalidInput`.
    """
    try:
        model = Predictor(draft, manifest, threads)
        model.check_golden()
    except BundleCorrupt as error:
        raise InvalidInput(str(error)) from error
    return msgspec.structs.replace(manifest, batches=batches(model))


def _wrap(upload: Path, draft: Path, spec: JobSpec) -> Manifest:
    """A bare ONNX file as a model without a task: tensors in, tensors out."""
    shutil.copyfile(upload, draft / "model.onnx")
    inputs, outputs = engine_named(ENGINE).signature(draft)
    return Manifest(
        task="",
        engine=ENGINE,
        inputs=inputs,
        outputs=outputs,
        preprocessing={},
        labels=list(spec.settings.get("labels") or []),
        lineage=Lineage(
            dataset="",
            data_digest=sha256_of(upload),
            recipe="",
            settings={},
            seed=0,
            code_version=__version__,
            job=spec.job,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )


def _unpack(upload: Path, draft: Path) -> Manifest:
    """The files that a bundle's manifest names, their digests checked; whatever else the zip holds
    stays there.
    """
    with zipfile.ZipFile(upload) as archive:
        names = {info.filename: info for info in archive.infolist()}
        top = next(
            (
                n[: -len(bundle.MANIFEST)]
                for n in names
                if n.rpartition("/")[2] == bundle.MANIFEST
            ),
            None,
        )
        if top is None or names[top + bundle.MANIFEST].file_size > MANIFEST_BYTES:
            raise InvalidInput(
                f"the zip is not a bundle: it has no {bundle.MANIFEST}; a bare model.onnx needs "
                "no zip"
            )
        try:
            manifest = msgspec.json.decode(
                archive.read(top + bundle.MANIFEST), type=Manifest
            )
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidInput(
                f"the bundle's {bundle.MANIFEST} can't be read: {error}"
            ) from error
        for name in manifest.files:
            check_member("the bundle", name)
            if top + name not in names:
                raise InvalidInput(f"the bundle lacks the file {name}")
        _check_sizes(upload, draft, [names[top + name] for name in manifest.files])
        for name, digest in manifest.files.items():
            target = draft / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(names[top + name]) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            if sha256_of(target) != digest:
                raise InvalidInput(
                    f"the bundle's {name} was changed since it was sealed (sha256 differs)"
                )
    return msgspec.structs.replace(manifest, files={})


def _check_sizes(upload: Path, draft: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse a bomb before any of it is on the disk.

    A zip gives no more of a member than the size that it declares. Raises `InvalidInput`,
    `TooLarge` or `StorageFull`.
    """
    if len(members) > MEMBERS:
        raise TooLarge(
            f"the bundle names {len(members)} files: at most {MEMBERS} are taken"
        )
    unpacked = sum(member.file_size for member in members)
    most = max(UNPACKED_BYTES, UNPACKED * upload.stat().st_size)
    if unpacked > most:
        raise TooLarge(
            f"the bundle unpacks to {unpacked >> 20} MiB: a zip of its size may unpack "
            f"to {most >> 20} MiB"
        )
    room = shutil.disk_usage(draft).free - FREE_BYTES
    if unpacked > room:
        raise StorageFull(
            f"the bundle unpacks to {unpacked >> 20} MiB, and the disk has room for "
            f"{max(room, 0) >> 20} MiB: free some"
        )
