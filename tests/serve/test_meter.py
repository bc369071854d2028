"""Counters on the hot path, and what Prometheus makes of them."""

import time

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from modelmill.serve.exposition import Collector
from modelmill.serve.meter import BUCKETS, SIZES, Meter, Series, histogram

DIGITS = ("default", "digits", "digits:1")


def exposed(meter, gauges=()):
    """`{(sample, labels): value}` as a Prometheus server reads it."""
    registry = CollectorRegistry()
    registry.register(Collector(meter, gauges))
    families = text_string_to_metric_families(
        generate_latest(registry).decode()
    )
    samples = [
        (one.name, frozenset(one.labels.items()), one.value)
        for family in families
        for one in family.samples
    ]
    found = {
        (name, labels): value
        for name, labels, value in samples
        if not name.endswith("_created")
    }
    assert len(found) == len(
        [name for name, _, _ in samples if not name.endswith("_created")]
    )  # none is said twice
    return found


def value(found, name, **labels):
    labels = {"project": "default", **labels}
    return found[name, frozenset(labels.items())]


@pytest.mark.parametrize(
    ("edges", "seen", "bucket"),
    [
        (BUCKETS, 0.0, 0),
        (BUCKETS, 0.0005, 0),  # an edge belongs to the bucket that it ends
        (BUCKETS, 0.00051, 1),
        (BUCKETS, 60, len(BUCKETS) - 1),
        (BUCKETS, 60.1, len(BUCKETS)),
        (BUCKETS, 1e9, len(BUCKETS)),
        (SIZES, 1, 0),
        (SIZES, 2, 1),
        (SIZES, 3, 2),
        (SIZES, 257, len(SIZES)),
    ],
)
def test_a_value_is_counted_in_the_bucket_that_its_edge_ends(
    edges, seen, bucket
):
    found = histogram(edges)
    found.observe(seen, edges, times=3)
    assert [place for place, count in enumerate(found.counts) if count] == [
        bucket
    ]
    assert (found.count, found.sum) == (3, pytest.approx(seen * 3))


def test_requests_and_batches_are_counted():
    series, before = Series(), time.time()
    series.answered("v2_http", 0.25, True)
    series.answered("v2_http", 0.5, False)
    series.answered("huggingface", 0.25, True)
    series.ran(4, 6, 0.1, 0.2, 0.3)
    assert series.requests == {
        ("v2_http", "success"): 1,
        ("v2_http", "failure"): 1,
        ("huggingface", "success"): 1,
    }
    assert (
        series.success,
        series.failure,
        series.success_seconds,
        series.failure_seconds,
    ) == (2, 1, 0.5, 0.5)
    assert (
        series.batches,
        series.rows,
        series.compute.count,
        series.sizes.count,
    ) == (
        1,
        6,
        4,
        1,
    )
    assert series.compute.sum == pytest.approx(4 * 0.6)
    assert before <= series.last <= time.time()


def counted(**values):
    series = Series(**values)
    series.answered("v2_http", 0.25, True)
    series.ran(2, 3, 0.1, 0.2, 0.3)
    series.queue.observe(0.5)
    return series


def test_several_gateways_are_one():
    meter = Meter()
    meter.own[DIGITS] = counted(shadow_answers=1, last=5.0)
    meter.receive(
        "a",
        {DIGITS: counted(rejected=2)},
        {("default", "shop", "digits", "requests"): 2},
    )
    meter.receive(
        "b",
        {DIGITS: counted(rejected=3)},
        {
            ("default", "shop", "digits", "requests"): 3,
            ("default", "other", "digits", "requests"): 1,
        },
    )
    # The last word counts
    meter.receive(
        "b",
        {DIGITS: counted(rejected=4)},
        {("default", "shop", "digits", "requests"): 4},
    )
    meter.usage_of("default", "shop", "digits")["requests"] = 1
    total = meter.total(DIGITS)
    assert (
        total.success,
        total.rejected,
        total.rows,
        total.batches,
        total.shadow_answers,
    ) == (3, 6, 9, 3, 1)
    assert total.requests == {("v2_http", "success"): 3}
    assert (
        total.latency.count,
        total.queue.count,
        total.compute.count,
        total.queue_seconds,
    ) == (3, 3, 6, 1.5)
    assert meter.used() == {
        ("default", "shop", "digits", "requests"): 7,
        ("default", "other", "digits", "requests"): 1,
    }
    assert (meter.own[DIGITS].success, meter.own[DIGITS].latency.count) == (
        1,
        1,
    )  # adding up changes nothing
    assert meter.total(("default", "digits", "digits:2")).success == 0


