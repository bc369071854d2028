"""Kinds of jobs as the admin API and the supervisor see them: what is asked for, what a row of the
queue says of it, what its process gets, and what becomes of its result.

A kind is a module of `jobs/kinds`, or of an installed package, with one object, `KIND`. This room
imports none of them: it finds them by name.
"""

import logging
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import msgspec

from modelmill import plugins
from modelmill.errors import InvalidInput, MillError, unknown_setting
from modelmill.types import JobSpec, Json, Struct

if TYPE_CHECKING:
    from modelmill.artifacts import Artifacts
    from modelmill.control.datasets import Datasets
    from modelmill.control.db import Database, Dataset, Job
    from modelmill.control.registry import Registry

log = logging.getLogger("modelmill.node")

KINDS = "jobs.kinds"
"""The kind of plug-in that kinds of jobs are."""
COMPUTE, INTAKE = "compute", "intake"
"""The lanes of what is there: jobs of one lane run one after another, lanes side by side."""


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of a kind of jobs: its fields are the body of `POST /api/v1/jobs/KIND`.

    `Annotated[int, msgspec.Meta(ge=1, description="...")]` says what a field means and may be.
    """


@dataclass(frozen=True)
class JobStores:
    """What a home holds, for what happens before a job and after it."""

    database: "Database"
    datasets: "Datasets"
    registry: "Registry"
    artifacts: "Artifacts"
    home: Path

    def folder(self, job: int) -> Path:
        """Where a job keeps its log, events, checkpoint and pictures, and leaves what it made."""
        return self.home / "jobs" / str(job)


@dataclass(frozen=True)
class Order:
    """What the row of a job says: what it is about, and in `settings` whatever else its process is
    told.
    """

    model: str = ""
    version: int | None = None
    task: str = ""
    recipe: str = ""
    dataset: "Dataset | None" = None
    settings: Json = field(default_factory=dict)


R = TypeVar("R", bound=Request)


class JobKind(Generic[R]):
    """A kind of jobs, but for its work (`jobs.kinds.base.Kind`).

    `SUMMARY` is a line for people, `LANE` names the jobs that it takes turns with, `FILE` says what
    file is sent with the request (nothing: none), `Request` its fields. All but these have
    defaults: the fields of the request become the settings of the job, and its result is kept in
    its row.
    """

    SUMMARY: ClassVar[str]
    LANE: ClassVar[str] = COMPUTE
    FILE: ClassVar[str] = ""
    Request: type[R]

    def check(self, request: R, project: int, stores: JobStores) -> None:
        """Raise `MillError` for what can be seen to be wrong before a file is taken."""

    def order(
        self, request: R, project: int, stores: JobStores, upload: Path | None
    ) -> Order | None:
        """What the row says; nothing where what the job would make is there. Raises `MillError` for
        what can't be done, so that it is refused at once. `upload` is the file that was sent.
        """
        return Order(settings=msgspec.to_builtins(request))

    def spec(self, row: "Job", draft: JobSpec, stores: JobStores) -> JobSpec:
        """What the process gets, from what the row says already; raises `MillError`."""
        return draft

    def keep(self, row: "Job", result: Json, stores: JobStores) -> int | None:
        """Take what the process left in its folder into the stores; the number of the version, if
        it made one.

        It is called again where the platform ended before it was written down. A `MillError` fails
        the job.
        """
        return None

    def discard(self, row: "Job", stores: JobStores) -> None:
        """Undo what `order` did for a job that has failed or was cancelled."""


def kind_named(name: str) -> JobKind[Request]:
    """A kind of jobs; raises `NotFound` or `NotInstalled`."""
    kind: JobKind[Request] = plugins.load(KINDS, name).KIND
    return kind


@cache
def kinds() -> dict[str, JobKind[Request]]:
    """All kinds by name; of one that can't be loaded the log says why."""
    found: dict[str, JobKind[Request]] = {}
    for name in plugins.names(KINDS):
        try:
            found[name] = kind_named(name)
        except Exception:
            log.exception("the kind of jobs '%s' can't be loaded", name)
    return found


def lanes() -> list[list[str]]:
    """The names of the kinds that take turns."""
    found: dict[str, list[str]] = {}
    for name, kind in kinds().items():
        found.setdefault(kind.LANE, []).append(name)
    return list(found.values())


def request_of(name: str, document: Json) -> Request:
    """The request of a kind, from a JSON object; raises `InvalidInput` naming what is wrong."""
    wanted = kind_named(name).Request
    known = [one.encode_name for one in msgspec.structs.fields(wanted)]
    for given in document:
        if given not in known:
            raise unknown_setting(given, known, "field")
    try:
        return msgspec.convert(document, wanted, strict=False)
    except (msgspec.ValidationError, MillError) as error:
        raise InvalidInput(_worded(str(error))) from error


def _worded(said: str) -> str:
    """msgspec's message with the field in front: `k: expected `int` >= 1`."""
    what, _, place = said.partition(" - at `$")
    what = f"{what[:1].lower()}{what[1:]}"
    place = place.rstrip("`").lstrip(".")
    missing = what.partition("missing required field `")[2].rstrip("`")
    if missing:
        return f"{missing}: it is missing"
    return f"{place}: {what}" if place else what
