"""A call on its way through the gateway, and the version that answers it."""

import time
from typing import TYPE_CHECKING

import msgspec

from modelmill.errors import ModelFailed, from_code
from modelmill.serve.link import Pending
from modelmill.serve.meter import Name
from modelmill.serve.pool import Ask, Pool
from modelmill.serve.wire import Answer, Usage
from modelmill.types import KeyInfo, ServedVersion, StreamPart

if TYPE_CHECKING:
    from modelmill.serve.gateway import Gateway


class StreamCursor:
    """The tokens of a stream that were already sent to its caller.

    When a worker is lost, its replacement begins from the first token: those that were sent are
    left out, and must be the same.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.prompt_tokens = 0

    def is_new(self, part: StreamPart) -> bool:
        """Whether a part was not sent before; raises `ModelFailed` where a replacement has another
        token in its place.
        """
        if part.number <= len(self.tokens):
            if self.tokens[part.number - 1] != part.token:
                raise ModelFailed(
                    "the worker was lost, and another one could not go on with the same text: ask "
                    "again"
                )
            return False
        self.tokens.append(part.token)
        self.prompt_tokens = part.prompt_tokens
        return True

    @property
    def usage(self) -> Usage:
        """What a stream has used that ends here, before its answer is whole."""
        if not self.tokens:
            return {}
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.tokens),
        }


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
