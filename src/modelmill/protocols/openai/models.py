"""The models that are served: `data` for OpenAI's clients, `models`, `name` and `ready` for
KServe's.
"""

from collections.abc import Mapping

import msgspec

from modelmill.protocols.base import Endpoint, Request, Response
from modelmill.serve.gateway import Gateway
from modelmill.types import Json, KeyInfo, ServedVersion


async def models(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """The deployments: `data` for OpenAI's clients, `models` for KServe's."""
    routes = sorted(gateway.routes(caller).items())
    document = {
        "object": "list",
        "data": [_described(route) for _, route in routes],
        "models": [name for name, _ in routes],
    }
    return Response(msgspec.json.encode(document))


async def model(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """One deployment: as OpenAI describes a model, with KServe's `name` and `ready`."""
    route = gateway.route(caller, names["id"])
    ready = route.loaded and (
        route.asleep or (route.ready and gateway.connected(route))
    )
    return Response(
        msgspec.json.encode(
            {**_described(route), "name": route.deployment, "ready": ready}
        )
    )


def _described(route: ServedVersion) -> Json:
    return {
        "id": route.deployment,
        "object": "model",
        "created": route.created,
        "owned_by": route.project,
    }


ROUTES = [
    Endpoint("GET", "/v1/models", models),
    Endpoint("GET", "/v1/models/{id:path}", model),
]
