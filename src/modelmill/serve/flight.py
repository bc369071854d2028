"""A call on its way through the gateway, and the version that answers it."""

import time
from asyncio import CancelledError, Future

import msgspec

from modelmill.errors import Cancelled, MillError, ModelFailed, from_code
from modelmill.serve.landed import Landed, Observer, tell_observers
from modelmill.serve.link import Pending
from modelmill.serve.meter import Name, Series
from modelmill.serve.pool import Ask
from modelmill.serve.wire import Answer
from modelmill.types import KeyInfo, ServedVersion, StreamPart, Usage

NOTHING: Usage = {}


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


class Flight(msgspec.Struct, eq=False):
    """A call on its way, from `begin` to `land`."""

    observers: tuple[Observer, ...]
    caller: KeyInfo
    route: ServedVersion
    protocol: str
    series: Series
    pending: Pending
    started: float
    ask: Ask

    @property
    def future(self) -> "Future[Answer]":
        """It is done when the call can land."""
        return self.pending.future

    def extend(self, deadline: float) -> None:
        """Give an answer that has begun time until then; no other version may end it."""
        self.pending.deadline = deadline
        self.pending.pin = self.pending.version

    def land(self, sent: Usage = NOTHING) -> Answer:
        """The answer, when the future is done or was cancelled; raises what went wrong as a
        `MillError`. To be called once: it calls the observers. `sent` is what a stream used that
        has no whole answer.
        """
        try:
            answer = self.pending.future.result()
            if answer.code:
                raise from_code(answer.code, answer.message)
        except MillError as error:
            self._tell(None, error, sent)
            raise
        except CancelledError:
            self._tell(None, Cancelled("the client has gone"), sent)
            raise
        served = self.pending.version
        if served and served != version_of(self.route):
            answer = msgspec.structs.replace(answer, version=served)
        self._tell(answer, None, answer.usage)
        return answer

    def _tell(
        self, answer: Answer | None, error: MillError | None, usage: Usage
    ) -> None:
        if not self.observers:
            return
        pending = self.pending
        landed = Landed(
            self.caller,
            self.route,
            pending.version,
            self.protocol,
            self.ask,
            pending.call,
            answer,
            error,
            usage,
            self.started,
            pending.sent,
            time.monotonic(),
            self.series,
        )
        tell_observers(self.observers, landed)


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
