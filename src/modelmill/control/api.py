"""The admin API under /api/v1, described by OpenAPI at /docs. The gateway has checked the key
before.
"""

import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, Query, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from modelmill import __version__, plugins
from modelmill.cluster.logs import read
from modelmill.control import schemas, views
from modelmill.control.api_base import PREFIX, Control, ProjectId
from modelmill.control.api_index import add_indexes
from modelmill.control.api_serving import add_deployments, add_keys
from modelmill.control.db import Dataset, Job, Version
from modelmill.control.jobs import FROM
from modelmill.control.registry import summary
from modelmill.data.formats import fitting
from modelmill.errors import (
    InvalidInput,
    MillError,
    NotFound,
    StorageFull,
    TooLarge,
    from_os,
)
from modelmill.tasks.base import plan, recipe_named, task_named
from modelmill.types import WEIGHTS, Json, check_name, parse_reference

Number = Annotated[int, PathParameter(ge=1, le=1 << 53)]
Offset = Annotated[int, Query(ge=0, le=1 << 53)]

CHUNK = 1 << 20


def make_api(control: Control, status: Callable[[MillError], int]) -> FastAPI:
    """The application; `status` translates our errors to HTTP."""
    # Its page's scripts come from an installed package: nothing is fetched from outside.
    api = FastAPIOffline(
        title="modelmill",
        version=__version__,
        redoc_url=None,
        static_url="/docs/assets",
        dependencies=[
            Depends(HTTPBearer(auto_error=False))
        ],  # the gateway checks it; this describes it
        responses={
            "4XX": {"model": schemas.Problem},
            "5XX": {"model": schemas.Problem},
        },
    )
    api.state.control = control
    _add_errors(api, status)
    serving = add_deployments, add_indexes, add_keys
    for add in (
        _add_catalogue,
        _add_datasets,
        _add_submissions,
        _add_jobs,
        _add_models,
        *serving,
    ):
        add(api, control)
    for route in api.routes:
        if isinstance(route, APIRoute):
            route.summary = route.description.partition(".")[0]
    return api


def _add_errors(api: FastAPI, status: Callable[[MillError], int]) -> None:
    @api.exception_handler(MillError)
    def ours(request: Request, error: MillError) -> JSONResponse:
        return JSONResponse({"error": error.message, "code": error.code}, status(error))

    @api.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] in ("model_attributes_type", "dict_type") and first["loc"] == (
            "body",
        ):
            text = "the body is a JSON object, sent with the header Content-Type: application/json"
            return JSONResponse({"error": text, "code": "invalid_input"}, 400)
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        text = (
            f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}"
            if place
            else first["msg"]
        )
        return JSONResponse({"error": text, "code": "invalid_input"}, 400)

    @api.exception_handler(Exception)
    def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(
            {
                "error": "the admin API failed; the gateway's log says why",
                "code": "internal",
            },
            500,
        )

    @api.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path[:200]}: {str(error.detail).lower()}; see /docs"
        code = {404: "not_found", 405: "method_not_allowed"}.get(
            error.status_code, "invalid_input"
        )
        return JSONResponse(
            {"error": text, "code": code}, error.status_code, headers=error.headers
        )


def _add_catalogue(api: FastAPI, control: Control) -> None:
    @api.get(f"{PREFIX}/tasks", tags=["catalogue"])
    def tasks() -> list[schemas.TaskView]:
        """What can be trained and served."""
        return [views.task_view(name) for name in plugins.names("tasks")]

    @api.get(f"{PREFIX}/recipes", tags=["catalogue"])
    def recipes(task: schemas.TaskName) -> list[schemas.RecipeView]:
        """The recipes of a task, with the defaults and meaning of every setting."""
        default = cast(Any, task_named(task)).RECIPE
        return [
            views.recipe_view(task, name, name == default)
            for name in plugins.names(plugins.recipes_of(task))
        ]


def _add_datasets(api: FastAPI, control: Control) -> None:
    archive = {
        "required": True,
        "content": {
            "application/zip": {"schema": {"type": "string", "format": "binary"}}
        },
    }

    @api.post(
        f"{PREFIX}/datasets",
        status_code=202,
        tags=["data sets"],
        openapi_extra={"requestBody": archive},
    )
    async def add(
        request: Request,
        project: ProjectId,
        name: str,
        task: schemas.TaskName,
        format: str = "",
        strict: bool = False,
        option: Annotated[
            list[str] | None, Query(description="NAME=VALUE for the format")
        ] = None,
    ) -> schemas.DatasetAdded:
        """Upload a zip of the data (the body) and check it."""
        check_name("data set", name)
        options = _options(task, format, option or [])
        upload = await _receive(request, control)
        return await run_in_threadpool(
            _added, control, project, name, task, format, options, strict, upload
        )

    @api.get(f"{PREFIX}/datasets", tags=["data sets"])
    def all_sets(project: ProjectId) -> list[schemas.DatasetView]:
        """All data sets."""
        return [views.dataset_view(row) for row in control.datasets.all(project)]

    @api.get(f"{PREFIX}/datasets/{{name}}", tags=["data sets"])
    def one(name: str, project: ProjectId) -> schemas.DatasetView:
        """One data set with what the check found."""
        return views.dataset_view(control.datasets.get(project, name))

    @api.delete(f"{PREFIX}/datasets/{{name}}", status_code=204, tags=["data sets"])
    def remove(name: str, project: ProjectId) -> None:
        """Forget a data set."""
        control.datasets.remove(project, name)


