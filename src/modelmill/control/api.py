"""The admin API under /api/v1, described by OpenAPI at /docs. The gateway has checked the key
before.

Each noun has a file `api_NOUN.py` with a router. A route is a function below its decorator: it
asks for the stores by `ControlOf` and for the caller's project by `ProjectId`. A new router is
named in `_routers`.
"""

from collections.abc import Callable

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline

from modelmill import __version__
from modelmill.control import (
    api_catalogue,
    api_datasets,
    api_deployments,
    api_index,
    api_jobs,
    api_keys,
    api_models,
    schemas,
)
from modelmill.control.api_base import Control
from modelmill.control.api_errors import ErrorResponses
from modelmill.errors import MillError


def make_api(control: Control, status: Callable[[MillError], int]) -> FastAPI:
    """The application; `status` translates our errors to HTTP."""
    # Its page's scripts come from an installed package: nothing is fetched from outside.
    api = FastAPIOffline(
        title="modelmill",
        version=__version__,
        redoc_url=None,
        static_url="/docs/assets",
        # The gateway checks it; this describes it.
        dependencies=[Depends(HTTPBearer(auto_error=False))],
        responses={
            "4XX": {"model": schemas.Problem},
            "5XX": {"model": schemas.Problem},
        },
    )
    api.state.control = control
    ErrorResponses(status).add_to(api)
    for router in _routers():
        _summarise(router)
        api.include_router(router)
    return api


def _routers() -> tuple[APIRouter, ...]:
    """Asked in this order for the route of a request, and so described."""
    return (
        api_catalogue.router,
        api_datasets.router,
        api_jobs.kinds_router(),
        api_jobs.router,
        api_models.router,
        api_deployments.router,
        api_index.router,
        api_keys.router,
    )


def _summarise(router: APIRouter) -> None:
    """The first sentence of what a route says of itself is its summary."""
    for route in router.routes:
        if isinstance(route, APIRoute):
            route.summary = route.description.partition(".")[0]
