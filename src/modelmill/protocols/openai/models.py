"""The models that are served: `data` for OpenAI's clients, `models`, `name` and `ready` for
KServe's.
"""

import msgspec

from modelmill.protocols.base import Endpoint, Request, Response
from modelmill.types import Json, ServedVersion


async def models(request: Request) -> Response:
    """The deployments: `data` for OpenAI's clients, `models` for KServe's."""
    deployments = sorted(request.gateway.routes(request.caller).items())
    document = {
        "object": "list",
        "data": [_described(version) for _, version in deployments],
        "models": [name for name, _ in deployments],
    }
    return Response(msgspec.json.encode(document))


async def model(request: Request) -> Response:
    """One deployment: as OpenAI describes a model, with KServe's `name` and `ready`."""
    gateway = request.gateway
    version = gateway.route(request.caller, request.names["id"])
    ready = version.loaded and (
        version.asleep or (version.ready and gateway.connected(version))
    )
    return Response(
        msgspec.json.encode(
            {**_described(version), "name": version.deployment, "ready": ready}
        )
    )


def _described(version: ServedVersion) -> Json:
    return {
        "id": version.deployment,
        "object": "model",
        "created": version.created,
        "owned_by": version.project,
    }


ROUTES = [
    Endpoint("GET", "/v1/models", models),
    Endpoint("GET", "/v1/models/{id:path}", model),
]
