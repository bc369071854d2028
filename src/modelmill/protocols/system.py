"""Health for Kubernetes and Prometheus metrics."""

import msgspec

from modelmill.protocols.base import Endpoint, Request, Response, simple_error
from modelmill.serve.gateway import Gateway

NAME = "system"
error = simple_error


async def live(request: Request) -> Response:
    """The process answers."""
    return Response(b'{"status":"alive"}')


async def ready(request: Request) -> Response:
    """Requests may be sent here: the deployments are known, the disk has room, and no shutdown is
    under way.
    """
    if request.gateway.ready:
        return Response(b'{"ready":true}')
    return Response(
        msgspec.json.encode(
            {"ready": False, "reason": _reason(request.gateway)}
        ),
        503,
    )


def _reason(gateway: Gateway) -> str:
    if gateway.draining:
        return "draining: the gateway is being stopped"
    if not gateway.healthy:
        return "disk full: the home has less room than limits.free_bytes"
    return "no snapshot: routes and keys are not known yet"


async def metrics(request: Request) -> Response:
    """Prometheus text exposition format 0.0.4. A key of the role user reads its own project
    and its own use.
    """
    return Response(
        request.gateway.exposition(request.caller),
        content_type="text/plain; version=0.0.4; charset=utf-8",
    )


ROUTES = [
    Endpoint("GET", "/", live, public=True),
    Endpoint("GET", "/livez", live, public=True),
    Endpoint("GET", "/healthz", live, public=True),
    Endpoint("GET", "/readyz", ready, public=True),
    Endpoint("GET", "/metrics", metrics),
]
