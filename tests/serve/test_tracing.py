"""Traces as a collector gets them: a real HTTP receiver decodes what the exporter sends."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from modelmill.errors import InvalidInput
from modelmill.serve.tracing import Span, Tracing, nanoseconds
from modelmill.settings import read_settings

collected = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2"
)

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=abc"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
ROUTE = "POST /v2/models/{model}/infer"
SERVER_KIND, INTERNAL_KIND = 2, 1
ERROR = 2


class Collector:
    """Receives traces over OTLP/HTTP."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                outer.requests.append(
                    collected.ExportTraceServiceRequest.FromString(body)
                )
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def spans(self) -> dict[str, Any]:
        """What came, by name."""
        parts = [
            scope
            for one in self.requests
            for resource in one.resource_spans
            for scope in resource.scope_spans
        ]
        return {span.name: span for part in parts for span in part.spans}

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setenv("MODELMILL_HOME", str(tmp_path))


def tracing(endpoint: str, sample: float = 1.0) -> Tracing:
    made = Tracing.from_settings(
        read_settings(tracing={"endpoint": endpoint, "sample": sample})
    )
    assert made is not None
    return made


def is_sampled(span: Span) -> bool:
    """The first bit of the flags; the second says that the trace's id is random."""
    return bool(int(span.traceparent[-2:], 16) & 1)


def attributes(span: Any) -> dict[str, Any]:
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value"))
        for one in span.attributes
    }


def test_without_an_endpoint_there_are_no_traces():
    assert Tracing.from_settings(read_settings()) is None


def test_the_endpoint_comes_from_the_settings_or_the_standard_variable(
    monkeypatch,
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert read_settings().tracing.endpoint == "http://collector:4318"
    monkeypatch.setenv("MODELMILL_TRACING__ENDPOINT", "https://other/v1/traces")
    assert read_settings().tracing.endpoint == "https://other/v1/traces"
    monkeypatch.setenv("MODELMILL_TRACING__ENDPOINT", "collector:4318")
    with pytest.raises(InvalidInput, match=r"tracing\.endpoint"):
        read_settings()


@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
def test_a_request_and_its_phases_continue_the_callers_trace(collector, path):
    tracer = tracing(collector.url + path)
    span = tracer.start(
        ROUTE,
        SAMPLED,
        {
            "http.request.method": "POST",
            "http.route": "/v2/models/{model}/infer",
        },
    )
    start = time.time_ns()
    span.phase("queue", start, start + 2_000_000)
    span.phase(
        "compute",
        start + 2_000_000,
        start + 5_000_000,
        {"modelmill.batch_rows": 8},
    )
    span.set(
        {
            "modelmill.deployment": "waste",
            "modelmill.version": 3,
            "http.response.status_code": 200,
        }
    )
    span.end()
    tracer.close()

    server, queue, compute = (
        collector.spans[name] for name in (ROUTE, "queue", "compute")
    )
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (
        TRACE,
        PARENT,
    )
    assert server.trace_state == "vendor=abc"
    assert server.kind == SERVER_KIND
    assert server.status.code == 0
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "modelmill.deployment": "waste",
        "modelmill.version": 3,
        "http.response.status_code": 200,
    }
    for part in (queue, compute):
        assert (part.trace_id, part.parent_span_id, part.kind) == (
            server.trace_id,
            server.span_id,
            INTERNAL_KIND,
        )
    assert (queue.start_time_unix_nano, queue.end_time_unix_nano) == (
        start,
        start + 2_000_000,
    )
    assert attributes(compute) == {"modelmill.batch_rows": 8}
    assert span.response_headers[0] == (
        "traceparent",
        f"00-{TRACE}-{server.span_id.hex()}-01",
    )
    resource = attributes(collector.requests[0].resource_spans[0].resource)
    assert resource["service.name"] == "modelmill"
    assert resource["service.version"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": ""},
        {"traceparent": "junk"},
        {"traceparent": f"00-{'0' * 32}-{PARENT}-01"},
    ],
)
def test_a_request_without_a_valid_parent_begins_a_trace(collector, headers):
    tracer = tracing(collector.url)
    span = tracer.start(ROUTE, headers, {})
    span.end()
    tracer.close()
    server = collector.spans[ROUTE]
    assert server.parent_span_id == b""
    assert server.trace_id.hex() not in (TRACE, "0" * 32)
    assert span.traceparent.startswith(
        f"00-{server.trace_id.hex()}-{server.span_id.hex()}-"
    )
    assert is_sampled(span)


