"""The import of a data set: an archive is checked and its items are sorted into splits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from modelmill import plugins
from modelmill.data.formats import fitting
from modelmill.errors import InvalidInput
from modelmill.jobs.kinds.base import INTAKE, JobStores, Kind, Order, Request
from modelmill.tasks.base import task_named, usual_name
from modelmill.types import JobSpec, Json, check_name

if TYPE_CHECKING:
    from modelmill.control.db import Job
    from modelmill.jobs.process import Events, Stop


class ImportRequest(Request, frozen=True, kw_only=True):
    """A data set to check."""

    name: Annotated[str, Meta(description="name of the data set")]
    task: Annotated[str, Meta(examples=["image-classification"])]
    format: Annotated[
        str, Meta(description="empty: found by what the data are")
    ] = ""
    strict: Annotated[
        bool, Meta(description="refuse data in which the check finds anything")
    ] = False
    options: Annotated[
        dict[str, str], Meta(description="options of the format")
    ] = msgspec.field(default_factory=dict)


class Import(Kind[ImportRequest]):
    """Checks an archive."""

    SUMMARY = "Check a data set."
    LANE = INTAKE
    FILE = "a zip of the data"
    Request = ImportRequest

    def check(
        self, request: ImportRequest, project: int, stores: JobStores
    ) -> None:
        """Raises for a name, task, format or option that does not exist."""
        check_name("data set", request.name)
        task = usual_name(request.task)
        formats = fitting(task_named(task))
        format = request.format
        if format and format not in formats:
            plugins.load("data.formats", format)  # says so when there is none
            raise InvalidInput(
                f"format '{format}' does not hold what {task} is trained on; choose one of "
                f"{', '.join(formats)}"
            )
        known = {
            option
            for name, one in formats.items()
            if name == format or not format
            for option in one.OPTIONS
        }
        for name in request.options:
            if name not in known:
                raise InvalidInput(
                    f"unknown option '{name}'; there are: {', '.join(sorted(known)) or 'none'}"
                )

    def order(
        self,
        request: ImportRequest,
        project: int,
        stores: JobStores,
        upload: Path | None,
    ) -> Order | None:
        """The data set, as one that is being checked; nothing where the very same one is there."""
        assert upload is not None
        row, new = stores.datasets.add(
            project,
            request.name,
            usual_name(request.task),
            request.format,
            request.options,
            request.strict,
            upload,
        )
        return Order(dataset=row, task=row.task) if new else None

    def run(self, spec: JobSpec, events: "Events", stop: "Stop") -> Json:
        """Leaves the index of the items."""
        from modelmill.jobs.importing import check_dataset

        return check_dataset(spec, events, stop)

    def keep(self, row: "Job", result: Json, stores: JobStores) -> None:
        """The data set is ready."""
        if row.dataset_id is None:  # removed since
            return
        index = stores.folder(row.id) / "index"
        if index.exists():  # else it was taken in before, by a node that died
            stores.artifacts.add_file(index)
        stores.datasets.finish(row.dataset_id, result)

    def discard(self, row: "Job", stores: JobStores) -> None:
        """A data set that could not be read does not exist: its name is free again."""
        if row.dataset_id is not None:
            stores.datasets.fail(row.dataset_id)


KIND = Import()
