"""The infer call of v2 over HTTP, from the body's bytes to the response's.

Clients send the same head (the JSON before binary tensors) again and again: what it means is kept
with the version's signature, so that the usual call costs one look-up and one slice.
"""

from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any

from modelmill.errors import Expired, InvalidInput
from modelmill.protocols.base import (
    Begin,
    Finish,
    Request,
    Response,
    simple_error,
)
from modelmill.protocols.v2.json import (
    LARGE,
    InferInput,
    InferRequest,
    answer_json,
    decode,
    head_size,
    raw_inputs,
    requested_outputs,
)
from modelmill.protocols.v2.shared_memory import regions
from modelmill.protocols.v2.tensors import (
    CLASSIFIED,
    NO_OPTIONS,
    MemoryRange,
    Options,
    RawInput,
    RequestedOutput,
    Signature,
    checked_inputs,
    checked_outputs,
    chosen_outputs,
    is_task_level,
    output_names,
    read_options,
    request_name,
    signature,
)
from modelmill.serve.flight import answered_by, version_of
from modelmill.serve.gateway import Gateway
from modelmill.serve.pool import Ask
from modelmill.serve.wire import ANSWER, Answer, Tensor
from modelmill.tasks.kinds import input_kind
from modelmill.types import KeyInfo, ServedVersion
from modelmill.wire.encoding import (
    UnknownCoding,
    in_thread,
    packed_body,
    unpacked_body,
)

NAME = "v2_http"
HEADER = b"inference-header-content-length"
BINARY = "application/octet-stream"
HEAD_LENGTH = 1024
"""Bytes of the longest head that is kept."""
HEADS = 32
"""Heads that are kept for a version."""


class Plan:
    """What the JSON of a request means for its version.

    `cuts` are the stretches of a body of `length` bytes that are tensors. A `simple` one needs
    nothing that waits, so it may be answered on the fast path. `answer` is the last
    answer's one binary tensor (name, datatype, shape) with the JSON and the header that announced
    it.
    """

    __slots__ = (
        "answer",
        "classified",
        "cuts",
        "id",
        "length",
        "options",
        "outputs",
        "simple",
        "wanted",
    )

    def __init__(
        self,
        id: str,
        options: Options,
        wanted: Sequence[RequestedOutput],
        outputs: Sequence[str],
    ) -> None:
        self.id = id
        self.options = options
        self.wanted = wanted
        self.outputs = outputs
        self.classified = any(output.classes for output in wanted)
        self.simple = not (
            self.classified
            or options.timeout is not None
            or ANSWER in outputs
            or any(output.memory for output in wanted)
        )
        self.cuts: list[tuple[str, str, list[int], int, int]] = []
        self.length = -1
        self.answer: tuple[str, str, list[int], bytes, Any] | None = None

    def fresh(self) -> "Plan":
        """The same plan without its cuts and its last answer."""
        return Plan(self.id, self.options, self.wanted, self.outputs)

    def cut(self, body: bytes) -> list[Tensor]:
        """The tensors of a body with the same head and length: all but their values has been
        checked.
        """
        return [
            Tensor(name, datatype, shape, body[start:end])
            for name, datatype, shape, start, end in self.cuts
        ]


async def infer(request: Request) -> Response:
    """Tensors in, tensors out; or the task's raw input in."""
    body, headers = await request.body(), request.headers
    if (coding := headers.get(b"content-encoding")) is not None:
        body = await _unpacked(body, coding, request.limit)
    pinned = request.pinned
    version = request.pick(request.names["model"])
    header = headers.get(HEADER)
    size = head_size(body, header)
    known = header is not None and size <= HEAD_LENGTH
    plan: Plan | None = (
        signature(version).plans.get(body[:size]) if known else None
    )
    if plan is not None and plan.length == len(body):
        tensors = plan.cut(body)
    else:
        plan, tensors = await _understand(request, pinned, body, size)
        version = request.version  # the body may pin another
    options = plan.options
    takes_parameters = (
        ANSWER in plan.outputs or input_kind(version.kind).optional
    )
    try:
        answer = await request.gateway.predict(
            request.caller,
            version,
            NAME,
            tensors=tensors,
            parameters=options.task if takes_parameters else None,
            outputs=plan.outputs,
            timeout=options.timeout,
            priority=options.priority,
            gone=request.gone,
            request_id=request_name(headers.get(b"x-request-id"), plan.id),
            pinned=pinned is not None or options.version is not None,
        )
    except Expired as expired:
        if options.timeout is None:
            raise
        # Clients of v2 expect this status of a queue's timeout
        return Response(simple_error(expired), 503)
    if answer.version:
        plan = plan.fresh()  # what it keeps of answers names the picked version
    response = await _respond(
        request, answered_by(version, answer), plan, answer
    )
    if (accepted := headers.get(b"accept-encoding")) is not None:
        return await _compressed(response, accepted)
    return response


