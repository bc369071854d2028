"""The methods of inference.GRPCInferenceService, and the table of all that is served over gRPC."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from google.protobuf.json_format import ParseDict

from modelmill.errors import InvalidInput, MethodNotAllowed, NotFound
from modelmill.protocols.v2 import models, settings
from modelmill.protocols.v2.grpc import infer, system
from modelmill.protocols.v2.grpc.call import GrpcCall, Handler, Method
from modelmill.protocols.v2.grpc.messages import NEW, OLD, message, services
from modelmill.protocols.v2.shared_memory import regions
from modelmill.types import Json

INFERENCE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
PUBLIC = frozenset(
    {f"/{INFERENCE}/ServerLive", f"/{INFERENCE}/ServerReady"}
) | {f"/{HEALTH}/{name}" for name in ("Check", "List", "Watch")}
"""The only methods that need no key."""
REFLECTION = frozenset({NEW, OLD})
PARAMETERS = {bool: "bool_param", int: "uint32_param"}
"""The fields of log settings by their type; others are texts."""


def _filled(name: str, document: Mapping[str, Any]) -> Any:
    """A message of ours from the dictionary that HTTP sends as JSON; what it has beyond the message
    is left out.
    """
    return ParseDict(
        document, message(f"inference.{name}")(), ignore_unknown_fields=True
    )


def _empty(name: str) -> Any:
    return message(f"inference.{name}")()


async def server_live(call: GrpcCall, request: Any) -> Any:
    """The server answers."""
    return _filled("ServerLiveResponse", {"live": True})


async def server_ready(call: GrpcCall, request: Any) -> Any:
    """The server can take inference calls."""
    return _filled("ServerReadyResponse", {"ready": call.gateway.ready})


async def server_metadata(call: GrpcCall, request: Any) -> Any:
    """Name, version and extensions."""
    return _filled(
        "ServerMetadataResponse", models.server_metadata(call.gateway)
    )


async def model_ready(call: GrpcCall, request: Any) -> Any:
    """Whether a request would be answered; a model that does not exist is not ready."""
    gateway = call.gateway
    try:
        ready = models.is_ready(
            gateway,
            gateway.route(call.caller, request.name, request.version or None),
        )
    except NotFound:
        ready = False
    return _filled("ModelReadyResponse", {"ready": ready})


async def model_metadata(call: GrpcCall, request: Any) -> Any:
    """The model's signature."""
    document = models.model_metadata(
        call.gateway, call.caller, request.name, request.version or None
    )
    return _filled("ModelMetadataResponse", document)


async def model_config(call: GrpcCall, request: Any) -> Any:
    """The model's configuration, as Triton would have it."""
    document = models.model_config(
        call.gateway, call.caller, request.name, request.version or None
    )
    return _filled("ModelConfigResponse", {"config": document})


async def model_statistics(call: GrpcCall, request: Any) -> Any:
    """Counts and durations of the requests to one model, or to all."""
    document = models.model_statistics(
        call.gateway, call.caller, request.name or None, request.version or None
    )
    return _filled("ModelStatisticsResponse", document)


async def repository_index(call: GrpcCall, request: Any) -> Any:
    """Every version that the caller can see."""
    rows = models.repository_index(call.gateway, call.caller, request.ready)
    return _filled("RepositoryIndexResponse", {"models": rows})


async def repository_model_load(call: GrpcCall, request: Any) -> Any:
    """Load a model and wait until it answers."""
    if request.parameters:
        names = ", ".join(sorted(request.parameters))[:200]
        raise InvalidInput(
            f"a model is loaded as it was deployed: the parameters {names} are not taken"
        )
    await call.gateway.operate(call.caller, request.model_name, True)
    return _empty("RepositoryModelLoadResponse")


async def repository_model_unload(call: GrpcCall, request: Any) -> Any:
    """Unload a model: it keeps its name and answers nobody."""
    await call.gateway.operate(call.caller, request.model_name, False)
    return _empty("RepositoryModelUnloadResponse")


async def trace_setting(call: GrpcCall, request: Any) -> Any:
    """The trace settings, after the changes of the request."""
    response = _empty("TraceSettingResponse")
    for key, value in _traced(call, request).items():
        values = [value] if isinstance(value, str) else value
        response.settings[key].value.extend(values)
    return response


