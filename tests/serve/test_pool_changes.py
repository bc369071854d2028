"""Workers come and go, deployments are undeployed and promoted, and no call is lost or left
waiting.
"""

import asyncio

import pytest

from modelmill.errors import MillError, Unavailable
from tests.helpers.workers import until
from tests.serve.stage import Gate, ask, die, echo, lost, play, sent

# ---- coming and going


@play
async def test_a_worker_that_is_let_go_finishes_what_it_holds(pool, worker):
    gate = Gate()
    here, old, new = pool(), await worker("old", gate), await worker("new")
    here.follow([old.path])
    held = ask(here, b"held")
    await until(lambda: old.got)
    here.follow([new.path])
    assert (await ask(here, b"later")).data == b"<later>"
    assert old.open == 1
    gate.opened.set()
    assert (await held).data == b"<held>"
    await until(lambda: old.open == 0)
    assert new.open == 1
    assert sent(old) == [[b"held"]]


@play
async def test_an_idle_worker_is_let_go_at_once(pool, worker):
    here, old = pool(), await worker("old")
    here.follow([old.path])
    await until(lambda: old.open == 1)
    here.follow([])
    await until(lambda: old.open == 0)
    assert not here.connected


@play
async def test_the_last_worker_answers_what_waits_before_it_leaves(
    pool, worker
):
    gate = Gate()
    here, last = pool(calls=1), await worker("last", gate)
    here.follow([last.path])
    calls = [ask(here, b"%d" % n) for n in range(5)]
    await until(lambda: last.got)
    here.follow([])
    gate.opened.set()
    assert [answer.data for answer in await asyncio.gather(*calls)] == [
        b"<%d>" % n for n in range(5)
    ]
    await until(lambda: last.open == 0)


@play
async def test_a_worker_that_leaves_and_is_lost_still_loses_no_call(
    pool, worker
):
    here, old, new = pool(), await worker("old", die), await worker("new")
    here.follow([old.path])
    call = ask(here)
    await until(lambda: old.got)
    here.follow([new.path])
    assert (await call).data == b"<x>"


@play
async def test_a_worker_that_is_no_longer_wanted_while_it_is_reached_is_let_go(
    pool, worker
):
    here, there = pool(), await worker("w")
    here.follow([there.path])
    await asyncio.sleep(0)
    here.follow([])
    await until(lost(here))
    await until(lambda: there.open == 0)


@play
async def test_undeployed_the_workers_answer_what_was_accepted(pool, worker):
    gate = Gate()
    here, there = pool(calls=1), await worker("w", gate)
    here.follow([there.path])
    calls = [ask(here, b"%d" % n) for n in range(5)]
    await until(lambda: there.got)
    here.close()
    with pytest.raises(Unavailable, match="was undeployed"):
        ask(here)
    gate.opened.set()
    await asyncio.gather(*calls)
    await until(lambda: there.open == 0)


@pytest.mark.parametrize("state", ["no worker", "connecting", "just connected"])
def test_undeployed_without_a_worker_nobody_waits_in_vain(tmp_path, state):
    @play
    async def scene(pool, worker):
        here, there = pool(), await worker("w")
        if state != "no worker":
            here.follow([there.path])
        call = ask(here)
        if state == "just connected":
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        here.close()
        result = (await asyncio.gather(call, return_exceptions=True))[0]
        assert isinstance(result, Unavailable) or result.data == b"<x>"
        await until(lambda: there.open == 0)

    scene(tmp_path)


@play
async def test_undeployed_and_the_last_worker_lost_nobody_waits_in_vain(
    pool, worker
):
    here, there = pool(calls=1), await worker("w", die)
    here.follow([there.path])
    await until(lambda: here.connected)
    calls = [ask(here, b"%d" % n) for n in range(5)]
    await asyncio.sleep(0)
    here.close()
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(result, Unavailable)


@play
async def test_promoted_what_waits_and_what_is_lost_goes_to_the_heir(
    pool, worker
):
    gate, half = Gate(), []

    async def once_then_die(calls):
        half.append(1)
        await gate.opened.wait()
        return await echo(calls) if len(half) == 1 else None

    here, heir = pool(calls=1), pool(name="heir")
    there, other = await worker("w", once_then_die), await worker("other")
    here.follow([there.path])
    calls = [ask(here, b"%d" % n) for n in range(5)]
    await until(lambda: half)
    here.close(heir)
    assert heir.waiting == 3
    heir.follow([other.path])
    await asyncio.gather(*calls[2:])
    gate.opened.set()
    answers = await asyncio.gather(*calls)
    assert [answer.data for answer in answers] == [
        b"<%d>" % n for n in range(5)
    ]
    assert sorted(data for batch in sent(other) for data in batch) == [
        b"1",
        b"2",
        b"3",
        b"4",
    ]


@play
async def test_an_heir_that_is_closed_too_refuses_what_it_took_over(
    pool, worker
):
    here, heir = pool(), pool()
    call = ask(here)
    here.close(heir)
    heir.close()
    with pytest.raises(Unavailable):
        await call


@play
async def test_through_losses_and_changes_every_call_is_answered_once(
    pool, worker
):
    """Workers come, die, and go while calls arrive: each call ends with its own answer."""
    here, count = pool(calls=4, queue=10_000), 0
    died = []

    async def frail(calls):
        await asyncio.sleep(0)
        if (
            len(died) < 6
            and any(call.data.endswith(b"7") for call in calls)
            and calls[0].data not in died
        ):
            # So that none of them ends two workers
            died.extend(call.data for call in calls)
            return None
        return await echo(calls)

    workers = [await worker(f"{n}", frail) for n in range(4)]
    futures = []
    for count in range(400):
        futures.append(
            ask(here, b"%d" % count, key="ab"[count % 2], priority=count % 3)
        )
        if count % 10 == 0:
            here.follow([one.path for one in workers[count // 10 % 3 :][:2]])
            await asyncio.sleep(0.001)
    while not all(future.done() for future in futures):
        here.follow([one.path for one in workers])
        await asyncio.sleep(0.005)
    answers = [future.exception() or future.result().data for future in futures]
    assert [answer for answer in answers if isinstance(answer, MillError)] == []
    assert answers == [b"<%d>" % n for n in range(400)]
    assert here.pending == 0
