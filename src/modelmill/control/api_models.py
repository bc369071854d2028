"""The admin API of models: finished ones are brought, versions are shown and get aliases."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response

from modelmill.control import schemas, views
from modelmill.control.api_base import (
    BINARY,
    PREFIX,
    ControlOf,
    ProjectId,
    body_of,
)
from modelmill.control.api_jobs import order, there_is_a_job
from modelmill.control.registry import summary
from modelmill.errors import InvalidInput, NotFound
from modelmill.types import Json, check_name, parse_reference

router = APIRouter(prefix=PREFIX, tags=["models"])
LABELS = Query(description="names of the classes, in order")
TRUST = Query(description="take a file that may run code, such as model.pt2")


@router.post("/models", status_code=202, openapi_extra=body_of(BINARY))
async def bring(
    request: Request,
    control: ControlOf,
    project: ProjectId,
    name: str,
    label: Annotated[list[str] | None, LABELS] = None,
    trust: Annotated[bool, TRUST] = False,
) -> schemas.JobView:
    """Bring a finished model (the body): a bare model.onnx or model.pt2, or a zip of a bundle.
    A job checks it.
    """
    document: Json = {"name": name, "labels": label or [], "trust": trust}
    job = await order(request, control, project, "register", document)
    return there_is_a_job(job)


@router.get("/models")
def all_versions(
    control: ControlOf, project: ProjectId
) -> list[schemas.VersionView]:
    """All versions of all models."""
    aliases = control.registry.aliases(project)
    return [
        schemas.VersionView(**summary(row, aliases))
        for row in control.registry.all(project)
    ]


@router.get("/models/{reference}")
def one(
    reference: str, control: ControlOf, project: ProjectId
) -> schemas.VersionView:
    """One version: NAME, NAME:VERSION or NAME@ALIAS."""
    registry = control.registry
    row = registry.get(project, reference)
    return schemas.VersionView(
        **summary(row, registry.aliases(project)),
        parameters=views.parameters_view(row.task),
    )


@router.get("/models/{reference}/files/{name:path}")
def download(
    reference: str, name: str, control: ControlOf, project: ProjectId
) -> Response:
    """A file of a version's bundle."""
    row = control.registry.get(project, reference)
    files = row.manifest["files"]
    if name not in {*files, "manifest.json"}:
        raise NotFound(
            f"the bundle has no file '{name[:80]}'; it has: {', '.join(files)}"
        )
    return FileResponse(
        control.registry.folder(row) / name,
        headers={"x-content-type-options": "nosniff"},
    )


@router.put("/aliases")
def alias(
    body: schemas.AliasRequest, control: ControlOf, project: ProjectId
) -> schemas.VersionView:
    """Point an alias at a version."""
    reference = parse_reference(body.model)
    if reference.version is None and reference.alias is None:
        raise InvalidInput(
            f"an alias is for one version: write {reference.name}:VERSION"
        )
    registry = control.registry
    row = registry.alias(project, body.model, check_name("alias", body.alias))
    return schemas.VersionView(**summary(row, registry.aliases(project)))
