"""Who waits in a deployment's queue: how long, how many, and what is refused."""

import asyncio

import pytest

from modelmill.errors import Cancelled, Expired, InvalidInput, Overloaded
from modelmill.serve.pool import Ask
from modelmill.serve.wire import Tensor
from tests.helpers.workers import until
from tests.serve.stage import Gate, ask, play, sent

# ---- time and callers


@play
async def test_calls_expire_each_at_its_own_time_sent_or_not(pool, worker):
    gate = Gate()
    here, there = pool(calls=1), await worker("w", gate)
    here.follow([there.path])
    held = ask(here, b"held", timeout=0.03)
    await until(lambda: there.got)
    ahead = ask(here, timeout=5)
    waiting = ask(here, timeout=0.01)
    patient = ask(here, b"patient", timeout=5)
    for late in (waiting, held):
        with pytest.raises(
            Expired, match="'digits' did not answer in the time allowed"
        ):
            await late
    gate.opened.set()
    assert [answer.data for answer in await asyncio.gather(ahead, patient)] == [
        b"<x>",
        b"<patient>",
    ]
    assert sent(there) == [[b"held"], [b"x"], [b"patient"]]


@play
async def test_one_timer_serves_all_deadlines(pool, worker):
    here = pool(queue=2000)
    loop = asyncio.get_running_loop()
    before = len(loop._scheduled)
    calls = [ask(here, timeout=10 - n / 1000) for n in range(500)] + [
        ask(here, timeout=20) for n in range(500)
    ]
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]
    assert len(timers) <= before + 1
    short = ask(here, timeout=0.01)
    with pytest.raises(Expired):
        await short
    assert not any(call.done() for call in calls)


@play
async def test_what_has_expired_is_not_kept(pool, worker):
    here = pool(queue=2, queue_bytes=100)
    for _ in range(3):
        calls = [ask(here, bytes(50), timeout=0.005) for _ in range(2)]
        for call in calls:
            with pytest.raises(Expired):
                await call
        assert here.pending == 0
        assert here._lanes.size == 0


@play
async def test_a_call_whose_caller_left_is_not_sent(pool, worker):
    here = pool()
    left, stayed = ask(here, b"left"), ask(here, b"stayed")
    gone = ask(here, b"gone", gone=lambda: True)
    await asyncio.sleep(0)
    left.cancel()
    there = await worker("w")
    here.follow([there.path])
    assert (await stayed).data == b"<stayed>"
    with pytest.raises(Cancelled):
        await gone
    assert sent(there) == [[b"stayed"]]


@play
async def test_calls_that_nobody_waits_for_take_no_place_in_the_queue(
    pool, worker
):
    here = pool(queue=2)
    for call in (ask(here), ask(here)):
        call.cancel()
    assert here.waiting == 0
    call = ask(here, timeout=0.01)
    with pytest.raises(Expired):
        await call


# ---- a full queue


@play
async def test_a_full_queue_says_come_back_later(pool, worker):
    here = pool(queue=2)
    waiting = [ask(here), ask(here)]
    with pytest.raises(
        Overloaded, match="2 calls already wait for 'digits'"
    ) as caught:
        ask(here)
    assert caught.value.retry_after == 1
    assert here.series.rejected == 1
    there = await worker("w")
    here.follow([there.path])
    await asyncio.gather(*waiting)
    assert (await ask(here)).data == b"<x>"


@play
async def test_a_greedy_key_leaves_room_for_others(pool, worker):
    here = pool(queue=4)
    greedy = [ask(here, key="greedy") for _ in range(4)]
    with pytest.raises(Overloaded):
        ask(here, key="greedy")
    modest = [ask(here, key="modest") for _ in range(2)]
    with pytest.raises(Overloaded):
        ask(here, key="modest")
    there = await worker("w")
    here.follow([there.path])
    await asyncio.gather(*greedy, *modest)


@play
async def test_bytes_are_limited_too_and_a_large_call_alone_is_let_in(
    pool, worker
):
    here = pool(queue_bytes=100)
    big = ask(here, bytes(150))
    with pytest.raises(Overloaded):
        ask(here, b"x")
    there = await worker("w")
    here.follow([there.path])
    await big
    assert len((await ask(here, bytes(90))).data) == 92


@play
async def test_a_call_to_a_queue_without_workers_is_reported_once(pool, worker):
    heard = []
    here = pool()
    here.on_idle_call = lambda: heard.append(1)
    call = ask(here)
    assert heard == [1]
    there = await worker("w")
    here.follow([there.path])
    await call
    await ask(here)
    assert heard == [1]


# ---- what can't be passed on


@pytest.mark.parametrize(
    "parameters", [{"top_k": 2**70}, {"a": {"b": [2**64]}}, {"text": "\ud800"}]
)
def test_parameters_that_can_not_be_sent_are_refused(tmp_path, parameters):
    @play
    async def scene(pool, worker):
        with pytest.raises(InvalidInput, match="can't be passed on"):
            ask(pool(), parameters=parameters)

    scene(tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        Tensor("x\udc80", "UINT8", [1], b"1"),
        Tensor("x", "UINT8", [2**64], b"1"),
    ],
)
def test_a_call_that_can_not_be_sent_fails_alone(tmp_path, bad):
    @play
    async def scene(pool, worker):
        here, there = pool(), await worker("w")
        here.follow([there.path])
        first = ask(here, b"1")
        refused = here.submit(None, [bad], {}, Ask()).future
        last = ask(here, b"2")
        with pytest.raises(InvalidInput, match="can't be passed on"):
            await refused
        assert [
            answer.data for answer in await asyncio.gather(first, last)
        ] == [
            b"<1>",
            b"<2>",
        ]
        assert here.pending == 0

    scene(tmp_path)