def _options(task: str, format: str, given: list[str]) -> dict[str, str]:
    """Options of the reader as a dictionary; raises for a task, format or option that does not
    exist.
    """
    formats = fitting(task_named(task))
    if format and format not in formats:
        plugins.load("data.formats", format)  # says so when there is none
        raise InvalidInput(
            f"format '{format}' does not hold what {task} is trained on; choose one of "
            f"{', '.join(formats)}"
        )
    pairs = dict(pair.partition("=")[::2] for pair in given)
    known = {
        option
        for name, one in formats.items()
        if name == format or not format
        for option in one.OPTIONS
    }
    for name in pairs:
        if name not in known:
            raise InvalidInput(
                f"unknown option '{name}'; there are: {', '.join(sorted(known)) or 'none'}"
            )
    return pairs


async def _receive(request: Request, control: Control) -> Path:
    """The body as a file in the home; removed again when it can't be taken whole.

    Raises `TooLarge`, and `StorageFull` where it would leave less than `free_bytes` on the disk:
    by its declared length before any of it is read, and again as it comes.
    """
    folder = control.jobs.home / "uploads"
    path = folder / uuid.uuid4().hex
    size = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_large(int(request.headers.get("content-length", 0)), folder, control)
        with path.open("wb") as file:
            async for chunk in _gathered(request.stream()):
                size += len(chunk)
                _refuse_large(size, folder, control, written=size - len(chunk))
                await run_in_threadpool(
                    file.write, chunk
                )  # a slow disk must not keep predictions waiting
    except OSError as error:
        path.unlink(missing_ok=True)
        raise from_os(error, "taking the upload") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if not size:
        path.unlink(missing_ok=True)
        raise InvalidInput("the body is empty: send a zip")
    return path


def _refuse_large(size: int, folder: Path, control: Control, written: int = 0) -> None:
    """Refuse an upload of so many bytes, some of which are on the disk already."""
    if size > control.upload_bytes:
        raise TooLarge(f"the upload exceeds {control.upload_bytes:,} bytes")
    room = shutil.disk_usage(folder).free - control.free_bytes
    if size - written > room:
        raise StorageFull(
            f"the upload needs {_mib(size)} and the disk has room for "
            f"{_mib(max(room, 0) + written)}: free some ({_mib(control.free_bytes)} stay free, "
            "limits.free_bytes)"
        )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


async def _gathered(stream: AsyncIterator[bytes]) -> AsyncIterator[bytearray]:
    """The same bytes in pieces of a size worth a thread."""
    gathered = bytearray()
    async for chunk in stream:
        gathered += chunk
        if len(gathered) >= CHUNK:
            yield gathered
            gathered = bytearray()
    if gathered:
        yield gathered


def _added(
    control: Control,
    project: int,
    name: str,
    task: str,
    format: str,
    options: dict[str, str],
    strict: bool,
    upload: Path,
) -> schemas.DatasetAdded:
    try:
        row, new = control.datasets.add(
            project, name, task, format, options, strict, upload
        )
    finally:
        upload.unlink(missing_ok=True)
    job = None
    if new:
        values = {"dataset_id": row.id, "dataset": name, "task": task}
        job = control.jobs.submit(project, "import", **values).id
    return schemas.DatasetAdded(name=name, job=job)


def _brought(
    control: Control, project: int, name: str, settings: Json, upload: Path
) -> schemas.JobView:
    try:
        settings = {"upload": control.artifacts.add_file(upload), **settings}
    finally:
        upload.unlink(missing_ok=True)
    return views.job_view(
        control.jobs.submit(project, "register", model=name, settings=settings)
    )


def _add_submissions(api: FastAPI, control: Control) -> None:
    jobs = control.jobs

    @api.post(f"{PREFIX}/train", status_code=202, tags=["jobs"])
    def train(body: schemas.TrainRequest, project: ProjectId) -> schemas.JobView:
        """Queue a training."""
        check_name("model", body.name)
        base = control.registry.get(project, body.base) if body.base else None
        recipe_name = _recipe_name(body, base)
        recipe = recipe_named(body.task, recipe_name)
        valid = plan(recipe, body.settings).flat()
        settings = {
            setting: valid[setting] for setting in body.settings
        }  # what is left open the job chooses by the data
        dataset = control.datasets.trainable(project, body.data, body.task)
        with control.database.session() as session:
            control.registry.refuse_other_task(session, project, body.name, body.task)
        if base:
            settings[FROM] = f"{base.model}:{base.number}"
        values = {
            "model": body.name,
            "task": body.task,
            "recipe": recipe_name,
            "settings": settings,
        }
        return views.job_view(
            jobs.submit(
                project, "train", dataset_id=dataset.id, dataset=dataset.name, **values
            )
        )

    @api.post(f"{PREFIX}/evaluate", status_code=202, tags=["jobs"])
    def evaluate(body: schemas.EvaluateRequest, project: ProjectId) -> schemas.JobView:
        """Queue an evaluation of a version on a data set."""
        version = control.registry.get(project, body.model)
        dataset = control.datasets.usable(project, body.data, version.task, body.split)
        if task_named(version.task).SPLIT != "classes":
            _refuse_other_labels(dataset, version.manifest["labels"])
        return views.job_view(
            jobs.submit(
                project,
                "evaluate",
                model=version.model,
                version=version.number,
                task=version.task,
                dataset_id=dataset.id,
                dataset=dataset.name,
                settings={"split": body.split},
            )
        )


