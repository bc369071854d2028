"""ModelInfer: from its messages to tensors and back, and the stream of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any

from modelmill.errors import InvalidInput, MillError
from modelmill.protocols.v2.grpc.call import GrpcCall
from modelmill.protocols.v2.grpc.messages import message
from modelmill.protocols.v2.json import LARGE
from modelmill.protocols.v2.shared_memory import regions
from modelmill.protocols.v2.tensors import (
    CLASSIFIED,
    NO_OPTIONS,
    MemoryRange,
    Options,
    RawInput,
    RequestedOutput,
    checked_inputs,
    checked_outputs,
    chosen_outputs,
    is_task_level,
    output_names,
    read_options,
    request_name,
)
from modelmill.protocols.v2.values import packed
from modelmill.serve.flight import answered_by
from modelmill.serve.tensors import elements_of, pack_bytes
from modelmill.serve.wire import Tensor
from modelmill.types import ServedVersion
from modelmill.wire.encoding import in_thread

STREAM_CALLS = 64
"""Requests of one stream that are answered at the same time."""

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The list that holds the values of a datatype."""

TEXT_OUTPUT = "text_output"
"""The output of a stream's request for a text that grows; Triton's models call it so."""

Response = message("inference.ModelInferResponse")
StreamResponse = message("inference.ModelStreamInferResponse")


def infer(call: GrpcCall, request: Any) -> Awaitable[Any]:
    """One prediction; raises `MillError`."""
    return _infer(call, request, *_picked(call, request))


def _picked(call: GrpcCall, request: Any) -> tuple[ServedVersion, Options]:
    """The version that answers a request, picked once, and its options; raises `MillError`."""
    parameters = request.parameters
    options = read_options(_values(parameters)) if parameters else NO_OPTIONS
    version = call.gateway.pick(
        call.caller,
        request.model_name,
        _version(request.model_version, options.version),
    )
    return version, options


async def _infer(
    call: GrpcCall, request: Any, version: ServedVersion, options: Options
) -> Any:
    gateway, caller = call.gateway, call.caller
    gateway.refuse_unservable(version)
    raw = request.raw_input_contents
    # What is large would hold up others
    small = (sum(map(len, raw)) if raw else request.ByteSize()) <= LARGE
    tensors, wanted = (
        _plan(call, request, version)
        if small
        else await in_thread(_plan, call, request, version)
    )
    answer = await gateway.predict(
        caller,
        version,
        "v2_grpc",
        tensors=tensors,
        parameters=options.task,
        outputs=output_names(version, wanted) if request.outputs else (),
        timeout=_sooner(options.timeout, call.remaining()),
        priority=options.priority,
        gone=call.gone,
        request_id=request_name(
            call.head.metadata.get(b"x-request-id"), request.id
        ),
        pinned=bool(request.model_version) or options.version is not None,
    )
    version = answered_by(version, answer)
    small = (
        not request.outputs
        or sum([len(tensor.data) for tensor in answer.tensors]) <= CLASSIFIED
    )
    work = chosen_outputs, version, answer, wanted
    return _response(
        call,
        request,
        version,
        work[0](*work[1:]) if small else await in_thread(*work),
        wanted,
    )


def _plan(
    call: GrpcCall, request: Any, version: ServedVersion
) -> tuple[list[Tensor], Sequence[RequestedOutput]]:
    """The tensors of a request and what it wants; raises `InvalidInput`."""
    inputs = _raw_inputs(call, request)
    tensors = checked_inputs(version, inputs)
    if not request.outputs:
        return tensors, checked_outputs(version, (), binary=True)
    requested = [_requested(call, output) for output in request.outputs]
    return tensors, checked_outputs(
        version,
        requested,
        task_level=is_task_level(version, inputs),
        binary=True,
    )


def _version(named: str, pinned: str | None) -> str | None:
    """The version that a request wants, by its field or its parameter; raises `InvalidInput` when
    they differ.
    """
    if named and pinned and named != pinned:
        raise InvalidInput(
            f"the request names the versions {named[:20]} and {pinned[:20]}"
        )
    return named or pinned


def _sooner(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)


def _values(parameters: Any) -> dict[str, Any]:
    """Parameters by name; raises `InvalidInput` for one without a value."""
    values = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidInput(f"the parameter '{name[:80]}' has no value")
        values[name] = getattr(parameter, kind)
    return values


