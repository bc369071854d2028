"""A call on its way through the gateway, and the version that answers it."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from modelmill.errors import ModelFailed, from_code
from modelmill.serve.link import Pending
from modelmill.serve.meter import Name
from modelmill.serve.pool import Ask, Pool
from modelmill.serve.tensors import elements_of
from modelmill.serve.wire import ANSWER, Answer
from modelmill.types import Json, KeyInfo, ServedVersion

if TYPE_CHECKING:
    from modelmill.serve.gateway import Gateway


class Tokens(msgspec.Struct, frozen=True):
    """What an answer that grew has cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Grown(msgspec.Struct, frozen=True):
    """An answer that grew, as far as it is counted."""

    usage: Tokens = Tokens()


read_grown = msgspec.json.Decoder(Grown).decode


class Heard:
    """What a caller has heard of an answer that grows.

    After a worker was lost another says the beginning again: that is left out, and has to be the
    same.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.prompt = 0

    def fresh(self, data: bytes) -> Json | None:
        """A part, or None for one that was heard before; raises `ModelFailed` where another worker
        says otherwise.
        """
        part: Json = msgspec.json.decode(data)
        number, token = part["number"], part["token"]
        if number <= len(self.tokens):
            if self.tokens[number - 1] != token:
                raise ModelFailed(
                    "the worker was lost, and another one could not go on with the same text: ask "
                    "again"
                )
            return None
        self.tokens.append(token)
        self.prompt = part["prompt"]
        return part


def grown_of(answer: Answer) -> Iterator[Tokens]:
    """What the texts of an answer have cost."""
    if answer.data:
        yield read_grown(answer.data).usage
    for tensor in answer.tensors:
        if tensor.name == ANSWER:
            yield from (read_grown(text).usage for text in elements_of(tensor))


class Flight:
    """A call on its way, from `begin` to `land`."""

    __slots__ = (
        "ask",
        "caller",
        "future",
        "gateway",
        "pending",
        "pool",
        "protocol",
        "route",
        "series",
        "started",
    )

    def __init__(
        self,
        gateway: "Gateway",
        caller: KeyInfo,
        route: ServedVersion,
        protocol: str,
        pool: Pool,
        pending: Pending,
        started: float,
        ask: Ask,
    ) -> None:
        self.gateway = gateway
        self.caller = caller
        self.route = route
        self.protocol = protocol
        self.ask = ask
        self.pool, self.series = pool, pool.series
        self.pending = pending
        self.started = started
        self.future = pending.future

    @property
    def payer(self) -> tuple[str, str, str]:
        """Whose use it is: project, key and deployment."""
        return (self.route.project, self.caller.name, self.route.deployment)

    def land(self) -> Answer:
        """The answer, counted; raises what went wrong as a `MillError`. For a future that is done,
        once.
        """
        good = False
        try:
            answer = self.future.result()
            if answer.code:
                raise from_code(answer.code, answer.message)
            good = True
        finally:
            self.count(good)
        return self.gateway.landed(self, answer)

    def count(self, good: bool) -> None:
        """Note that the call is over."""
        self.series.answered(self.protocol, time.monotonic() - self.started, good)


def version_of(route: ServedVersion) -> str:
    """A version as people name it."""
    return f"{route.model}:{route.version}"


def answered_by(route: ServedVersion, answer: Answer) -> ServedVersion:
    """The route as the version that answered: the picked one, unless the answer names another."""
    if not answer.version:
        return route
    model, _, number = answer.version.rpartition(":")
    return msgspec.structs.replace(route, model=model, version=int(number))


def name_of(route: ServedVersion) -> Name:
    """What the series of a route are counted under."""
    return (route.project, route.deployment, version_of(route))
