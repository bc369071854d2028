"""The admin API of deployments, and of the canaries and shadows beside their main version."""

from typing import Annotated

from fastapi import APIRouter, Query

from modelmill.control import schemas, views
from modelmill.control.api_base import PREFIX, Control, ControlOf, ProjectId
from modelmill.control.db import Deployment
from modelmill.errors import InvalidInput
from modelmill.types import check_name

router = APIRouter(prefix=PREFIX, tags=["deployments"])
Version = Annotated[
    int | None,
    Query(
        ge=1,
        le=1 << 53,
        description="where several are served beside the main one",
    ),
]
BESIDE = {"canary", "shadow", "max_error_rate", "max_slowdown"}


@router.post("/deployments", status_code=202)
def deploy(
    body: schemas.DeployRequest, control: ControlOf, project: ProjectId
) -> schemas.DeploymentView:
    """Serve a version; over a running one without a failed request, or beside it as a canary or
    a shadow.
    """
    if body.name:
        check_name("deployment", body.name)
    if body.canary is not None or body.shadow:
        return _view(control, project, _beside(control, project, body))
    options = body.model_dump(
        exclude={"model", "name", *BESIDE}, exclude_none=True
    )
    row = control.deployments.deploy(project, body.model, body.name, **options)
    return _view(control, project, row)


@router.get("/deployments")
def all_deployments(
    control: ControlOf, project: ProjectId
) -> list[schemas.DeploymentView]:
    """All deployments."""
    replicas = control.deployments.replicas(project)
    tasks = control.registry.tasks(project)
    return [
        views.deployment_view(row, replicas, tasks)
        for row in control.deployments.all(project)
    ]


@router.get("/deployments/{name}")
def one(
    name: str, control: ControlOf, project: ProjectId
) -> schemas.DeploymentView:
    """One deployment."""
    return _view(control, project, control.deployments.get(project, name))


@router.delete("/deployments/{name}", status_code=204)
def undeploy(name: str, control: ControlOf, project: ProjectId) -> None:
    """Stop serving."""
    control.deployments.undeploy(project, name)


@router.post("/deployments/{name}/promote")
def promote(
    name: str, control: ControlOf, project: ProjectId, version: Version = None
) -> schemas.DeploymentView:
    """Make the canary (or shadow) the main version, with the workers it has."""
    return _view(
        control, project, control.deployments.promote(project, name, version)
    )


@router.post("/deployments/{name}/rollback")
def rollback(
    name: str, control: ControlOf, project: ProjectId, version: Version = None
) -> schemas.DeploymentView:
    """Take canaries and shadows away; the main version answers all requests again."""
    row = control.deployments.drop_variants(project, name, version)
    return _view(control, project, row)


@router.post("/deployments/{name}/load")
def load(
    name: str, control: ControlOf, project: ProjectId
) -> schemas.DeploymentView:
    """Start the workers of an unloaded or sleeping deployment."""
    return _view(
        control, project, control.deployments.set_loaded(project, name, True)
    )


@router.post("/deployments/{name}/unload")
def unload(
    name: str, control: ControlOf, project: ProjectId
) -> schemas.DeploymentView:
    """End the workers; the deployment stays and answers that it is unloaded."""
    return _view(
        control, project, control.deployments.set_loaded(project, name, False)
    )


def _view(
    control: Control, project: int, row: Deployment
) -> schemas.DeploymentView:
    replicas = control.deployments.replicas(project)
    return views.deployment_view(row, replicas, control.registry.tasks(project))


def _beside(
    control: Control, project: int, body: schemas.DeployRequest
) -> Deployment:
    """The deployment with the version beside its main one."""
    if body.canary is not None and body.shadow:
        raise InvalidInput(
            "a version is either a canary, which answers, or a shadow, which does not"
        )
    return control.deployments.add_variant(
        project,
        body.model,
        body.name,
        weight=(body.canary or 0.0) / 100,
        shadow=body.shadow,
        max_error_rate=body.max_error_rate,
        max_slowdown=body.max_slowdown,
    )
