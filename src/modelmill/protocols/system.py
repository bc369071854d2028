"""Health for Kubernetes and Prometheus metrics."""

from collections.abc import Mapping

import msgspec

from modelmill.protocols.base import Request, Response, Route, simple_error
from modelmill.serve.gateway import Gateway
from modelmill.types import KeyInfo

error = simple_error


async def live(gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]) -> Response:
    """The process answers."""
    return Response(b'{"status":"alive"}')


async def ready(gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]) -> Response:
    """Requests should be sent here: routes are known, the disk has room, no shutdown is under way."""
    return Response(msgspec.json.encode({"ready": gateway.ready}), 200 if gateway.ready else 503)


async def metrics(gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]) -> Response:
    """Prometheus text exposition format 0.0.4."""
    return Response(gateway.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8")


ROUTES = [
    Route("GET", "/", live, public=True),
    Route("GET", "/livez", live, public=True),
    Route("GET", "/healthz", live, public=True),
    Route("GET", "/readyz", ready, public=True),
    Route("GET", "/metrics", metrics),
]
