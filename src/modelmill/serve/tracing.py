"""OpenTelemetry traces: a server span a request, with its phases, sent over OTLP/HTTP. Off unless
an endpoint is set.

Knows neither HTTP nor gRPC: headers and metadata are a mapping of names in lower case to text.
Inputs, outputs and messages about them are never recorded. Sources: W3C Trace Context (level 2),
the OpenTelemetry specification of sampling (parent-based with a ratio), its semantic conventions
for HTTP, RPC and errors.
"""

import os
import random
import re
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from modelmill import __version__
from modelmill.errors import NotInstalled
from modelmill.serve.landed import Landed
from modelmill.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

QUEUE = 4096  # spans that may wait for the collector; more are dropped
BATCH = 512
SEND_EVERY_SECONDS = 2.0
SEND_SECONDS = 5.0
FLUSH_SECONDS = 2.0
TRACES = "v1/traces"
Attributes = Mapping[str, str | int | float | bool]
CALLERS = frozenset(
    (
        "invalid_input",
        "too_large",
        "unauthenticated",
        "forbidden",
        "not_found",
        "method_not_allowed",
        "conflict",
        "overloaded",
        "cancelled",
    )
)
"""Codes of failures that are the caller's: they leave the status of a server's span unset, as the
conventions ask.
"""
SAMPLED, RANDOM = 1, 2  # the flags of a traceparent
TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-|$)"
)
REQUEST_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)


class Span:
    """The server's part of a trace, from the request's arrival to its answer; one not sampled costs
    next to nothing.
    """

    def __init__(
        self, tracing: "Tracing", span: Any, traceparent: str, request_id: str
    ) -> None:
        self._tracing, self._span = tracing, span
        self.traceparent = traceparent
        self.request_id = (
            request_id
            if REQUEST_ID.fullmatch(request_id)
            else traceparent[3:35]
        )
        if span is not None and self.request_id is request_id:
            span.set_attribute("http.request.header.x-request-id", [request_id])

    @property
    def response_headers(self) -> tuple[tuple[str, str], ...]:
        """What the answer carries: `traceparent` of this span and `x-request-id`, the caller's if
        it sent one.
        """
        return ("traceparent", self.traceparent), (
            "x-request-id",
            self.request_id,
        )

    def set(self, attributes: Attributes) -> None:
        """Add what became known later, such as `modelmill.deployment` or
        `http.response.status_code`.
        """
        if self._span is not None:
            self._span.set_attributes(dict(attributes))

    def phase(
        self,
        name: str,
        start: int,
        end: int,
        attributes: Attributes | None = None,
    ) -> None:
        """A part of the work as a child span; times in nanoseconds since 1970 (see
        `nanoseconds`).
        """
        if self._span is not None:
            self._tracing.part(self._span, name, start, attributes).end(
                max(start, end)
            )

    def fail(self, code: str, message: str) -> None:
        """The request failed with an error of the platform; the message is kept only where it is
        not the caller's.
        """
        if self._span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("error.type", code)
        if code not in CALLERS:
            self._span.set_status(Status(StatusCode.ERROR, message[:200]))

    def end(self) -> None:
        """The answer has left."""
        if self._span is not None:
            self._span.end()


CURRENT: ContextVar[Span | None] = ContextVar("span", default=None)
"""The span of the request that is being answered."""


def trace_call(landed: Landed) -> None:
    """The observer that notes in the current span which version was called, how long it waited
    and ran, and why it failed.
    """
    span = CURRENT.get()
    if span is None:
        return
    route = landed.picked
    span.set(
        {
            "modelmill.project": route.project,
            "modelmill.deployment": route.deployment,
            "modelmill.version": f"{route.model}:{route.version}",
        }
    )
    if landed.error is not None:
        span.fail(landed.error.code, landed.error.message)
    if landed.sent:
        _trace_phases(span, landed)


def _trace_phases(span: Span, landed: Landed) -> None:
    sent = nanoseconds(landed.sent)
    span.phase("queue", nanoseconds(landed.started), sent)
    span.phase("compute", sent, nanoseconds(landed.ended))