def _traced(call: GrpcCall, request: Any) -> Json:
    """The trace settings, after the changes."""
    gateway, name = call.gateway, request.model_name or None
    changes = {
        key: list(value.value) or None
        for key, value in request.settings.items()
    }
    if changes:
        return settings.update_trace_settings(
            gateway, call.caller, changes, name
        )
    return settings.trace_settings(gateway, call.caller, name)


async def log_settings(call: GrpcCall, request: Any) -> Any:
    """The log settings, after the changes of the request."""
    response = _empty("LogSettingsResponse")
    for key, value in _logged(call, request).items():
        kind = PARAMETERS.get(type(value), "string_param")
        setattr(response.settings[key], kind, value)
    return response


def _logged(call: GrpcCall, request: Any) -> Json:
    """The log settings, after the changes."""
    changes = {key: _value(value) for key, value in request.settings.items()}
    if changes:
        return settings.update_log_settings(call.gateway, call.caller, changes)
    return settings.log_settings(call.gateway)


def _value(setting: Any) -> Any:
    """The value of a log setting; None where there is none."""
    kind = setting.WhichOneof("parameter_choice")
    return getattr(setting, kind) if kind else None


async def system_shared_memory_status(call: GrpcCall, request: Any) -> Any:
    """The regions that this key has registered."""
    rows = regions(call.gateway).status(call.caller, request.name or None)
    return _filled(
        "SystemSharedMemoryStatusResponse",
        {"regions": {row["name"]: row for row in rows}},
    )


async def system_shared_memory_register(call: GrpcCall, request: Any) -> Any:
    """Register a region."""
    own = regions(call.gateway)
    own.register(
        call.caller,
        request.name,
        request.key,
        request.offset,
        request.byte_size,
    )
    return _empty("SystemSharedMemoryRegisterResponse")


async def system_shared_memory_unregister(call: GrpcCall, request: Any) -> Any:
    """Let go of a region, or of all that this key has registered."""
    regions(call.gateway).unregister(call.caller, request.name or None)
    return _empty("SystemSharedMemoryUnregisterResponse")


async def no_cuda(call: GrpcCall, request: Any) -> Any:
    """Shared memory of a GPU is not offered."""
    raise MethodNotAllowed(
        "CUDA shared memory is not offered; use system shared memory, or send the tensors"
    )


_HANDLERS: dict[str, dict[str, Handler]] = {
    INFERENCE: {
        "ServerLive": server_live,
        "ServerReady": server_ready,
        "ServerMetadata": server_metadata,
        "ModelReady": model_ready,
        "ModelMetadata": model_metadata,
        "ModelConfig": model_config,
        "ModelStatistics": model_statistics,
        "ModelInfer": infer.infer,
        "ModelStreamInfer": infer.stream,
        "RepositoryIndex": repository_index,
        "RepositoryModelLoad": repository_model_load,
        "RepositoryModelUnload": repository_model_unload,
        "TraceSetting": trace_setting,
        "LogSettings": log_settings,
        "SystemSharedMemoryStatus": system_shared_memory_status,
        "SystemSharedMemoryRegister": system_shared_memory_register,
        "SystemSharedMemoryUnregister": system_shared_memory_unregister,
        "CudaSharedMemoryStatus": no_cuda,
        "CudaSharedMemoryRegister": no_cuda,
        "CudaSharedMemoryUnregister": no_cuda,
    },
    HEALTH: {
        "Check": system.check,
        "List": system.listed,
        "Watch": system.watch,
    },
    f"{NEW}.ServerReflection": {"ServerReflectionInfo": system.reflect(NEW)},
    f"{OLD}.ServerReflection": {"ServerReflectionInfo": system.reflect(OLD)},
}


@cache
def methods(public_reflection: bool = False) -> dict[str, Method]:
    """Every method by its path: each that the services declare has a handler here."""
    return {
        f"/{service.full_name}/{method.name}": _method(
            service, method, public_reflection
        )
        for service in services()
        for method in service.methods
    }


def _method(service: Any, method: Any, public_reflection: bool) -> Method:
    """One declared method with its handler."""
    package = service.full_name.rpartition(".")[0]
    return Method(
        _HANDLERS[service.full_name][method.name],
        message(method.input_type.full_name),
        method.client_streaming or method.server_streaming,
        f"/{service.full_name}/{method.name}" in PUBLIC
        or (public_reflection and package in REFLECTION),
    )