def test_a_failure_of_the_platform_is_an_error_and_one_of_the_caller_is_not(
    collector,
):
    tracer = tracing(collector.url)
    for name, code in (("ours", "model_failed"), ("theirs", "invalid_input")):
        span = tracer.start(name, {}, {})
        span.fail(code, f"what was wrong with {name}")
        span.end()
    tracer.close()
    ours, theirs = collector.spans["ours"], collector.spans["theirs"]
    assert (ours.status.code, ours.status.message) == (
        ERROR,
        "what was wrong with ours",
    )
    assert (theirs.status.code, theirs.status.message) == (0, "")
    assert [attributes(one) for one in (ours, theirs)] == [
        {"error.type": "model_failed"},
        {"error.type": "invalid_input"},
    ]


def test_the_caller_decides_on_sampling_and_the_ratio_on_the_rest(collector):
    tracer = tracing(collector.url, sample=0.0)
    for name, headers in (
        ("decided for", SAMPLED),
        ("decided against", UNSAMPLED),
        ("undecided", {}),
    ):
        span = tracer.start(name, headers, {})
        span.phase(f"{name}: queue", 1, 2)
        span.fail("model_failed", "it did")
        assert is_sampled(span) == (headers is SAMPLED)
        assert (span.traceparent[3:35] == TRACE) == bool(headers)
        assert span.traceparent[36:52] not in (PARENT, "0" * 16)
        span.end()
    tracer.close()
    assert collector.spans.keys() == {"decided for", "decided for: queue"}


def test_about_the_share_asked_for_is_sampled(collector):
    tracer = tracing(collector.url, sample=0.25)
    assert (
        350
        < sum(is_sampled(tracer.start("one", {}, {})) for _ in range(2_000))
        < 650
    )
    tracer.close()


def test_a_request_keeps_the_id_that_its_caller_gave_it(collector):
    tracer = tracing(collector.url)
    given = tracer.start("given", {"x-request-id": "order-17/3"}, {})
    assert given.response_headers[1] == ("x-request-id", "order-17/3")
    for bad in ("", "two words", "a\r\nset-cookie: b", "x" * 129, "é"):
        span = tracer.start("made", {"x-request-id": bad} | SAMPLED, {})
        assert span.response_headers[1] == ("x-request-id", TRACE)
    tracer.close()


def test_times_of_the_monotonic_clock_are_found_on_the_calendar():
    before = time.time_ns()
    found = nanoseconds(time.monotonic())
    assert before - 1_000_000_000 < found < time.time_ns() + 1_000_000_000
    now = time.monotonic()
    assert nanoseconds(now) - nanoseconds(now - 2.5) > 2_400_000_000


def silent() -> socket.socket:
    """A collector that takes connections and says nothing."""
    return socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize("kind", ["absent", "silent"])
def test_a_collector_that_is_down_costs_no_request_and_no_time_to_stop(kind):
    listener = silent()
    port = listener.getsockname()[1]
    if kind == "absent":
        listener.close()
    tracer = tracing(f"http://127.0.0.1:{port}")
    for number in range(10_000):  # more than may wait
        span = tracer.start(ROUTE, {}, {"number": number})
        span.phase("queue", 1, 2)
        span.end()
    begun = time.monotonic()
    tracer.close()
    assert (
        time.monotonic() - begun < 10
    )  # two seconds, and what a busy machine adds; unbounded it would be 30
    listener.close()
