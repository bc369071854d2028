"""The admin API of serving: deployments, their canaries and shadows, and access keys."""

from typing import Annotated, Any

from fastapi import FastAPI, Query

from modelmill.control import schemas, views
from modelmill.control.api_base import PREFIX, Control, ProjectId
from modelmill.errors import InvalidInput
from modelmill.types import check_name

Version = Annotated[
    int | None,
    Query(ge=1, le=1 << 53, description="where several are served beside the main one"),
]
BESIDE = {"canary", "shadow", "max_error_rate", "max_slowdown"}


def add_deployments(api: FastAPI, control: Control) -> None:
    """Routes of deployments."""
    deployments = control.deployments

    def view(row: Any, project: int) -> schemas.DeploymentView:
        return views.deployment_view(
            row, deployments.replicas(project), control.registry.tasks(project)
        )

    @api.post(f"{PREFIX}/deployments", status_code=202, tags=["deployments"])
    def deploy(
        body: schemas.DeployRequest, project: ProjectId
    ) -> schemas.DeploymentView:
        """Serve a version; over a running one without a failed request, or beside it as a canary or
        a shadow.
        """
        if body.name:
            check_name("deployment", body.name)
        if body.canary is not None or body.shadow:
            return view(_beside(control, body, project), project)
        options = body.model_dump(exclude={"model", "name", *BESIDE}, exclude_none=True)
        return view(
            deployments.deploy(project, body.model, body.name, **options), project
        )

    @api.get(f"{PREFIX}/deployments", tags=["deployments"])
    def all_deployments(project: ProjectId) -> list[schemas.DeploymentView]:
        """All deployments."""
        replicas, tasks = deployments.replicas(project), control.registry.tasks(project)
        return [
            views.deployment_view(row, replicas, tasks)
            for row in deployments.all(project)
        ]

    @api.get(f"{PREFIX}/deployments/{{name}}", tags=["deployments"])
    def one(name: str, project: ProjectId) -> schemas.DeploymentView:
        """One deployment."""
        return view(deployments.get(project, name), project)

    @api.delete(f"{PREFIX}/deployments/{{name}}", status_code=204, tags=["deployments"])
    def undeploy(name: str, project: ProjectId) -> None:
        """Stop serving."""
        deployments.undeploy(project, name)

    @api.post(f"{PREFIX}/deployments/{{name}}/promote", tags=["deployments"])
    def promote(
        name: str, project: ProjectId, version: Version = None
    ) -> schemas.DeploymentView:
        """Make the canary (or shadow) the main version, with the workers it has."""
        return view(deployments.promote(project, name, version), project)

    @api.post(f"{PREFIX}/deployments/{{name}}/rollback", tags=["deployments"])
    def rollback(
        name: str, project: ProjectId, version: Version = None
    ) -> schemas.DeploymentView:
        """Take canaries and shadows away; the main version answers all requests again."""
        return view(deployments.drop_variants(project, name, version), project)

    @api.post(f"{PREFIX}/deployments/{{name}}/load", tags=["deployments"])
    def load(name: str, project: ProjectId) -> schemas.DeploymentView:
        """Start the workers of an unloaded or sleeping deployment."""
        return view(deployments.set_loaded(project, name, True), project)

    @api.post(f"{PREFIX}/deployments/{{name}}/unload", tags=["deployments"])
    def unload(name: str, project: ProjectId) -> schemas.DeploymentView:
        """End the workers; the deployment stays and answers that it is unloaded."""
        return view(deployments.set_loaded(project, name, False), project)


def _beside(control: Control, body: schemas.DeployRequest, project: int) -> Any:
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


def add_keys(api: FastAPI, control: Control) -> None:
    """Routes of access keys."""

    @api.post(f"{PREFIX}/keys", status_code=201, tags=["keys"])
    def add(body: schemas.KeyRequest, project: ProjectId) -> schemas.KeyMade:
        """Make an access key. The answer is the only place where it is ever shown."""
        row, key = control.keys.add(
            project, body.name, body.role, body.rate, body.burst
        )
        return schemas.KeyMade(**views.key_view(row).model_dump(), key=key)

    @api.get(f"{PREFIX}/keys", tags=["keys"])
    def all_keys(project: ProjectId) -> list[schemas.KeyView]:
        """All access keys, without the keys themselves."""
        return [views.key_view(row) for row in control.keys.all(project)]

    @api.delete(f"{PREFIX}/keys/{{name}}", status_code=204, tags=["keys"])
    def remove(name: str, project: ProjectId) -> None:
        """Withdraw an access key."""
        control.keys.remove(project, name)
