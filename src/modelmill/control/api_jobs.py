"""The admin API of jobs: what may be asked of each kind, and how they are followed and stopped."""

from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool

from modelmill.cluster.logs import read
from modelmill.control import schemas, views
from modelmill.control.api_base import (
    BINARY,
    PREFIX,
    Control,
    ControlOf,
    ProjectId,
    body_of,
)
from modelmill.control.db import Job
from modelmill.control.kinds import kind_named, kinds, request_of
from modelmill.control.uploads import CHUNK, receive
from modelmill.errors import Conflict, InvalidInput, NotFound
from modelmill.types import Json, Struct

Number = Annotated[int, PathParameter(ge=1, le=1 << 53)]
Offset = Annotated[int, Query(ge=0, le=1 << 53)]
Submit = Callable[
    [Request, ControlOf, ProjectId], Coroutine[Any, Any, schemas.JobView]
]

ALIASES = {"train": "/train", "evaluate": "/evaluate"}
"""Kinds that have a path of their own beside `/jobs/KIND`."""
OBJECT = "the body is a JSON object, sent with the header Content-Type: application/json"


router = APIRouter(prefix=PREFIX, tags=["jobs"])


@router.get("/jobs")
def all_jobs(control: ControlOf, project: ProjectId) -> list[schemas.JobView]:
    """All jobs, newest first."""
    return [views.job_view(row) for row in control.jobs.all(project)]


@router.get("/jobs/{number}")
def one(
    number: Number, control: ControlOf, project: ProjectId
) -> schemas.JobView:
    """One job."""
    return views.job_view(control.jobs.get(project, number))


@router.post("/jobs/{number}/cancel")
def cancel(
    number: Number, control: ControlOf, project: ProjectId
) -> schemas.JobView:
    """Stop a job now."""
    return views.job_view(control.jobs.cancel(project, number))


@router.post("/jobs/{number}/resume")
def resume(
    number: Number, control: ControlOf, project: ProjectId
) -> schemas.JobView:
    """Go on from the last checkpoint."""
    return views.job_view(control.jobs.resume(project, number))


@router.get("/jobs/{number}/log")
def log(
    number: Number, control: ControlOf, project: ProjectId, offset: Offset = 0
) -> schemas.Chunk:
    """What the job has printed, from a byte offset."""
    row = control.jobs.get(project, number)
    return _chunk(control.jobs.folder(number) / "log.txt", row, offset)


@router.get("/jobs/{number}/events")
def events(
    number: Number, control: ControlOf, project: ProjectId, offset: Offset = 0
) -> schemas.Chunk:
    """Metrics per step and epoch as JSON lines, from a byte offset."""
    row = control.jobs.get(project, number)
    return _chunk(control.jobs.folder(number) / "events.jsonl", row, offset)


@router.get("/jobs/{number}/pictures/{name}")
def picture(
    number: Number, name: str, control: ControlOf, project: ProjectId
) -> Response:
    """A picture that the job made, such as its learning curves."""
    control.jobs.get(project, number)
    return _file(control.jobs.folder(number) / "pictures", name)


# ---- kinds


def kinds_router() -> APIRouter:
    """The routes that ask for jobs: one for each kind that is installed."""
    router = APIRouter(prefix=PREFIX)
    router.add_api_route(
        "/kinds", all_kinds, methods=["GET"], tags=["catalogue"]
    )
    for name in kinds():
        for path in _paths(name):
            _add_kind(router, path, name)
    # After all of them, for a name that is none.
    router.add_api_route(
        "/jobs/{kind}", unknown_kind, methods=["POST"], include_in_schema=False
    )
    return router


def all_kinds() -> list[schemas.KindView]:
    """The kinds of jobs, each with its request as a JSON schema."""
    return [views.kind_view(name) for name in kinds()]


def unknown_kind(kind: str) -> None:
    """Say which kinds there are."""
    kind_named(kind)


def _paths(name: str) -> Iterable[str]:
    yield f"/jobs/{name}"
    if name in ALIASES:
        yield ALIASES[name]


