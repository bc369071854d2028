"""Endpoints of the Open Inference Protocol v2 over HTTP.

What a Content-Type says is never believed: clients send none, or a wrong one.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from modelmill.errors import InvalidInput, NotFound, NotInstalled
from modelmill.protocols.base import (
    Endpoint,
    Request,
    Response,
    read_json,
    simple_error,
)
from modelmill.protocols.v2 import models, settings
from modelmill.protocols.v2.infer import infer, quick
from modelmill.protocols.v2.shared_memory import regions
from modelmill.serve.gateway import Gateway
from modelmill.types import Json, KeyInfo

# ---- health, metadata, statistics


def _json(document: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status)


async def live(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """The server answers."""
    return Response(b'{"live":true}')


async def ready(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """The server can take inference calls."""
    return _json({"ready": gateway.ready}, 200 if gateway.ready else 503)


async def server(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """Server metadata."""
    return _json(models.server_metadata(gateway))


async def model_ready(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """200 when the model answers, 400 when not, as Triton's clients expect."""
    try:
        route = gateway.route(caller, names["model"], names.get("version"))
    except NotFound as missing:
        return Response(simple_error(missing), 400)
    is_ready = models.is_ready(gateway, route)
    return _json(
        {"name": route.deployment, "ready": is_ready}, 200 if is_ready else 400
    )


async def metadata(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """The model's signature; `/v2/models/stats` are the statistics of all models."""
    if names["model"] == "stats" and "version" not in names:
        return _json(models.model_statistics(gateway, caller))
    return _json(
        models.model_metadata(gateway, caller, names["model"], names.get("version"))
    )


async def config(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """The model's configuration."""
    return _json(
        models.model_config(gateway, caller, names["model"], names.get("version"))
    )


async def statistics(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """What the model was asked and how long it took."""
    return _json(
        models.model_statistics(gateway, caller, names["model"], names.get("version"))
    )


# ---- repository and settings


async def _document(request: Request) -> Json:
    """The JSON object of a body that may be empty; raises `InvalidInput`."""
    body = await request.body()
    document = read_json(body) if body.strip() else {}
    if not isinstance(document, dict):
        raise InvalidInput("the body is a JSON object, or empty")
    return document


async def index(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """Every model and version, and its state."""
    only_ready = (await _document(request)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidInput("ready is true (only what is ready) or false (everything)")
    return _json(models.repository_index(gateway, caller, only_ready))


async def load(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """Load a deployment; answers when it is there."""
    gateway.require_admin(caller)
    parameters = (await _document(request)).get("parameters") or {}
    if parameters:
        raise InvalidInput(
            "a deployment is loaded as it was deployed: configuration and files can't be given here"
        )
    await models.load(gateway, caller, names["model"])
    return Response()


async def unload(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """Unload a deployment; answers when it is gone."""
    await models.unload(gateway, caller, names["model"])
    return Response()


async def trace(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """The trace settings, of the server or of a model."""
    return _json(settings.trace_settings(gateway, caller, names.get("model")))


async def set_trace(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """Change trace settings."""
    gateway.require_admin(caller)
    return _json(
        settings.update_trace_settings(
            gateway, caller, await _document(request), names.get("model")
        )
    )


async def log(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """The log settings."""
    return _json(settings.log_settings(gateway))


async def set_log(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """Change log settings."""
    gateway.require_admin(caller)
    return _json(
        settings.update_log_settings(gateway, caller, await _document(request))
    )


# ---- shared memory


class Registration(msgspec.Struct):
    """Which shared memory to take as a region."""

    key: str
    byte_size: int
    offset: int = 0


async def register(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """Take a shared-memory object of this machine as a region of the caller's."""
    known = regions(gateway)
    try:
        asked = msgspec.convert(await _document(request), Registration)
    except msgspec.ValidationError as wrong:
        raise InvalidInput(
            f"the body wants the form {{key, offset, byte_size}}: {wrong}"
        ) from wrong
    known.register(caller, names["region"], asked.key, asked.offset, asked.byte_size)
    return Response()


async def unregister(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """Let go of a region, or of all of the caller's."""
    if gateway.shared_memory:
        regions(gateway).unregister(caller, names.get("region"))
    return Response()


async def memory(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """The caller's regions."""
    if not gateway.shared_memory and "region" not in names:
        return Response(b"[]")
    return _json(regions(gateway).status(caller, names.get("region")))


async def no_device_memory(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """Memory of a GPU is not taken."""
    raise NotInstalled(
        "shared memory of a GPU is not taken: register system shared memory"
    )


async def device_memory(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """No region: clients ask before they register, and clear up, whether or not they use it."""
    return Response(b"" if request.method == "POST" else b"[]")


_MODEL = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
_SYSTEM, _DEVICE = "/v2/systemsharedmemory", "/v2/cudasharedmemory"

ROUTES = [
    *(Endpoint("POST", f"{path}/infer", infer, quick=quick) for path in _MODEL),
    Endpoint("GET", "/v2/health/live", live, public=True),
    Endpoint("GET", "/v2/health/ready", ready, public=True),
    Endpoint("GET", "/v2", server),
    *(Endpoint("GET", f"{path}/ready", model_ready) for path in _MODEL),
    *(Endpoint("GET", f"{path}/config", config) for path in _MODEL),
    *(Endpoint("GET", f"{path}/stats", statistics) for path in _MODEL),
    *(Endpoint("GET", path, metadata) for path in _MODEL),
    Endpoint("POST", "/v2/repository/index", index),
    Endpoint("POST", "/v2/repository/models/{model}/load", load),
    Endpoint("POST", "/v2/repository/models/{model}/unload", unload),
    *(Endpoint("GET", f"{path}/trace/setting", trace) for path in ("/v2", _MODEL[0])),
    *(
        Endpoint("POST", f"{path}/trace/setting", set_trace)
        for path in ("/v2", _MODEL[0])
    ),
    Endpoint("GET", "/v2/logging", log),
    Endpoint("POST", "/v2/logging", set_log),
    Endpoint("POST", f"{_SYSTEM}/region/{{region}}/register", register),
    *(
        Endpoint("POST", f"{path}/unregister", unregister)
        for path in (_SYSTEM, f"{_SYSTEM}/region/{{region}}")
    ),
    *(
        Endpoint("GET", f"{path}/status", memory)
        for path in (_SYSTEM, f"{_SYSTEM}/region/{{region}}")
    ),
    Endpoint("POST", f"{_DEVICE}/region/{{region}}/register", no_device_memory),
    *(
        Endpoint("POST", f"{path}/unregister", device_memory)
        for path in (_DEVICE, f"{_DEVICE}/region/{{region}}")
    ),
    *(
        Endpoint("GET", f"{path}/status", device_memory)
        for path in (_DEVICE, f"{_DEVICE}/region/{{region}}")
    ),
]