class Tracing:
    """Makes spans and sends them in the background; a collector that is down costs spans, never
    requests.
    """

    def __init__(self, endpoint: str, sample: float) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import (
            TraceContextTextMapPropagator,
        )

        self._exporter: SpanExporter = OTLPSpanExporter(
            _traces_url(endpoint), timeout=SEND_SECONDS
        )
        self._sample = sample
        self._provider = _provider()
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=QUEUE,
                schedule_delay_millis=SEND_EVERY_SECONDS * 1e3,
                max_export_batch_size=BATCH,
            )
        )
        self._tracer = self._provider.get_tracer("modelmill", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """None when tracing is off; raises `NotInstalled` when it is on and its packages are
        missing.
        """
        endpoint = settings.tracing.endpoint
        if not endpoint:
            return None
        try:
            return cls(endpoint, settings.tracing.sample)
        except ModuleNotFoundError as error:
            raise NotInstalled(
                f"tracing needs {error.name}: pip install 'modelmill[otel]'"
            ) from error

    def start(
        self, name: str, headers: Mapping[str, str], attributes: Attributes
    ) -> Span:
        """A server span, child of the caller's `traceparent` if there is a valid one.

        `name` has few values: the method and the route's pattern (`POST /v2/models/{model}/infer`),
        or the RPC's full method. `attributes` as the conventions have them: `http.request.method`,
        `http.route`, `url.path`, or `rpc.system` and so on; `modelmill.*` for what they have no
        name for.
        """
        given = headers.get("x-request-id", "")
        parent = TRACEPARENT.match(headers.get("traceparent", ""))
        sampled = (
            int(parent[2], 16) & SAMPLED
            if parent
            else random.random() < self._sample
        )
        if not sampled:
            return Span(self, None, _unsampled(parent), given)
        span = self._begin(name, headers, attributes)
        return Span(self, span, _traceparent(span.get_span_context()), given)

    def _begin(
        self, name: str, headers: Mapping[str, str], attributes: Attributes
    ) -> Any:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        context = self._propagator.extract(headers, Context())
        return self._tracer.start_span(
            name,
            context,
            SpanKind.SERVER,
            dict(attributes),
            record_exception=False,
            set_status_on_exception=False,
        )

    def part(
        self, parent: Any, name: str, start: int, attributes: Attributes | None
    ) -> Any:
        """The span of OpenTelemetry of `Span.phase`."""
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        within = set_span_in_context(parent, Context())
        return self._tracer.start_span(
            name, within, attributes=dict(attributes or {}), start_time=start
        )

    def close(self) -> None:
        """Send what is left, for two seconds at most."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS * 0.9)
        if ending.is_alive():
            self._exporter.shutdown()  # wakes it from waiting for a collector that is down
            ending.join(FLUSH_SECONDS * 0.1)


def _unsampled(parent: re.Match[str] | None) -> str:
    """The `traceparent` of a request that nothing is recorded of."""
    flags = int(parent[2], 16) if parent else RANDOM
    trace = parent[1] if parent else f"{random.getrandbits(128) or 1:032x}"
    return f"00-{trace}-{random.getrandbits(64) or 1:016x}-{flags & RANDOM:02x}"


def _traceparent(context: Any) -> str:
    """The `traceparent` of a span."""
    trace, span = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return f"00-{trace}-{span}-{int(context.trace_flags):02x}"


def nanoseconds(monotonic: float) -> int:
    """A time of `time.monotonic()` as nanoseconds since 1970."""
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)


def _provider() -> "TracerProvider":
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    resource = Resource.create(
        {
            "service.name": os.environ.get("OTEL_SERVICE_NAME") or "modelmill",
            "service.version": __version__,
            "service.instance.id": str(uuid4()),
        }
    )
    # `Tracing.start` has decided
    return TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)


def _traces_url(endpoint: str) -> str:
    """The URL of traces: the endpoint names a collector, as `OTEL_EXPORTER_OTLP_ENDPOINT` does, or
    the URL itself.
    """
    return (
        endpoint
        if endpoint.endswith(f"/{TRACES}")
        else f"{endpoint.rstrip('/')}/{TRACES}"
    )