def _add_kind(router: APIRouter, path: str, name: str) -> None:
    router.add_api_route(
        path,
        _submission(name),
        methods=["POST"],
        status_code=202,
        tags=["jobs"],
        description=kind_named(name).SUMMARY,
        operation_id=f"submit{path.replace('/', '_')}",
        openapi_extra=_described(name),
    )


def _submission(name: str) -> Submit:
    """What takes a request for a job of a kind: its fields are the body, or a parameter beside a
    file.
    """
    in_query = bool(kind_named(name).FILE)

    async def submit(
        request: Request, control: ControlOf, project: ProjectId
    ) -> schemas.JobView:
        if in_query:
            text: str | bytes = request.query_params.get("request", "")
        else:
            text = await request.body()
        document = _object(text, in_query=in_query)
        return there_is_a_job(
            await order(request, control, project, name, document)
        )

    return submit


async def order(
    request: Request, control: Control, project: int, kind: str, document: Json
) -> Job | None:
    """Put a job of a kind into the queue; None where there is nothing to do. What is asked for is
    checked before a file is received.
    """
    wanted = request_of(kind, document)
    await run_in_threadpool(control.jobs.check, project, kind, wanted)
    upload = await receive(request, control) if kind_named(kind).FILE else None
    return await run_in_threadpool(
        _ordered, control, project, kind, wanted, upload
    )


def _ordered(
    control: Control, project: int, kind: str, wanted: Any, upload: Path | None
) -> Job | None:
    """The job that was put into the queue; the file that was sent is gone afterwards."""
    try:
        return control.jobs.order(project, kind, wanted, upload)
    finally:
        if upload is not None:
            upload.unlink(missing_ok=True)


def there_is_a_job(job: Job | None) -> schemas.JobView:
    """The job as the API shows it; raises `Conflict` where there is none to do."""
    if job is None:
        raise Conflict(
            "what this job would make is there: there is nothing to do"
        )
    return views.job_view(job)


def _object(text: str | bytes, *, in_query: bool) -> Json:
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InvalidInput(
            "the parameter request is a JSON object; the file is the body"
            if in_query
            else OBJECT
        )
    return document


def _described(name: str) -> Json:
    """What OpenAPI says of a kind's request."""
    file = kind_named(name).FILE
    content = {
        "application/json": {"schema": _schema(kind_named(name).Request)}
    }
    if not file:
        return {"requestBody": {"required": True, "content": content}}
    described = body_of(BINARY)
    described["requestBody"]["description"] = file
    described["parameters"] = [
        {
            "name": "request",
            "in": "query",
            "required": True,
            "description": "what is asked for, as JSON",
            "content": content,
        }
    ]
    return described


def _schema(kind: type[Struct]) -> Json:
    """A struct as JSON schema, with what it refers to in its place."""
    schema = msgspec.json.schema(kind)
    found: Json = _resolved(schema, schema.pop("$defs"))
    return found


def _resolved(part: Any, definitions: Json) -> Any:
    """A part of a schema with the definitions in the place of references to them."""
    if isinstance(part, list):
        return [_resolved(one, definitions) for one in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return _resolved(definitions[name], definitions)
    return {name: _resolved(one, definitions) for name, one in part.items()}


# ---- files


def _chunk(path: Path, row: Job, offset: int) -> schemas.Chunk:
    """What a file has from an offset; what follows the last line end waits for the next call."""
    data, begin = read(path, offset, CHUNK)
    more_comes = row.state == "running" or len(data) == CHUNK
    if more_comes and (end := data.rfind(b"\n") + 1):
        data = data[:end]
    return schemas.Chunk(
        text=data.decode("utf-8", "replace"),
        offset=begin + len(data),
        state=row.state,
    )


def _file(folder: Path, name: str) -> Response:
    names = _files_in(folder)
    if name not in names:
        there_are = ", ".join(sorted(names)) or "none"
        raise NotFound(
            f"there is no file '{name[:80]}'; there are: {there_are}"
        )
    return FileResponse(
        names[name], headers={"x-content-type-options": "nosniff"}
    )


def _files_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {path.name: path for path in folder.iterdir() if path.is_file()}