def _raw_inputs(call: GrpcCall, request: Any) -> list[RawInput]:
    """The inputs as they come: all raw or all typed, or in shared memory; raises `InvalidInput`."""
    raw = request.raw_input_contents
    inputs = []
    at = 0
    count = len(raw)
    budget = call.gateway.limits.body_bytes
    for tensor in request.inputs:
        memory = (
            _memory(tensor.name, _values(tensor.parameters))
            if tensor.parameters
            else None
        )
        if memory is not None:
            budget -= max(0, memory.byte_size)
            data = _read(call, memory, budget)
        elif count:
            if at == count or tensor.HasField("contents"):
                raise _mixed(tensor.name)
            data, at = raw[at], at + 1
        else:
            data = _typed(tensor)
        inputs.append(
            RawInput(tensor.name, tensor.datatype, list(tensor.shape), data)
        )
    if at != count:
        raise InvalidInput(
            f"raw_input_contents has {count} entries for {at} inputs"
        )
    return inputs


def _read(call: GrpcCall, memory: MemoryRange, left: int) -> bytes:
    """A tensor in shared memory; raises `InvalidInput` when nothing is `left` of what a message may
    bring.
    """
    if left < 0:
        raise InvalidInput(
            "the tensors in shared memory exceed what a message may bring"
        )
    return regions(call.gateway).read(
        call.caller, memory.region, memory.offset, memory.byte_size
    )


def _mixed(name: str) -> InvalidInput:
    return InvalidInput(
        f"raw_input_contents and contents can't be mixed: input '{name[:80]}'"
    )


def _typed(tensor: Any) -> bytes:
    """The values of `contents` as the tensor's data."""
    field, contents = CONTENTS.get(tensor.datatype), tensor.contents
    filled = [each.name for each, _ in contents.ListFields()]
    if tensor.datatype in ("FP16", "BF16") or any(
        name != field for name in filled
    ):
        raise _misplaced(tensor, field, filled)
    return (
        packed(tensor.name, tensor.datatype, getattr(contents, field))
        if field
        else b""
    )


def _misplaced(
    tensor: Any, field: str | None, filled: list[str]
) -> InvalidInput:
    """The error of values in a field that is not that of their datatype."""
    if tensor.datatype in ("FP16", "BF16"):
        return InvalidInput(
            f"input '{tensor.name}': {tensor.datatype} has no typed contents; use "
            "raw_input_contents"
        )
    return InvalidInput(
        f"input '{tensor.name[:80]}': the values of {tensor.datatype[:20]} go into {field}, "
        f"given: {', '.join(filled)}"
    )


def _memory(name: str, parameters: dict[str, Any]) -> MemoryRange | None:
    """The shared memory that parameters name for a tensor; raises `InvalidInput`."""
    region = parameters.get("shared_memory_region")
    if region is None:
        return None
    size = parameters.get("shared_memory_byte_size")
    offset = parameters.get("shared_memory_offset", 0)
    if (
        not isinstance(region, str)
        or type(size) is not int
        or type(offset) is not int
    ):
        raise InvalidInput(
            f"'{name[:80]}': shared_memory_region is a text, shared_memory_byte_size and _offset "
            "are whole numbers"
        )
    return MemoryRange(region=region, offset=offset, byte_size=size)


def _requested(call: GrpcCall, output: Any) -> RequestedOutput:
    """One output, and whether there is room for it in shared memory; raises `InvalidInput`."""
    if not output.parameters:
        return RequestedOutput(output.name, True)
    parameters = _values(output.parameters)
    classes = parameters.get("classification", 0)
    if type(classes) is not int or not 0 <= classes < 1 << 31:
        raise InvalidInput(
            f"output '{output.name[:80]}': classification is a number of classes, not "
            f"{classes!r:.40}"
        )
    memory = _memory(output.name, parameters)
    if memory is not None:
        regions(call.gateway).check(
            call.caller, memory.region, memory.offset, memory.byte_size
        )
    return RequestedOutput(output.name, True, classes, memory)


def _response(
    call: GrpcCall,
    request: Any,
    version: ServedVersion,
    tensors: Sequence[Tensor],
    wanted: Sequence[RequestedOutput],
) -> Any:
    response = Response(
        model_name=version.deployment,
        model_version=str(version.version),
        id=request.id,
    )
    outputs, raw = response.outputs, response.raw_output_contents
    for tensor, request_output in zip(tensors, wanted, strict=True):
        output = outputs.add(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
        )
        if request_output.memory is None:
            raw.append(tensor.data)
        else:
            _leave(call, output, request_output.memory, tensor.data)
            raw.append(b"")  # clients count the entries
    return response


