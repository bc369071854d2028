"""What observers are told of each call that is over."""

import asyncio
import unittest

import pytest

from modelmill.errors import MillError, NotFound, Overloaded, Unavailable
from modelmill.serve.gateway import Gateway
from modelmill.serve.wire import Answer, Batch, Part
from modelmill.settings import Limits
from modelmill.types import StreamPart
from tests.helpers.gateways import a_route, a_snapshot
from tests.helpers.workers import until
from tests.serve.live_gateway import KEYS, inside, metric, refuses, worker


def observed(*routes, observers=(), **limits):
    """A gateway, and the list of what its last observer was told."""
    told = []
    here = Gateway(Limits(**limits), observers=(*observers, told.append))
    here.update(a_snapshot(*routes, keys=KEYS))
    return here, told


async def uses(calls):
    return [
        Answer(call.id, data=b"{}", usage={"pixels": 4, "compute_seconds": 0.5})
        for call in calls
    ]


@inside
async def test_an_answered_call(tmp_path):
    there = await worker(tmp_path / "w", uses)
    here, told = observed(a_route("digits", sockets=[there.path]))
    caller = here.authorise("mine")
    picked = here.pick(caller, "digits")
    parameters = {"top_k": 1}
    answer = await here.predict(
        caller,
        picked,
        "v2_http",
        data=b"x",
        parameters=parameters,
        request_id="r1",
    )
    (landed,) = told
    assert (landed.caller, landed.picked, landed.protocol) == (
        caller,
        picked,
        "v2_http",
    )
    assert (landed.served, landed.ask.request_id) == ("digits:1", "r1")
    assert (landed.call.data, landed.call.parameters) == (b"x", parameters)
    assert (landed.answer, landed.error) == (answer, None)
    assert landed.usage == {"pixels": 4, "compute_seconds": 0.5}
    assert 0 < landed.started <= landed.sent <= landed.ended


@inside
async def test_a_failed_call_has_an_error_and_no_usage(tmp_path):
    there = await worker(tmp_path / "w", refuses("model_failed"))
    here, told = observed(a_route("digits", sockets=[there.path]))
    caller = here.authorise("mine")
    with pytest.raises(MillError, match="because") as caught:
        await here.predict(caller, here.pick(caller, "digits"), "x", data=b"x")
    (landed,) = told
    assert (landed.answer, landed.error) == (None, caught.value)
    assert (landed.served, landed.usage) == ("digits:1", {})


@inside
async def test_refused_calls_say_how_far_they_came(tmp_path):
    here, told = observed(
        a_route("digits"), a_route("asleep", ready=False, loaded=False), queue=1
    )
    caller = here.authorise("mine")
    first = asyncio.ensure_future(
        here.predict(caller, here.pick(caller, "digits"), "x", data=b"x")
    )
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await here.predict(caller, here.pick(caller, "digits"), "x", data=b"x")
    with pytest.raises(Unavailable):
        await here.predict(caller, here.pick(caller, "asleep"), "x", data=b"x")
    full, unloaded = told
    assert [one.error.code for one in told] == ["overloaded", "unavailable"]
    assert (full.call, full.served, full.sent) == (None, "", 0.0)
    assert full.series is not None
    assert (unloaded.call, unloaded.series) == (None, None)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (told[2].error.code, told[2].served) == ("cancelled", "")


@inside
async def test_a_call_of_an_undeployed_model_gets_an_error_too(tmp_path):
    here, told = observed(a_route("digits"))
    caller = here.authorise("mine")
    picked = here.pick(caller, "digits")
    here.update(a_snapshot(keys=KEYS))
    with pytest.raises(NotFound):
        await here.predict(caller, picked, "x", data=b"x")
    assert [one.error.code for one in told] == ["not_found"]


async def writes(calls):
    return Batch(
        [],
        parts=[
            Part(call.id, StreamPart(number, number, "a", number - 1, 3))
            for call in calls
            for number in (1, 2)
        ],
    )


@inside
async def test_a_stream_that_ends_early_used_what_was_sent(tmp_path):
    there = await worker(tmp_path / "w", writes)
    here, told = observed(
        a_route("writer", kind="text", grows=True, sockets=[there.path])
    )
    caller = here.authorise("mine")
    stream = here.stream(
        caller, here.pick(caller, "writer"), "x", data=b"x", parameters={}
    )
    assert [(await anext(stream)).number for _ in range(2)] == [1, 2]
    await stream.aclose()
    (landed,) = told
    assert landed.error.code == "cancelled"
    assert landed.usage == {"prompt_tokens": 3, "completion_tokens": 2}
    where = {"key": "", "deployment": "writer"}
    tokens = metric(
        here, "modelmill_usage_tokens_total", **where, kind="completion"
    )
    assert tokens == 2
    assert metric(here, "modelmill_usage_total", **where) is None


@inside
async def test_an_observer_that_raises_hurts_no_answer(tmp_path):
    def broken(landed):
        raise RuntimeError("out of order")

    there = await worker(tmp_path / "w", uses)
    here, told = observed(
        a_route("digits", sockets=[there.path]), observers=[broken]
    )
    caller = here.authorise("mine")
    with unittest.TestCase().assertLogs("modelmill.gateway", "ERROR") as logs:
        answer = await here.predict(
            caller, here.pick(caller, "digits"), "x", data=b"x"
        )
    assert answer.data == b"{}"
    assert "out of order" in logs.output[0]
    await until(lambda: told)  # those behind it are told all the same
    assert (
        metric(here, "modelmill_usage_total", key="", deployment="digits") == 1
    )
