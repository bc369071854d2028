"""The admin API of access keys."""

from fastapi import APIRouter

from modelmill.control import schemas, views
from modelmill.control.api_base import PREFIX, ControlOf, ProjectId

router = APIRouter(prefix=PREFIX, tags=["keys"])


@router.post("/keys", status_code=201)
def add(
    body: schemas.KeyRequest, control: ControlOf, project: ProjectId
) -> schemas.KeyMade:
    """Make an access key. The answer is the only place where it is ever shown."""
    row, key = control.keys.add(
        project, body.name, body.role, body.rate, body.burst
    )
    return schemas.KeyMade(**views.key_view(row).model_dump(), key=key)


@router.get("/keys")
def all_keys(control: ControlOf, project: ProjectId) -> list[schemas.KeyView]:
    """All access keys, without the keys themselves."""
    return [views.key_view(row) for row in control.keys.all(project)]


@router.delete("/keys/{name}", status_code=204)
def remove(name: str, control: ControlOf, project: ProjectId) -> None:
    """Withdraw an access key."""
    control.keys.remove(project, name)
