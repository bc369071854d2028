"""Shared by the files of the admin API: the stores that routes act on, the caller's project, and
how OpenAPI describes a file.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from modelmill.artifacts import Artifacts
from modelmill.control.datasets import Datasets
from modelmill.control.db import Database, project_id
from modelmill.control.deployments import Deployments
from modelmill.control.indexes import Indexes
from modelmill.control.jobs import Jobs
from modelmill.control.keys import Keys
from modelmill.control.registry import Registry
from modelmill.types import Json, KeyInfo

PREFIX = "/api/v1"
Embed = Callable[[KeyInfo, str, int, bytes], Awaitable[Sequence[float]]]
"""Computes the vector of an input with a version (model, number) for a caller; raises
`MillError`.
"""


BINARY = "application/octet-stream"


@dataclass
class Control:
    """Everything the admin routes act on."""

    database: Database
    datasets: Datasets
    registry: Registry
    jobs: Jobs
    deployments: Deployments
    artifacts: Artifacts
    upload_bytes: int
    free_bytes: int
    indexes: Indexes
    embed: Embed
    keys: Keys = field(init=False)

    def __post_init__(self) -> None:
        """Keys need the database alone."""
        self.keys = Keys(self.database)


async def control_of(request: Request) -> Control:
    """What the application's routes act on."""
    control: Control = request.app.state.control
    return control


ControlOf = Annotated[Control, Depends(control_of)]


def project(request: Request, control: ControlOf) -> Iterator[int]:
    """The number of the caller's project; every query is scoped by it."""
    with control.database.session() as session:
        number = project_id(session, request.state.caller.project)
    yield number


ProjectId = Annotated[int, Depends(project)]


def body_of(media_type: str) -> Json:
    """What OpenAPI says of a route whose body is a file."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": True, "content": content}}