def test_what_is_undeployed_is_forgotten():
    meter = Meter()
    other = ("default", "reviews", "reviews:1")
    for name in (DIGITS, other):
        meter.series(name).answered("x", 0.1, True)
        meter.receive(
            "a",
            {name: counted()},
            {("default", "shop", name[1], "requests"): 1},
        )
        meter.usage_of("default", "shop", name[1])["requests"] = 1
    meter.forget({("default", "reviews")})
    assert meter.names() == {other}
    assert meter.used() == {("default", "shop", "reviews", "requests"): 2}


def test_a_series_survives_the_way_to_another_process():
    series = counted()
    assert (
        msgspec.msgpack.decode(msgspec.msgpack.encode(series), type=Series)
        == series
    )


def test_prometheus_reads_what_was_counted():
    meter = Meter()
    meter.own[DIGITS] = series = counted(
        shadow_answers=3, shadow_disagreements=1, rejected=2
    )
    series.answered("v2_http", 100.0, False)
    meter.usage_of("default", 'sh"o\np\\', "digits")["requests"] = 4
    found = exposed(
        meter,
        [
            (
                "modelmill_pending_requests",
                "waiting",
                {"project": "default", "deployment": "digits", "slot": "main"},
                7,
            )
        ],
    )
    where = {"deployment": "digits", "version": "digits:1"}
    assert (
        value(
            found,
            "modelmill_requests_total",
            **where,
            protocol="v2_http",
            outcome="success",
        )
        == 1
    )
    assert (
        value(
            found,
            "modelmill_requests_total",
            **where,
            protocol="v2_http",
            outcome="failure",
        )
        == 1
    )
    assert value(found, "modelmill_rejected_requests_total", **where) == 2
    assert value(found, "modelmill_rows_total", **where) == 3
    assert value(found, "modelmill_batches_total", **where) == 1
    assert value(found, "modelmill_shadow_answers_total", **where) == 3
    assert value(found, "modelmill_shadow_disagreements_total", **where) == 1
    assert (
        value(
            found, "modelmill_usage_total", key='sh"o\np\\', deployment="digits"
        )
        == 4
    )
    assert (
        value(
            found,
            "modelmill_pending_requests",
            deployment="digits",
            slot="main",
        )
        == 7
    )
    assert (
        value(found, "modelmill_request_seconds_bucket", **where, le="0.1") == 0
    )
    assert (
        value(found, "modelmill_request_seconds_bucket", **where, le="0.25")
        == 1
    )
    assert (
        value(found, "modelmill_request_seconds_bucket", **where, le="60.0")
        == 1
    )
    assert (
        value(found, "modelmill_request_seconds_bucket", **where, le="+Inf")
        == 2
    )
    assert value(found, "modelmill_request_seconds_count", **where) == 2
    assert value(found, "modelmill_request_seconds_sum", **where) == 100.25
    assert value(found, "modelmill_queue_seconds_sum", **where) == 0.5
    assert value(found, "modelmill_compute_seconds_count", **where) == 2
    assert value(found, "modelmill_batch_rows_bucket", **where, le="4.0") == 1
    assert value(found, "modelmill_batch_rows_bucket", **where, le="2.0") == 0


def test_nothing_counted_is_still_an_exposition():
    assert exposed(Meter()) == {}
