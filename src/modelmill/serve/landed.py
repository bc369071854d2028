"""What is known of a call when it is over, and its observers.

Whatever wants to know of answers (metrics, usage, traces, shadows) is an observer: a function of
one `Landed`. It runs in the gateway's loop before the caller has its answer, so it does not wait
for anything. One that raises is logged; the answer goes out all the same.
"""

import logging
import time
from collections.abc import Callable

import msgspec

from modelmill.errors import MillError
from modelmill.serve.meter import Series
from modelmill.serve.pool import Ask
from modelmill.serve.wire import Answer, Call
from modelmill.types import KeyInfo, ServedVersion, Usage

log = logging.getLogger("modelmill.gateway")


class Landed(msgspec.Struct, frozen=True, gc=False):
    """One call that is over: answered, failed, refused, or left by its caller.

    `answer` or `error` is None, never both. `picked` is the version that the call was for, `served`
    the one (`model:number`) whose worker it was given to last; empty where it was given to none.
    `usage` is what the worker said, or of a stream that ended early what was sent of it. Times are
    those of `time.monotonic()`; `sent` is 0 where no worker was given the call. A call that was
    refused before it was queued has no `call`; one that was refused before it reached a queue has
    no `series` either, which are the counters of the version whose queue it is.
    """

    caller: KeyInfo
    picked: ServedVersion
    served: str
    protocol: str
    ask: Ask
    call: Call | None
    answer: Answer | None
    error: MillError | None
    usage: Usage
    started: float
    sent: float
    ended: float
    series: Series | None


def refusal(
    caller: KeyInfo,
    picked: ServedVersion,
    protocol: str,
    ask: Ask,
    error: MillError,
    started: float,
    series: Series | None,
) -> Landed:
    """A call that was refused before it was queued, now."""
    return Landed(
        caller,
        picked,
        "",
        protocol,
        ask,
        None,
        None,
        error,
        {},
        started,
        0.0,
        time.monotonic(),
        series,
    )


Observer = Callable[[Landed], None]


def tell_observers(observers: tuple[Observer, ...], landed: Landed) -> None:
    """Tell all of a call that is over; raises nothing."""
    for observer in observers:
        try:
            observer(landed)
        except Exception:
            log.exception("an observer of answers failed")
