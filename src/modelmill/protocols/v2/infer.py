"""The infer call of v2 over HTTP, from the body's bytes to the answer's.

Clients send the same head (the JSON before binary tensors) again and again: what it means is kept
with the route's signature, so that the usual call costs one look-up and one slice.
"""

from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modelmill.errors import Expired, InvalidInput
from modelmill.protocols.base import Begin, Finish, Request, Response, simple_error
from modelmill.protocols.v2.json import (
    LARGE,
    InferRequest,
    answer_json,
    asked_outputs,
    decode,
    given,
    head_size,
)
from modelmill.protocols.v2.shared_memory import regions
from modelmill.protocols.v2.tensors import (
    NO_OPTIONS,
    Given,
    Options,
    Place,
    Signature,
    Wanted,
    checked_inputs,
    checked_outputs,
    chosen_outputs,
    is_task_level,
    output_names,
    read_options,
    signature,
)
from modelmill.serve.flight import answered_by, version_of
from modelmill.serve.gateway import Gateway
from modelmill.serve.pool import Ask
from modelmill.serve.wire import ANSWER, Answer, Tensor
from modelmill.types import SEED, KeyInfo, ServedVersion
from modelmill.wire.encoding import (
    UnknownCoding,
    in_thread,
    packed_body,
    unpacked_body,
)

HEADER = b"inference-header-content-length"
VERSION = b"x-modelmill-version"
BINARY = "application/octet-stream"
HEAD_LENGTH = 1024
"""Bytes of the longest head that is kept."""
HEADS = 32
"""Heads that are kept for a route."""
CLASSIFIED = 1 << 14
"""Bytes of an answer from which on its classes are named outside the event loop."""
NAME_LENGTH = 128


class Plan:
    """What the JSON of a request means for its route.

    `cuts` are the stretches of a body of `length` bytes that are tensors. A `simple` one needs
    nothing that waits, so it may be answered on the fast path. `answer` is the last
    answer's one binary tensor (name, datatype, shape) with the JSON and the header that announced
    it.
    """

    __slots__ = (
        "answer",
        "classified",
        "cuts",
        "how",
        "id",
        "length",
        "outputs",
        "simple",
        "wanted",
    )

    def __init__(
        self, id: str, how: Options, wanted: Sequence[Wanted], outputs: Sequence[str]
    ) -> None:
        self.id = id
        self.how = how
        self.wanted = wanted
        self.outputs = outputs
        self.classified = any(one.classes for one in wanted)
        self.simple = not (
            self.classified
            or how.timeout is not None
            or ANSWER in outputs
            or any(one.place for one in wanted)
        )
        self.cuts: list[tuple[str, str, list[int], int, int]] = []
        self.length = -1
        self.answer: tuple[str, str, list[int], bytes, Any] | None = None

    def anew(self) -> "Plan":
        """The same without what it has learnt."""
        return Plan(self.id, self.how, self.wanted, self.outputs)

    def cut(self, body: bytes) -> list[Tensor]:
        """The tensors of a body with the same head and length: all but their values has been
        checked.
        """
        return [
            Tensor(name, datatype, shape, body[start:end])
            for name, datatype, shape, start, end in self.cuts
        ]


