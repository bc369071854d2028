"""Endpoints of the Open Inference Protocol v2 over HTTP.

What a Content-Type says is never believed: clients send none, or a wrong one.
"""

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
from modelmill.protocols.v2.infer import fast_path, infer
from modelmill.protocols.v2.shared_memory import regions
from modelmill.serve.gateway import Gateway
from modelmill.types import Json, KeyInfo

# ---- health, metadata, statistics


def _json(document: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status)


def _model(request: Request) -> tuple[Gateway, KeyInfo, str, str | None]:
    """Which model of whose a path names, and which version."""
    names = request.names
    return request.gateway, request.caller, names["model"], names.get("version")


async def live(request: Request) -> Response:
    """The server answers."""
    return Response(b'{"live":true}')


async def ready(request: Request) -> Response:
    """The server can take inference calls."""
    return _json(
        {"ready": request.gateway.ready}, 200 if request.gateway.ready else 503
    )


async def server(request: Request) -> Response:
    """Server metadata."""
    return _json(models.server_metadata(request.gateway))


async def model_ready(request: Request) -> Response:
    """200 when the model answers, 400 when not, as Triton's clients expect."""
    gateway, caller, name, number = _model(request)
    try:
        version = gateway.route(caller, name, number)
    except NotFound as missing:
        return Response(simple_error(missing), 400)
    is_ready = models.is_ready(gateway, version)
    return _json(
        {"name": version.deployment, "ready": is_ready},
        200 if is_ready else 400,
    )


async def metadata(request: Request) -> Response:
    """The model's signature; `/v2/models/stats` are the statistics of all models."""
    if request.names["model"] == "stats" and "version" not in request.names:
        return _json(models.model_statistics(request.gateway, request.caller))
    return _json(models.model_metadata(*_model(request)))


async def config(request: Request) -> Response:
    """The model's configuration."""
    return _json(models.model_config(*_model(request)))


async def statistics(request: Request) -> Response:
    """How many requests the model answered, and how long they took."""
    return _json(models.model_statistics(*_model(request)))


# ---- repository and settings


async def _document(request: Request) -> Json:
    """The JSON object of a body that may be empty; raises `InvalidInput`."""
    body = await request.body()
    document = read_json(body) if body.strip() else {}
    if not isinstance(document, dict):
        raise InvalidInput("the body is a JSON object, or empty")
    return document


async def index(request: Request) -> Response:
    """Every model and version, and its state."""
    only_ready = (await _document(request)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidInput(
            "ready is true (only what is ready) or false (everything)"
        )
    return _json(
        models.repository_index(request.gateway, request.caller, only_ready)
    )


async def load(request: Request) -> Response:
    """Load a deployment; answers when it is there."""
    request.gateway.require_admin(request.caller)
    parameters = (await _document(request)).get("parameters") or {}
    if parameters:
        raise InvalidInput(
            "a deployment is loaded as it was deployed: configuration and files can't be given here"
        )
    await request.gateway.operate(request.caller, request.names["model"], True)
    return Response()


async def unload(request: Request) -> Response:
    """Unload a deployment; answers when it is gone."""
    await request.gateway.operate(request.caller, request.names["model"], False)
    return Response()


async def trace(request: Request) -> Response:
    """The trace settings, of the server or of a model."""
    return _json(
        settings.trace_settings(
            request.gateway, request.caller, request.names.get("model")
        )
    )


async def set_trace(request: Request) -> Response:
    """Change trace settings."""
    request.gateway.require_admin(request.caller)
    return _json(
        settings.update_trace_settings(
            request.gateway,
            request.caller,
            await _document(request),
            request.names.get("model"),
        )
    )


async def log(request: Request) -> Response:
    """The log settings."""
    return _json(settings.log_settings(request.gateway))


async def set_log(request: Request) -> Response:
    """Change log settings."""
    request.gateway.require_admin(request.caller)
    return _json(
        settings.update_log_settings(
            request.gateway, request.caller, await _document(request)
        )
    )


# ---- shared memory


class Registration(msgspec.Struct):
    """Which shared memory to take as a region."""

    key: str
    byte_size: int
    offset: int = 0


async def register(request: Request) -> Response:
    """Take a shared-memory object of this machine as a region of the caller's."""
    all_regions = regions(request.gateway)
    try:
        wanted = msgspec.convert(await _document(request), Registration)
    except msgspec.ValidationError as wrong:
        raise InvalidInput(
            f"the body wants the form {{key, offset, byte_size}}: {wrong}"
        ) from wrong
    all_regions.register(
        request.caller,
        request.names["region"],
        wanted.key,
        wanted.offset,
        wanted.byte_size,
    )
    return Response()


async def unregister(request: Request) -> Response:
    """Let go of a region, or of all of the caller's."""
    if request.gateway.shared_memory:
        regions(request.gateway).unregister(
            request.caller, request.names.get("region")
        )
    return Response()


async def memory(request: Request) -> Response:
    """The caller's regions."""
    if not request.gateway.shared_memory and "region" not in request.names:
        return Response(b"[]")
    return _json(
        regions(request.gateway).status(
            request.caller, request.names.get("region")
        )
    )


async def no_device_memory(request: Request) -> Response:
    """Memory of a GPU is not taken."""
    raise NotInstalled(
        "shared memory of a GPU is not taken: register system shared memory"
    )


async def device_memory(request: Request) -> Response:
    """No region: clients ask before they register, and clear up, whether or not they use it."""
    return Response(b"" if request.method == "POST" else b"[]")


_MODEL = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
_SYSTEM, _DEVICE = "/v2/systemsharedmemory", "/v2/cudasharedmemory"

ROUTES = [
    *(
        Endpoint("POST", f"{path}/infer", infer, fast_path=fast_path)
        for path in _MODEL
    ),
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
    *(
        Endpoint("GET", f"{path}/trace/setting", trace)
        for path in ("/v2", _MODEL[0])
    ),
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