async def _unpacked(body: bytes, coding: bytes, limit: int) -> bytes:
    """The body without its coding; raises `InvalidInput` also for one that is not known: 400, as
    Triton has it.
    """
    try:
        return await unpacked_body(body, coding, limit)
    except UnknownCoding as unknown:
        raise InvalidInput(str(unknown)) from unknown


VARYING = (
    b"accept-encoding",
    b"content-encoding",
    b"x-request-id",
    b"traceparent",
)
"""Headers of requests that never take the fast path."""


def fast_path(request: Request) -> Begin | None:
    """Infer for further requests with this head: simple ones need nothing that waits."""
    headers = request.headers
    if any(name in headers for name in VARYING):
        return None
    gateway, caller = request.gateway, request.caller
    planned = _planner(gateway, caller, headers.get(HEADER))
    return _beginner(
        gateway, caller, request.names["model"], request.pinned, planned
    )


Planned = Callable[[ServedVersion, bytes], tuple[Plan, list[Tensor]] | None]


def _planner(
    gateway: Gateway, caller: KeyInfo, header: bytes | None
) -> Planned:
    """What says what a body means for a version; None for one that is left to `infer`."""

    def planned(
        version: ServedVersion, body: bytes
    ) -> tuple[Plan, list[Tensor]] | None:
        size = head_size(body, header)
        own = signature(version)
        plan = own.plans.get(body[:size]) if header is not None else None
        if plan is not None and plan.length == len(body):
            return plan, plan.cut(body)
        if len(body) > LARGE or not version.ready:
            return None
        message = decode(body, size, own)
        options = (
            read_options(message.parameters)
            if message.parameters
            else NO_OPTIONS
        )
        if options.version is not None:
            return None
        return _plan(
            own, message, options, body, size, _reader(gateway, caller)
        )

    return planned


def _beginner(
    gateway: Gateway,
    caller: KeyInfo,
    model: str,
    pinned: str | None,
    planned: Planned,
) -> Begin:
    """What begins to answer a body, or leaves it to `infer`."""

    def begin(
        body: bytes, gone: Callable[[], bool]
    ) -> tuple[Future[Any], Finish] | None:
        version = gateway.route(caller, model, pinned)
        planned_call = planned(version, body)
        if (
            planned_call is None
            or not planned_call[0].simple
            or input_kind(version.kind).optional
        ):
            return None
        if version.others and pinned is None:
            # Drawn only now: what goes the usual way draws its version there
            drawn = gateway.pick(caller, model)
            if drawn is not version:
                version, planned_call = drawn, planned(drawn, body)
                if planned_call is None:
                    return None
        return _begun(
            gateway, caller, version, *planned_call, pinned is not None, gone
        )

    return begin


def _begun(
    gateway: Gateway,
    caller: KeyInfo,
    version: ServedVersion,
    plan: Plan,
    tensors: list[Tensor],
    pinned: bool,
    gone: Callable[[], bool],
) -> tuple[Future[Any], Finish]:
    pin = version_of(version) if pinned else ""
    ask = Ask(
        caller.name,
        plan.options.priority,
        gateway.limits.timeout_seconds,
        tuple(plan.outputs),
        gone,
        request_name(None, plan.id),
        pin,
    )
    flight = gateway.begin(caller, version, NAME, ask, None, tensors, {})

    def finish() -> Response:
        answer = flight.land()
        if answer.version:
            return _respond_now(
                answered_by(version, answer), plan.fresh(), answer
            )
        return _respond_now(version, plan, answer)

    return flight.future, finish


