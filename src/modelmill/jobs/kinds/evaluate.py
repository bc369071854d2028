"""An evaluation: a version is measured on a split of a data set, through the path that serves
it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from modelmill.errors import InvalidInput
from modelmill.jobs.kinds.base import COMPUTE, JobStores, Kind, Order, Request
from modelmill.tasks.base import task_named
from modelmill.types import JobSpec, Json

if TYPE_CHECKING:
    from modelmill.control.db import Dataset, Job
    from modelmill.jobs.process import Events, Stop


class EvaluateRequest(Request, frozen=True, kw_only=True):
    """An evaluation to queue."""

    model: Annotated[str, Meta(description="NAME[:VERSION|@ALIAS]")]
    data: str
    split: str = "test"


class Evaluate(Kind[EvaluateRequest]):
    """Measures a version."""

    SUMMARY = "Queue an evaluation of a version on a data set."
    LANE = COMPUTE
    Request = EvaluateRequest

    def order(
        self,
        request: EvaluateRequest,
        project: int,
        stores: JobStores,
        upload: Path | None,
    ) -> Order:
        """Refuses a data set of other classes than the model's."""
        version = stores.registry.get(project, request.model)
        dataset = stores.datasets.usable(
            project, request.data, version.task, request.split
        )
        if task_named(version.task).SPLIT != "classes":
            _refuse_other_labels(dataset, version.manifest["labels"])
        return Order(
            model=version.model,
            version=version.number,
            task=version.task,
            dataset=dataset,
            settings={"split": request.split},
        )

    def spec(self, row: "Job", draft: JobSpec, stores: JobStores) -> JobSpec:
        """With the bundle of the version."""
        version = stores.registry.get(
            row.project_id, f"{row.model}:{row.version}"
        )
        return msgspec.structs.replace(
            draft,
            bundle=str(stores.registry.folder(version)),
            split=row.settings.get("split", "test"),
        )

    def run(self, spec: JobSpec, events: "Events", stop: "Stop") -> Json:
        """The result holds the metrics."""
        from modelmill.jobs.evaluate import evaluate_version

        return evaluate_version(spec, events, stop)


def _refuse_other_labels(dataset: "Dataset", labels: list[str]) -> None:
    strange = sorted(set(dataset.report.get("classes", {})) - set(labels))
    if strange:
        raise InvalidInput(
            f"data set '{dataset.name}' has classes that the model does not know: "
            f"{', '.join(strange[:10])}"
        )


KIND = Evaluate()