async def infer(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Response:
    """Tensors in, tensors out; or the task's raw input in."""
    body, headers = await request.body(), request.headers
    if (encoding := headers.get(b"content-encoding")) is not None:
        try:
            body = await unpacked_body(body, encoding, request.limit)
        except UnknownCoding as unknown:
            raise InvalidInput(str(unknown)) from unknown  # 400, as Triton has it
    pinned = names.get("version")
    if pinned is None and VERSION in headers:
        pinned = request.header(VERSION)
    route = gateway.pick(caller, names["model"], pinned)
    header = headers.get(HEADER)
    size = head_size(body, header)
    known = header is not None and size <= HEAD_LENGTH
    plan: Plan | None = signature(route).plans.get(body[:size]) if known else None
    if plan is not None and plan.length == len(body):
        tensors = plan.cut(body)
    else:
        route, plan, tensors = await _understand(
            gateway, caller, route, pinned, body, size
        )
    how = plan.how
    try:
        answer = await gateway.predict(
            caller,
            route,
            "v2_http",
            tensors=tensors,
            parameters=how.task
            if ANSWER in plan.outputs or route.kind == SEED
            else None,
            outputs=plan.outputs,
            timeout=how.timeout,
            priority=how.priority,
            gone=request.gone,
            request_id=_name_of(headers.get(b"x-request-id"), plan.id),
            pinned=pinned is not None or how.version is not None,
        )
    except Expired as expired:
        if how.timeout is None:
            raise
        # What clients of v2 know a queue's timeout by
        return Response(simple_error(expired), 503)
    if answer.version:
        plan = plan.anew()  # what it keeps of answers names the picked version
    response = await _respond(gateway, caller, answered_by(route, answer), plan, answer)
    if (accepted := headers.get(b"accept-encoding")) is not None:
        return await _compressed(response, accepted)
    return response


SLOW = (b"accept-encoding", b"content-encoding", b"x-request-id", b"traceparent")
"""Headers of requests that are each looked at in full."""


def quick(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Begin | None:
    """Infer for further requests with this head: the usual ones need nothing that waits."""
    headers, model = request.headers, names["model"]
    if any(name in headers for name in SLOW):
        return None
    pinned = names.get("version") or request.header(VERSION) or None
    header = headers.get(HEADER)

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
        asked = decode(body, size, own)
        how = read_options(asked.parameters) if asked.parameters else NO_OPTIONS
        if how.version is not None:
            return None
        return _plan(own, asked, how, body, size, _reader(gateway, caller))

    def begin(
        body: bytes, gone: Callable[[], bool]
    ) -> tuple[Future[Any], Finish] | None:
        version = gateway.route(caller, model, pinned)
        found = planned(version, body)
        if found is None or not found[0].simple or version.kind == SEED:
            return None
        if version.others and pinned is None:
            # Drawn only now: what goes the usual way draws its version there
            drawn = gateway.pick(caller, model)
            if drawn is not version:
                version, found = drawn, planned(drawn, body)
                if found is None:
                    return None
        return _begun(gateway, caller, version, *found, pinned is not None, gone)

    return begin


def _begun(
    gateway: Gateway,
    caller: KeyInfo,
    route: ServedVersion,
    plan: Plan,
    tensors: list[Tensor],
    pinned: bool,
    gone: Callable[[], bool],
) -> tuple[Future[Any], Finish]:
    pin = version_of(route) if pinned else ""
    ask = Ask(
        caller.name,
        plan.how.priority,
        gateway.limits.timeout_seconds,
        tuple(plan.outputs),
        gone,
        _name_of(None, plan.id),
        pin,
    )
    flight = gateway.begin(caller, route, "v2_http", ask, None, tensors, {})

    def finish() -> Response:
        answer = flight.land()
        if answer.version:
            return _respond_now(answered_by(route, answer), plan.anew(), answer)
        return _respond_now(route, plan, answer)

    return flight.future, finish


async def _understand(
    gateway: Gateway,
    caller: KeyInfo,
    route: ServedVersion,
    pinned: str | None,
    body: bytes,
    size: int,
) -> tuple[ServedVersion, Plan, list[Tensor]]:
    """The route that the request pins, what it wants, and its tensors; raises `InvalidInput`."""
    gateway.refuse_unservable(route)
    small = len(body) <= LARGE  # what is large would hold up others
    own = signature(route)
    asked = (
        decode(body, size, own) if small else await in_thread(decode, body, size, own)
    )
    how = read_options(asked.parameters) if asked.parameters else NO_OPTIONS
    if how.version is not None and how.version != str(route.version):
        if pinned is not None:
            raise InvalidInput(
                f"the request names the versions {pinned} and {how.version}"
            )
        route = gateway.pick(caller, route.deployment, how.version)
        gateway.refuse_unservable(route)
        own = signature(route)
        asked = await in_thread(decode, body, size, own)
    parts = own, asked, how, body, size, _reader(gateway, caller)
    plan, tensors = _plan(*parts) if small else await in_thread(_plan, *parts)
    for one in plan.wanted:
        if one.place is not None:
            regions(gateway).check(
                caller, one.place.region, one.place.offset, one.place.byte_size
            )
    return route, plan, tensors


def _reader(gateway: Gateway, caller: KeyInfo) -> Callable[[Place], bytes]:
    """Reads tensors from shared memory: no more of a request than a body may bring."""
    budget = gateway.limits.body_bytes

    def read(place: Place) -> bytes:
        nonlocal budget
        budget -= max(0, place.byte_size)
        if budget < 0:
            raise InvalidInput(
                f"the tensors in shared memory exceed {gateway.limits.body_bytes:,} bytes"
            )
        return regions(gateway).read(
            caller, place.region, place.offset, place.byte_size
        )

    return read


def _plan(
    own: Signature,
    asked: InferRequest[Any],
    how: Options,
    body: bytes,
    size: int,
    read: Callable[[Place], bytes],
) -> tuple[Plan, list[Tensor]]:
    """What a request means, and its tensors; raises `InvalidInput`."""
    brought = given(asked, body, size, own, read)
    tensors = checked_inputs(own.route, brought)
    task_level = is_task_level(own.route, brought)
    named = asked_outputs(asked) if asked.outputs else ()
    wanted = checked_outputs(
        own.route, named, task_level=task_level, binary=asked.binary
    )
    if own.numberless:
        _refuse_numberless(own, wanted)
    plan = Plan(asked.id, how, wanted, output_names(own.route, wanted) if named else ())
    _remember(own, plan, asked, brought, body, size)
    return plan, tensors


def _refuse_numberless(own: Signature, wanted: Sequence[Wanted]) -> None:
    for one in wanted:
        if one.name in own.numberless and not (one.binary or one.classes or one.place):
            raise InvalidInput(
                f"output '{one.name}' has no form in JSON: ask for it with binary_data true"
            )


def _remember(
    own: Signature,
    plan: Plan,
    asked: InferRequest[Any],
    brought: Sequence[Given],
    body: bytes,
    size: int,
) -> None:
    """Keep a plan when the same head means the same next time: all tensors behind it, of sizes that
    shapes tell.
    """
    if (
        size > HEAD_LENGTH
        or size == len(body)
        or asked.id
        or plan.how.version is not None
    ):
        return
    if any(one.data is not None or one.parameters is None for one in asked.inputs):
        return
    if any(
        one.parameters.shared_memory_region is not None
        for one in asked.inputs
        if one.parameters is not None
    ):
        return
    if any(one.datatype == "BYTES" for one in brought) or any(
        one.place for one in plan.wanted
    ):
        return
    at = size
    for one in brought:
        plan.cuts.append(
            (one.name, one.datatype, list(one.shape), at, at + len(one.data))
        )
        at += len(one.data)
    plan.length = len(body)
    if len(own.plans) >= HEADS:
        own.plans.clear()
    own.plans[body[:size]] = plan


def _respond_now(route: ServedVersion, plan: Plan, answer: Answer) -> Response:
    """The answer of a usual request, whose like were small."""
    return _again(plan, answer) or _assembled(plan, *_written(route, plan, answer))


def _again(plan: Plan, answer: Answer) -> Response | None:
    """The answer, when all but the values of its one tensor is as it was in the last one."""
    if (last := plan.answer) is None or len(answer.tensors) != 1:
        return None
    only = answer.tensors[0]
    if (only.name, only.datatype, only.shape) != last[:3]:
        return None
    return Response(last[3] + only.data, 200, BINARY, last[4])


async def _respond(
    gateway: Gateway, caller: KeyInfo, route: ServedVersion, plan: Plan, answer: Answer
) -> Response:
    """The answer as its request wanted it."""
    if (same := _again(plan, answer)) is not None:
        return same
    size = sum([len(tensor.data) for tensor in answer.tensors])
    small = size <= (CLASSIFIED if plan.classified else LARGE)
    tensors, head, blobs = (
        _written(route, plan, answer)
        if small
        else await in_thread(_written, route, plan, answer)
    )
    for tensor, one in zip(tensors, plan.wanted, strict=True):
        if one.place is not None:
            regions(gateway).write(
                caller,
                one.place.region,
                one.place.offset,
                one.place.byte_size,
                tensor.data,
            )
    return _assembled(plan, tensors, head, blobs)


def _assembled(
    plan: Plan, tensors: Sequence[Tensor], head: bytes, blobs: Sequence[bytes]
) -> Response:
    """One body of the JSON and what follows it; the plan keeps what it may use again."""
    if not blobs:
        return Response(head)
    headers = ((HEADER, b"%d" % len(head)),)
    if plan.length >= 0 and len(tensors) == 1 and tensors[0].datatype != "BYTES":
        plan.answer = (
            tensors[0].name,
            tensors[0].datatype,
            tensors[0].shape,
            head,
            headers,
        )
    return Response(b"".join([head, *blobs]), 200, BINARY, headers)


def _written(
    route: ServedVersion, plan: Plan, answer: Answer
) -> tuple[list[Tensor], bytes, list[bytes]]:
    """The tensors that are wanted, the JSON of the answer, and what follows it."""
    tensors = chosen_outputs(route, answer, plan.wanted)
    return tensors, *answer_json(signature(route), plan.id, tensors, plan.wanted)


async def _compressed(response: Response, accepted: bytes) -> Response:
    body, encoding = await packed_body(response.body, accepted)
    if not encoding:
        return response
    return response._replace(
        body=body, headers=(*response.headers, (b"content-encoding", encoding.encode()))
    )


def _name_of(header: bytes | None, id: str) -> str:
    """How logs call the request: nothing that could forge a line of theirs."""
    name = id if header is None else header.decode("latin-1")
    return name if not name or (len(name) <= NAME_LENGTH and name.isprintable()) else ""
