"""The admin API under /api/v1, described by OpenAPI at /docs. The gateway has checked the key
before.
"""

from collections.abc import Callable
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
from modelmill.control import schemas, views
from modelmill.control.api_base import PREFIX, Control, ProjectId
from modelmill.control.api_index import add_indexes
from modelmill.control.api_jobs import add_jobs, ordered, submitted
from modelmill.control.api_serving import add_deployments, add_keys
from modelmill.control.kinds import request_of
from modelmill.control.registry import summary
from modelmill.control.uploads import receive
from modelmill.errors import (
    InvalidInput,
    MillError,
    NotFound,
)
from modelmill.tasks.base import task_named
from modelmill.types import check_name, parse_reference

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
        add_jobs,
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
        document = {
            "name": name,
            "task": task,
            "format": format,
            "strict": strict,
            "options": dict(pair.partition("=")[::2] for pair in option or []),
        }
        wanted = request_of("import", document)
        control.jobs.check(project, "import", wanted)
        upload = await receive(request, control)
        job = await run_in_threadpool(
            ordered, control, project, "import", wanted, upload
        )
        return schemas.DatasetAdded(name=name, job=job.id if job else None)

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
        document = {"name": name, "labels": label or [], "trust": trust}
        wanted = request_of("register", document)
        control.jobs.check(project, "register", wanted)
        upload = await receive(request, control)
        return await run_in_threadpool(
            submitted, control, project, "register", wanted, upload
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