async def _understand(
    request: Request, pinned: str | None, body: bytes, size: int
) -> tuple[Plan, list[Tensor]]:
    """What the request means, and its tensors; picks the version that the body pins. Raises
    `InvalidInput`.
    """
    gateway, caller, version = request.gateway, request.caller, request.version
    gateway.refuse_unservable(version)
    small = len(body) <= LARGE  # a large body would hold up the event loop
    own = signature(version)
    message = (
        decode(body, size, own)
        if small
        else await in_thread(decode, body, size, own)
    )
    options = (
        read_options(message.parameters) if message.parameters else NO_OPTIONS
    )
    if options.version is not None and options.version != str(version.version):
        own = signature(_picked_by_body(request, pinned, options.version))
        message = await in_thread(decode, body, size, own)
    parts = own, message, options, body, size, _reader(gateway, caller)
    plan, tensors = _plan(*parts) if small else await in_thread(_plan, *parts)
    if not plan.simple:
        _check_memory(gateway, caller, plan.wanted)
    return plan, tensors


def _picked_by_body(
    request: Request, pinned: str | None, version: str
) -> ServedVersion:
    """The version that a body pins; raises `InvalidInput` where the head pins another."""
    if pinned is not None:
        raise InvalidInput(
            f"the request names the versions {pinned} and {version}"
        )
    gateway = request.gateway
    picked = gateway.pick(request.caller, request.version.deployment, version)
    gateway.refuse_unservable(picked)
    request.version = picked
    return picked


def _check_memory(
    gateway: Gateway, caller: KeyInfo, wanted: Sequence[RequestedOutput]
) -> None:
    """Raises `InvalidInput`, `NotFound` unless there is room for outputs in shared memory."""
    for output in wanted:
        if (memory := output.memory) is not None:
            regions(gateway).check(
                caller, memory.region, memory.offset, memory.byte_size
            )


def _reader(
    gateway: Gateway, caller: KeyInfo
) -> Callable[[MemoryRange], bytes]:
    """Reads tensors from shared memory: no more of a request than a body may bring."""
    budget = gateway.limits.body_bytes

    def read(memory: MemoryRange) -> bytes:
        nonlocal budget
        budget -= max(0, memory.byte_size)
        if budget < 0:
            raise InvalidInput(
                f"the tensors in shared memory exceed {gateway.limits.body_bytes:,} bytes"
            )
        return regions(gateway).read(
            caller, memory.region, memory.offset, memory.byte_size
        )

    return read


def _plan(
    own: Signature,
    message: InferRequest[Any],
    options: Options,
    body: bytes,
    size: int,
    read: Callable[[MemoryRange], bytes],
) -> tuple[Plan, list[Tensor]]:
    """What a request means, and its tensors; raises `InvalidInput`."""
    inputs = raw_inputs(message, body, size, own, read)
    tensors = checked_inputs(own.version, inputs)
    task_level = is_task_level(own.version, inputs)
    named = requested_outputs(message) if message.outputs else ()
    wanted = checked_outputs(
        own.version, named, task_level=task_level, binary=message.binary
    )
    if own.numberless:
        _refuse_numberless(own, wanted)
    plan = Plan(
        message.id,
        options,
        wanted,
        output_names(own.version, wanted) if named else (),
    )
    _remember(own, plan, message, inputs, body, size)
    return plan, tensors


def _refuse_numberless(
    own: Signature, wanted: Sequence[RequestedOutput]
) -> None:
    for output in wanted:
        if output.name in own.numberless and not (
            output.binary or output.classes or output.memory
        ):
            raise InvalidInput(
                f"output '{output.name}' has no form in JSON: ask for it with binary_data true"
            )


