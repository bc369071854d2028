"""The admin API of jobs: what may be asked of each kind, and how they are followed and stopped."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool

from modelmill.cluster.logs import read
from modelmill.control import schemas, views
from modelmill.control.api_base import PREFIX, Control, ProjectId
from modelmill.control.db import Job
from modelmill.control.kinds import kind_named, kinds, request_of
from modelmill.control.uploads import CHUNK, receive
from modelmill.errors import Conflict, InvalidInput, NotFound
from modelmill.types import Json, Struct

Number = Annotated[int, PathParameter(ge=1, le=1 << 53)]
Offset = Annotated[int, Query(ge=0, le=1 << 53)]
Submit = Callable[[Request, ProjectId], Coroutine[Any, Any, schemas.JobView]]

ALIASES = {"train": "/train", "evaluate": "/evaluate"}
"""Kinds that have a path of their own beside `/jobs/KIND`."""
OBJECT = (
    "the body is a JSON object, sent with the header Content-Type: application/json"
)


def add_jobs(api: FastAPI, control: Control) -> None:
    """Routes of jobs: one for each kind to ask for one, and those to follow and stop them."""
    _add_kinds(api, control)
    jobs = control.jobs

    @api.get(f"{PREFIX}/jobs", tags=["jobs"])
    def all_jobs(project: ProjectId) -> list[schemas.JobView]:
        """All jobs, newest first."""
        return [views.job_view(row) for row in jobs.all(project)]

    @api.get(f"{PREFIX}/jobs/{{number}}", tags=["jobs"])
    def one(number: Number, project: ProjectId) -> schemas.JobView:
        """One job."""
        return views.job_view(jobs.get(project, number))

    @api.post(f"{PREFIX}/jobs/{{number}}/cancel", tags=["jobs"])
    def cancel(number: Number, project: ProjectId) -> schemas.JobView:
        """Stop a job now."""
        return views.job_view(jobs.cancel(project, number))

    @api.post(f"{PREFIX}/jobs/{{number}}/resume", tags=["jobs"])
    def resume(number: Number, project: ProjectId) -> schemas.JobView:
        """Go on from the last checkpoint."""
        return views.job_view(jobs.resume(project, number))

    @api.get(f"{PREFIX}/jobs/{{number}}/log", tags=["jobs"])
    def log(number: Number, project: ProjectId, offset: Offset = 0) -> schemas.Chunk:
        """What the job has printed, from a byte offset."""
        return _chunk(
            jobs.folder(number) / "log.txt", jobs.get(project, number), offset
        )

    @api.get(f"{PREFIX}/jobs/{{number}}/events", tags=["jobs"])
    def events(number: Number, project: ProjectId, offset: Offset = 0) -> schemas.Chunk:
        """Metrics per step and epoch as JSON lines, from a byte offset."""
        return _chunk(
            jobs.folder(number) / "events.jsonl", jobs.get(project, number), offset
        )

    @api.get(f"{PREFIX}/jobs/{{number}}/pictures/{{name}}", tags=["jobs"])
    def picture(number: Number, name: str, project: ProjectId) -> Response:
        """A picture that the job made, such as its learning curves."""
        jobs.get(project, number)
        return _file(jobs.folder(number) / "pictures", name)


# ---- kinds


def _add_kinds(api: FastAPI, control: Control) -> None:
    @api.get(f"{PREFIX}/kinds", tags=["catalogue"])
    def all_kinds() -> list[schemas.KindView]:
        """The kinds of jobs, with what may be asked of each as a JSON schema."""
        return [views.kind_view(name) for name in kinds()]

    for name, kind in kinds().items():
        for path in (f"/jobs/{name}", *filter(None, [ALIASES.get(name)])):
            api.add_api_route(
                f"{PREFIX}{path}",
                _submission(control, name),
                methods=["POST"],
                status_code=202,
                tags=["jobs"],
                description=kind.SUMMARY,
                operation_id=f"submit{path.replace('/', '_')}",
                openapi_extra=_described(name),
            )

    # After all of them, for a name that is none.
    @api.post(f"{PREFIX}/jobs/{{kind}}", include_in_schema=False)
    def unknown_kind(kind: str) -> None:
        """Say which kinds there are."""
        kind_named(kind)


def _submission(control: Control, name: str) -> Submit:
    """What takes a request for a job of a kind: its fields are the body, or a parameter beside a
    file.
    """
    file = kind_named(name).FILE

    async def submit(request: Request, project: ProjectId) -> schemas.JobView:
        text: str | bytes | None = request.query_params.get("request")
        if not file:
            text = await request.body()
        wanted = request_of(name, _object(text or b"", in_query=bool(file)))
        await run_in_threadpool(control.jobs.check, project, name, wanted)
        upload = await receive(request, control) if file else None
        return await run_in_threadpool(
            submitted, control, project, name, wanted, upload
        )

    return submit


def submitted(
    control: Control,
    project: int,
    name: str,
    wanted: Any,
    upload: Path | None,
) -> schemas.JobView:
    """The job that was put into the queue; raises `Conflict` where there is nothing to do."""
    job = ordered(control, project, name, wanted, upload)
    if job is None:
        raise Conflict("what this job would make is there: there is nothing to do")
    return views.job_view(job)


def ordered(
    control: Control, project: int, name: str, wanted: Any, upload: Path | None
) -> Job | None:
    """The job that was put into the queue, if there is something to do; the file that was sent is
    gone afterwards.
    """
    try:
        return control.jobs.order(project, name, wanted, upload)
    finally:
        if upload is not None:
            upload.unlink(missing_ok=True)


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
    schema = _schema(kind_named(name).Request)
    if not file:
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        return {"requestBody": body}
    content = {"schema": {"type": "string", "format": "binary"}}
    parameter = {
        "name": "request",
        "in": "query",
        "required": True,
        "description": "what is asked for, as JSON",
        "content": {"application/json": {"schema": schema}},
    }
    return {
        "parameters": [parameter],
        "requestBody": {
            "required": True,
            "description": file,
            "content": {"application/octet-stream": content},
        },
    }


def _schema(kind: type[Struct]) -> Json:
    """A struct as JSON schema, with what it refers to in its place."""
    schema = msgspec.json.schema(kind)
    parts = schema.pop("$defs")

    def whole(part: Any) -> Any:
        if isinstance(part, list):
            return [whole(one) for one in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return whole(parts[part["$ref"].rpartition("/")[2]])
        return {name: whole(one) for name, one in part.items()}

    found: Json = whole(schema)
    return found


# ---- files


def _chunk(path: Path, row: Job, offset: int) -> schemas.Chunk:
    data, begin = read(path, offset, CHUNK)
    # Never cut a line in two: what follows the last line end waits for the next call.
    if (row.state == "running" or len(data) == CHUNK) and (
        end := data.rfind(b"\n") + 1
    ):
        data = data[:end]
    return schemas.Chunk(
        text=data.decode("utf-8", "replace"), offset=begin + len(data), state=row.state
    )


def _file(folder: Path, name: str) -> Response:
    names = (
        {path.name: path for path in folder.iterdir() if path.is_file()}
        if folder.is_dir()
        else {}
    )
    if name not in names:
        raise NotFound(
            f"there is no file '{name[:80]}'; there are: {', '.join(sorted(names)) or 'none'}"
        )
    return FileResponse(names[name], headers={"x-content-type-options": "nosniff"})
