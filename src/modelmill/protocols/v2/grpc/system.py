"""The services that every gRPC server has: health (grpc.health.v1) and reflection
(grpc.reflection.v1, v1alpha).
"""

import asyncio
from typing import Any

from modelmill.errors import NotFound
from modelmill.protocols.v2.grpc.call import GrpcCall
from modelmill.protocols.v2.grpc.messages import message, pool, services

SERVING = 1
NOT_SERVING = 2
UNKNOWN = 3
LOOK_SECONDS = 0.1

Health = message("grpc.health.v1.HealthCheckResponse")
HealthList = message("grpc.health.v1.HealthListResponse")


def _status(call: GrpcCall, service: str) -> int:
    if service and service not in {each.full_name for each in services()}:
        return UNKNOWN
    return SERVING if call.gateway.ready else NOT_SERVING


async def check(call: GrpcCall, request: Any) -> Any:
    """Whether the server, or one of its services, can take calls; raises `NotFound` for another
    service.
    """
    status = _status(call, request.service)
    if status == UNKNOWN:
        raise NotFound(f"there is no service '{request.service[:80]}'")
    return Health(status=status)


async def listed(call: GrpcCall, request: Any) -> Any:
    """The health of every service."""
    response = HealthList()
    for name in ("", *(each.full_name for each in services())):
        response.statuses[name].status = _status(call, name)
    return response


async def watch(call: GrpcCall) -> None:
    """The health of a service now and whenever it changes, until the client ends the call."""
    request = await call.read()
    sent = None
    while request is not None and not call.gone():
        status = _status(call, request.service)
        if status != sent:
            await call.write(Health(status=status))
            sent = status
        if call.stopping:
            return
        await asyncio.sleep(LOOK_SECONDS)


def reflect(package: str) -> Any:
    """The handler of one version of the reflection service."""
    response_class = message(f"{package}.ServerReflectionResponse")

    async def reflection(call: GrpcCall) -> None:
        """What services, methods and messages there are."""
        while (request := await call.read()) is not None:
            response = response_class(
                valid_host=request.host, original_request=request
            )
            try:
                _describe(request, response)
            except KeyError:
                _say_unknown(response.error_response)
            await call.write(response)

    return reflection


def _say_unknown(error: Any) -> None:
    error.error_code = 5
    error.error_message = "nothing of that name is served here"


def _describe(request: Any, response: Any) -> None:
    """Answer one question; raises `KeyError`."""
    kind = request.WhichOneof("message_request")
    if kind == "file_by_filename":
        _add(response, pool().FindFileByName(request.file_by_filename))
    elif kind == "file_containing_symbol":
        _add(
            response,
            pool().FindFileContainingSymbol(request.file_containing_symbol),
        )
    elif kind == "list_services":
        _list_services(response.list_services_response)
    elif kind == "all_extension_numbers_of_type":
        _number_extensions(
            response.all_extension_numbers_response,
            request.all_extension_numbers_of_type,
        )
    else:  # proto3 has no extensions
        raise KeyError(kind)


def _list_services(response: Any) -> None:
    for each in services():
        response.service.add(name=each.full_name)


def _number_extensions(response: Any, name: str) -> None:
    """No message has any; raises `KeyError` for one that is not known."""
    pool().FindMessageTypeByName(name)
    response.base_type_name = name


def _add(response: Any, file: Any) -> None:
    response.file_descriptor_response.file_descriptor_proto.append(
        file.serialized_pb
    )
