"""Shared by the files of the admin API: the stores that routes act on, and the caller's project."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
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
from modelmill.types import KeyInfo

PREFIX = "/api/v1"
Embed = Callable[[KeyInfo, str, int, bytes], Awaitable[Sequence[float]]]
"""Computes the vector of an input with a version (model, number) for a caller; raises
`MillError`.
"""


class Control:
    """Everything the admin routes act on."""

    def __init__(
        self,
        database: Database,
        datasets: Datasets,
        registry: Registry,
        jobs: Jobs,
        deployments: Deployments,
        artifacts: Artifacts,
        upload_bytes: int,
        free_bytes: int,
        indexes: Indexes,
        embed: Embed,
    ) -> None:
        self.database = database
        self.datasets = datasets
        self.registry = registry
        self.jobs = jobs
        self.deployments = deployments
        self.upload_bytes = upload_bytes
        self.free_bytes = free_bytes
        self.artifacts = artifacts
        self.indexes = indexes
        self.embed = embed
        self.keys = Keys(database)


def project(request: Request) -> Iterator[int]:
    """The number of the caller's project; every query is scoped by it."""
    control: Control = request.app.state.control
    with control.database.session() as session:
        number = project_id(session, request.state.caller.project)
    yield number


ProjectId = Annotated[int, Depends(project)]
