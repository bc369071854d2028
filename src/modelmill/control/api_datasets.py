"""The admin API of data sets: they are uploaded as a zip, checked by a job, and shown."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from modelmill.control import schemas, views
from modelmill.control.api_base import PREFIX, ControlOf, ProjectId, body_of
from modelmill.control.api_jobs import order
from modelmill.types import Json

router = APIRouter(prefix=PREFIX, tags=["data sets"])
OPTIONS = Query(description="NAME=VALUE for the format")


@router.post(
    "/datasets", status_code=202, openapi_extra=body_of("application/zip")
)
async def add(
    request: Request,
    control: ControlOf,
    project: ProjectId,
    name: str,
    task: schemas.TaskName,
    format: str = "",
    strict: bool = False,
    option: Annotated[list[str] | None, OPTIONS] = None,
) -> schemas.DatasetAdded:
    """Upload a zip of the data (the body) and check it."""
    document: Json = {
        "name": name,
        "task": task,
        "format": format,
        "strict": strict,
        "options": dict(pair.partition("=")[::2] for pair in option or []),
    }
    job = await order(request, control, project, "import", document)
    return schemas.DatasetAdded(name=name, job=job.id if job else None)


@router.get("/datasets")
def all_sets(
    control: ControlOf, project: ProjectId
) -> list[schemas.DatasetView]:
    """All data sets."""
    return [views.dataset_view(row) for row in control.datasets.all(project)]


@router.get("/datasets/{name}")
def one(
    name: str, control: ControlOf, project: ProjectId
) -> schemas.DatasetView:
    """One data set with what the check found."""
    return views.dataset_view(control.datasets.get(project, name))


@router.delete("/datasets/{name}", status_code=204)
def remove(name: str, control: ControlOf, project: ProjectId) -> None:
    """Forget a data set."""
    control.datasets.remove(project, name)