def _recipe_name(body: schemas.TrainRequest, base: Version | None) -> str:
    """The recipe that is asked for, that of the version to start from, or the task's own; raises
    `InvalidInput`.
    """
    if base is None:
        return body.recipe or task_named(body.task).RECIPE
    name = f"{base.model}:{base.number}"
    if WEIGHTS not in base.manifest["files"]:
        raise InvalidInput(
            f"{name} has no weights to start from: it came here as a finished network"
        )
    same = base.manifest["lineage"]["recipe"] if base.task == body.task else ""
    chosen = body.recipe or same or task_named(body.task).RECIPE
    if not hasattr(recipe_named(body.task, chosen), "network"):
        recipes = plugins.names(plugins.recipes_of(body.task))
        others = [
            one for one in recipes if hasattr(recipe_named(body.task, one), "network")
        ]
        raise InvalidInput(
            f"the recipe {chosen} starts from nothing; choose another: {', '.join(others)}"
        )
    return chosen


def _add_jobs(api: FastAPI, control: Control) -> None:
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


def _refuse_other_labels(dataset: Dataset, labels: list[str]) -> None:
    strange = sorted(set(dataset.report.get("classes", {})) - set(labels))
    if strange:
        raise InvalidInput(
            f"data set '{dataset.name}' has classes that the model does not know: "
            f"{', '.join(strange[:10])}"
        )


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


def _add_models(api: FastAPI, control: Control) -> None:
    registry = control.registry
    file = {"type": "string", "format": "binary"}
    model = {
        "required": True,
        "content": {"application/octet-stream": {"schema": file}},
    }

    @api.post(
        f"{PREFIX}/models",
        status_code=202,
        tags=["models"],
        openapi_extra={"requestBody": model},
    )
    async def bring(
        request: Request,
        project: ProjectId,
        name: str,
        label: Annotated[
            list[str] | None, Query(description="names of the classes, in order")
        ] = None,
        trust: Annotated[
            bool,
            Query(description="take a file that may run code, such as model.pt2"),
        ] = False,
    ) -> schemas.JobView:
        """Bring a finished model (the body): a bare model.onnx or model.pt2, or a zip of a bundle.
        A job checks it.
        """
        check_name("model", name)
        upload = await _receive(request, control)
        settings: Json = {"labels": label or []}
        if trust:
            settings["trust"] = True
        return await run_in_threadpool(
            _brought, control, project, name, settings, upload
        )

    @api.get(f"{PREFIX}/models", tags=["models"])
    def all_versions(project: ProjectId) -> list[schemas.VersionView]:
        """All versions of all models."""
        aliases = registry.aliases(project)
        return [
            schemas.VersionView(**summary(row, aliases))
            for row in registry.all(project)
        ]

    @api.get(f"{PREFIX}/models/{{reference}}", tags=["models"])
    def one(reference: str, project: ProjectId) -> schemas.VersionView:
        """One version: NAME, NAME:VERSION or NAME@ALIAS."""
        row = registry.get(project, reference)
        return schemas.VersionView(
            **summary(row, registry.aliases(project)),
            parameters=views.parameters_view(row.task),
        )

    @api.get(f"{PREFIX}/models/{{reference}}/files/{{name:path}}", tags=["models"])
    def download(reference: str, name: str, project: ProjectId) -> Response:
        """A file of a version's bundle."""
        row = registry.get(project, reference)
        if name not in {*row.manifest["files"], "manifest.json"}:
            raise NotFound(
                f"the bundle has no file '{name[:80]}'; it has: {', '.join(row.manifest['files'])}"
            )
        return FileResponse(
            registry.folder(row) / name, headers={"x-content-type-options": "nosniff"}
        )

    @api.put(f"{PREFIX}/aliases", tags=["models"])
    def alias(body: schemas.AliasRequest, project: ProjectId) -> schemas.VersionView:
        """Point an alias at a version."""
        asked = parse_reference(body.model)
        if asked.version is None and asked.alias is None:
            raise InvalidInput(
                f"an alias is for one version: write {asked.name}:VERSION"
            )
        row = registry.alias(project, body.model, check_name("alias", body.alias))
        return schemas.VersionView(**summary(row, registry.aliases(project)))