def _remember(
    own: Signature,
    plan: Plan,
    message: InferRequest[Any],
    inputs: Sequence[RawInput],
    body: bytes,
    size: int,
) -> None:
    """Keep a plan when the same head means the same next time: all tensors follow it, and their
    shapes give their sizes.
    """
    if (
        size > HEAD_LENGTH
        or size == len(body)
        or message.id
        or plan.options.version is not None
        or not all(map(_follows, message.inputs))
        or any(tensor.datatype == "BYTES" for tensor in inputs)
        or any(output.memory for output in plan.wanted)
    ):
        return
    plan.cuts = _cuts(inputs, size)
    plan.length = len(body)
    if len(own.plans) >= HEADS:
        own.plans.clear()
    own.plans[body[:size]] = plan


def _follows(entry: InferInput[Any]) -> bool:
    """Whether the data of an input follow the JSON."""
    where = entry.parameters
    return (
        entry.data is None
        and where is not None
        and where.shared_memory_region is None
    )


def _cuts(
    inputs: Sequence[RawInput], at: int
) -> list[tuple[str, str, list[int], int, int]]:
    """Where tensors lie that follow one another."""
    cuts = []
    for tensor in inputs:
        end = at + len(tensor.data)
        cuts.append((tensor.name, tensor.datatype, list(tensor.shape), at, end))
        at = end
    return cuts


def _respond_now(
    version: ServedVersion, plan: Plan, answer: Answer
) -> Response:
    """The response of a request on the fast path, which is small."""
    return _repeated(plan, answer) or _assembled(
        plan, *_written(version, plan, answer)
    )


def _repeated(plan: Plan, answer: Answer) -> Response | None:
    """The response, when it differs from the last one in the values of its one tensor alone."""
    if (last := plan.answer) is None or len(answer.tensors) != 1:
        return None
    only = answer.tensors[0]
    if (only.name, only.datatype, only.shape) != last[:3]:
        return None
    return Response(last[3] + only.data, 200, BINARY, last[4])


async def _respond(
    request: Request, version: ServedVersion, plan: Plan, answer: Answer
) -> Response:
    """The response as its request wanted it."""
    if (same := _repeated(plan, answer)) is not None:
        return same
    size = sum([len(tensor.data) for tensor in answer.tensors])
    small = size <= (CLASSIFIED if plan.classified else LARGE)
    tensors, head, blobs = (
        _written(version, plan, answer)
        if small
        else await in_thread(_written, version, plan, answer)
    )
    if not plan.simple:
        _leave(request, plan.wanted, tensors)
    return _assembled(plan, tensors, head, blobs)


def _leave(
    request: Request,
    wanted: Sequence[RequestedOutput],
    tensors: Sequence[Tensor],
) -> None:
    """Write outputs to shared memory that are wanted there."""
    for tensor, output in zip(tensors, wanted, strict=True):
        if (memory := output.memory) is not None:
            regions(request.gateway).write(
                request.caller,
                memory.region,
                memory.offset,
                memory.byte_size,
                tensor.data,
            )


def _assembled(
    plan: Plan, tensors: Sequence[Tensor], head: bytes, blobs: Sequence[bytes]
) -> Response:
    """One body of the JSON and what follows it; the plan keeps what it may use again."""
    if not blobs:
        return Response(head)
    headers = ((HEADER, b"%d" % len(head)),)
    if (
        plan.length >= 0
        and len(tensors) == 1
        and tensors[0].datatype != "BYTES"
    ):
        plan.answer = (
            tensors[0].name,
            tensors[0].datatype,
            tensors[0].shape,
            head,
            headers,
        )
    return Response(b"".join([head, *blobs]), 200, BINARY, headers)


def _written(
    version: ServedVersion, plan: Plan, answer: Answer
) -> tuple[list[Tensor], bytes, list[bytes]]:
    """The requested tensors, the JSON of the response, and what follows it."""
    tensors = chosen_outputs(version, answer, plan.wanted)
    return tensors, *answer_json(
        signature(version), plan.id, tensors, plan.wanted
    )


async def _compressed(response: Response, accepted: bytes) -> Response:
    body, encoding = await packed_body(response.body, accepted)
    if not encoding:
        return response
    return response._replace(
        body=body,
        headers=(*response.headers, (b"content-encoding", encoding.encode())),
    )