def _leave(
    call: GrpcCall, output: Any, memory: MemoryRange, data: bytes
) -> None:
    """Write an output to shared memory and say so."""
    regions(call.gateway).write(
        call.caller, memory.region, memory.offset, memory.byte_size, data
    )
    output.parameters["shared_memory_region"].string_param = memory.region
    output.parameters["shared_memory_byte_size"].int64_param = len(data)
    if memory.offset:
        output.parameters["shared_memory_offset"].int64_param = memory.offset


async def parts(
    call: GrpcCall, request: Any, version: ServedVersion, options: Options
) -> AsyncIterator[Any]:
    """A text as it grows: a response with `text_output` for each part, and an empty last one.
    Raises `MillError`.
    """
    call.gateway.refuse_unservable(version)
    kind, text = _text(call, request, version)
    stream = call.gateway.stream(
        call.caller,
        version,
        "v2_grpc",
        data=text,
        kind=kind if kind in version.also else "",
        parameters=options.task,
        timeout=options.timeout,
        priority=options.priority,
        gone=call.gone,
        request_id=request.id,
    )
    reason = ""
    async for part in stream:
        reason = part.finish_reason
        if part.text:
            yield _text_part(request, version, part.text)
    response = _part(request, version, last=True)
    response.infer_response.parameters["finish_reason"].string_param = reason
    yield response


def _text(
    call: GrpcCall, request: Any, version: ServedVersion
) -> tuple[str, bytes]:
    """The kind of a request's only text, and the text; raises `InvalidInput`."""
    tensors = checked_inputs(version, _raw_inputs(call, request))
    if [tensor.datatype for tensor in tensors] != ["BYTES"]:
        raise InvalidInput(
            f"the output '{TEXT_OUTPUT}' needs a text: send one input as BYTES"
        )
    inputs = elements_of(tensors[0])
    if len(inputs) != 1:
        raise InvalidInput(f"a stream answers one text, not {len(inputs)}")
    return tensors[0].name, inputs[0]


def _text_part(request: Any, version: ServedVersion, text: str) -> Any:
    """The response with a part of a text."""
    response = _part(request, version, last=False)
    answer = response.infer_response
    answer.outputs.add(name=TEXT_OUTPUT, datatype="BYTES", shape=[1])
    answer.raw_output_contents.append(pack_bytes([text.encode()]))
    return response


def _part(request: Any, version: ServedVersion, *, last: bool) -> Any:
    response = StreamResponse()
    answer = response.infer_response
    answer.model_name = version.deployment
    answer.model_version = str(version.version)
    answer.id = request.id
    answer.parameters["triton_final_response"].bool_param = last
    return response


async def stream(call: GrpcCall) -> None:
    """Requests answered as they come, several at a time; an error is an answer and the stream goes
    on.
    """
    room = asyncio.Semaphore(STREAM_CALLS)
    writing = asyncio.Lock()

    async def one(request: Any) -> None:
        try:
            async for response in _responses(call, request):
                async with writing:
                    await call.write(response)
        finally:
            room.release()

    async with asyncio.TaskGroup() as tasks:
        while (request := await call.read()) is not None:
            await room.acquire()
            tasks.create_task(one(request))


async def _responses(call: GrpcCall, request: Any) -> AsyncIterator[Any]:
    """The answer to one request of a stream, in parts where a text grows."""
    try:
        version, options = _picked(call, request)
        if version.grows and [one.name for one in request.outputs] == [
            TEXT_OUTPUT
        ]:
            async for part in parts(call, request, version, options):
                yield part
        else:
            yield _last(await _infer(call, request, version, options))
    except MillError as error:
        yield _failed(request, error)


def _last(answer: Any) -> Any:
    """The only response to a request of a stream."""
    response = StreamResponse()
    response.infer_response.CopyFrom(answer)
    response.infer_response.parameters[
        "triton_final_response"
    ].bool_param = True
    return response


def _failed(request: Any, error: MillError) -> Any:
    """The response to a request of a stream that could not be answered."""
    response = StreamResponse()
    words = error.message[:1000].encode("utf-8", "replace").decode()
    response.error_message = words
    response.infer_response.id = request.id
    response.infer_response.parameters[
        "triton_final_response"
    ].bool_param = True
    return response
