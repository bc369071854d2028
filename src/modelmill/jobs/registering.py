"""A finished model brought from elsewhere becomes a sealed bundle; what the file is says which
importer reads it.

So does a model that answers vectors together with the items of an index.

It is opened and tried in this process, so that a file that ends its reader ends a job and not a
gateway.
"""

import shutil
from pathlib import Path

import msgspec

from modelmill import bundle
from modelmill.errors import BundleCorrupt, InvalidInput
from modelmill.importers.base import Options, importer_for
from modelmill.independence import batches
from modelmill.jobs import neighbours
from modelmill.jobs.card import CARD, brought_card
from modelmill.jobs.process import Events, Stop
from modelmill.predictor import Predictor
from modelmill.types import JobSpec, Json, Manifest


def register(spec: JobSpec, events: Events, stop: Stop) -> Json:
    """Leaves a sealed `bundle` in the job's folder; raises `InvalidInput` for what can't be
    served.
    """
    folder = Path(spec.folder)
    sealed = folder / "bundle"
    draft = folder / "bundle.draft"
    if not sealed.exists():
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            bundle.seal(draft, _fill(draft, spec, events), sealed)
        except BaseException:  # what is refused leaves nothing there
            shutil.rmtree(draft, ignore_errors=True)
            raise
    manifest = bundle.open_bundle(sealed)
    return {
        "metrics": manifest.metrics,
        "bundle": bundle.digest_of(sealed),
        "task": manifest.task,
    }


def _fill(draft: Path, spec: JobSpec, events: Events) -> Manifest:
    """Leaves the files of a model that was tried in the draft."""
    events.stage("reading the model")
    manifest = _brought(Path(spec.bundle), draft, spec)
    events.stage("trying it")
    tried = _try(draft, manifest, spec.threads)
    if not (draft / CARD).exists():
        (draft / CARD).write_text(brought_card(spec.name, tried), "utf-8")
    return tried


def _brought(upload: Path, draft: Path, spec: JobSpec) -> Manifest:
    """Leaves the files of the model in the draft, whichever way it was brought."""
    if "source" in spec.settings:
        return neighbours.assemble(upload, draft, spec)
    given = spec.settings
    options = Options(
        labels=list(given.get("labels") or []),
        trust=bool(given.get("trust")),
        job=spec.job,
    )
    manifest = importer_for(upload).convert(upload, draft, options)
    # What a file says of its own trustworthiness counts for nothing.
    return msgspec.structs.replace(manifest, trusted=options.trust)


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
