"""One queue for all workers of a deployment: every call is answered once, whatever becomes of the workers."""

import asyncio

import pytest

from modelmill.errors import Expired, InvalidInput, ModelFailed, Overloaded, Unavailable
from modelmill.serve.batcher import BatchLimits
from modelmill.serve.pool import Pool
from modelmill.serve.wire import Answer
from tests.making import FakeWorker, until


async def echo(calls):
    return [Answer(call.id, data=b"<" + call.data + b">") for call in calls]


async def die(calls):
    return None


class Gate:
    """Answers when it is opened."""

    def __init__(self):
        self.opened = asyncio.Event()

    async def __call__(self, calls):
        await self.opened.wait()
        return await echo(calls)


def play(scene):
    """Run a scene with a pool and a maker of workers, and clean up."""

    async def whole(tmp_path):
        pools, workers = [], []

        def pool(calls=64, size=1 << 20, queue=100):
            waits.clear()
            pools.append(Pool("digits", BatchLimits(calls, size), queue, waits.append))
            return pools[-1]

        async def worker(name, answering=echo):
            workers.append(await FakeWorker(tmp_path / name, answering).start())
            return workers[-1]

        try:
            await asyncio.wait_for(scene(pool, worker), 20)
        finally:
            for one in pools:
                one.close()
                for link in list(one._links.values()):
                    link.close()
            for one in workers:
                await one.stop()
            await asyncio.sleep(0.01)

    waits = []

    def test(tmp_path):
        asyncio.run(whole(tmp_path))

    test.__name__ = scene.__name__
    return test


def ask(pool, data=b"x", timeout=10.0):
    return asyncio.create_task(pool.submit(data, [], {}, timeout))


@play
async def test_answers_are_matched_by_id_whatever_their_order(pool, worker):
    async def backwards(calls):
        return (await echo(calls))[::-1]

    here = pool()
    calls = [ask(here, b"%d" % n) for n in range(20)]
    await asyncio.sleep(0)
    there = await worker("w", backwards)
    here.follow([there.path])
    answers = await asyncio.gather(*calls)
    assert [answer.data for answer in answers] == [b"<%d>" % n for n in range(20)]
    assert len(there.got) == 1  # they went as one batch
    assert here.pending == 0


@play
async def test_a_lone_call_goes_at_once_and_the_others_follow_in_batches(pool, worker):
    gate = Gate()
    there, here = await worker("w", gate), pool(calls=3)
    here.follow([there.path])
    await until(lambda: here.connected)
    calls = [ask(here, b"%d" % n) for n in range(8)]
    await until(lambda: there.got)
    gate.opened.set()
    await asyncio.gather(*calls)
    sizes = [len(batch) for batch in there.got]
    assert sum(sizes) == 8
    assert max(sizes) <= 3
    assert [call.data for batch in there.got for call in batch] == [b"%d" % n for n in range(8)]


@play
async def test_an_idle_worker_takes_the_next_batch(pool, worker):
    slow, fast = await worker("slow", Gate()), await worker("fast")
    here = pool(calls=1)
    here.follow([slow.path, fast.path])
    await until(lambda: all(link.idle for link in here._links.values()) and len(here._links) == 2)
    stuck = [ask(here) for _ in range(5)]
    await until(lambda: sum(call.done() for call in stuck) == 4)
    assert (len(slow.got), len(fast.got)) == (1, 4)
    for call in stuck:
        call.cancel()


@play
async def test_the_calls_of_a_lost_worker_go_to_another(pool, worker):
    here, dying = pool(), await worker("dying", die)
    here.follow([dying.path])
    calls = [ask(here, b"%d" % n) for n in range(5)]
    await until(lambda: dying.got)
    other = await worker("other")
    here.follow([other.path])
    answers = await asyncio.gather(*calls)
    assert [answer.data for answer in answers] == [b"<%d>" % n for n in range(5)]
    assert [call.data for batch in other.got for call in batch] == [b"%d" % n for n in range(5)]


@play
async def test_a_call_that_ends_two_workers_has_failed(pool, worker):
    here, first, second = pool(), await worker("1", die), await worker("2", die)
    here.follow([first.path])
    call = ask(here)
    await until(lambda: first.got and not here._links)
    here.follow([second.path])
    with pytest.raises(ModelFailed, match="ended twice on this input"):
        await call
    assert (len(first.got), len(second.got)) == (1, 1)
    assert here.pending == 0


@play
async def test_a_worker_that_speaks_nonsense_is_a_lost_worker(pool, worker):
    async def garbage(calls):
        return [{"not": "an answer"}]

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    here, bad = pool(), await worker("bad", garbage)
    here.follow([bad.path])
    call = ask(here)
    await until(lambda: bad.got and not here._links)
    good = await worker("good")
    here.follow([good.path])
    assert (await call).data == b"<x>"


@play
async def test_what_the_worker_says_is_raised(pool, worker):
    async def refuse(calls):
        return [Answer(call.id, code="invalid_input", message="the picture is damaged") for call in calls]

    here, there = pool(), await worker("w", refuse)
    here.follow([there.path])
    with pytest.raises(InvalidInput, match="the picture is damaged"):
        await ask(here)


@play
async def test_a_call_whose_deadline_passed_is_answered_and_not_sent(pool, worker):
    here = pool()
    late, patient = ask(here, b"late", timeout=0.02), ask(here, b"patient")
    with pytest.raises(Expired, match="did not answer in the time allowed"):
        await late
    there = await worker("w")
    here.follow([there.path])
    assert (await patient).data == b"<patient>"
    assert [call.data for batch in there.got for call in batch] == [b"patient"]


@play
async def test_a_call_that_takes_too_long_is_answered_and_its_answer_dropped(pool, worker):
    gate = Gate()
    here, there = pool(), await worker("w", gate)
    here.follow([there.path])
    with pytest.raises(Expired):
        await ask(here, timeout=0.05)
    next_one = ask(here, b"next")
    gate.opened.set()
    assert (await next_one).data == b"<next>"


@play
async def test_a_call_whose_caller_left_is_not_sent(pool, worker):
    here = pool()
    left, stayed = ask(here, b"left"), ask(here, b"stayed")
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    there = await worker("w")
    here.follow([there.path])
    assert (await stayed).data == b"<stayed>"
    assert [call.data for batch in there.got for call in batch] == [b"stayed"]


@play
async def test_a_full_queue_says_come_back_later(pool, worker):
    here = pool(queue=2)
    waiting = [ask(here), ask(here)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 calls already wait for 'digits'") as caught:
        await ask(here)
    assert caught.value.retry_after == 1
    there = await worker("w")
    here.follow([there.path])
    await asyncio.gather(*waiting)
    assert (await ask(here)).data == b"<x>"


@play
async def test_calls_that_nobody_waits_for_take_no_place_in_the_queue(pool, worker):
    here = pool(queue=2)
    for _ in range(2):
        with pytest.raises(Expired):
            await ask(here, timeout=0.01)
    assert here.pending == 0
    with pytest.raises(Expired):
        await ask(here, timeout=0.01)


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
    assert [len(batch) for batch in old.got] == [1]


@play
async def test_an_idle_worker_is_let_go_at_once(pool, worker):
    here, old = pool(), await worker("old")
    here.follow([old.path])
    await until(lambda: old.open == 1)
    here.follow([])
    await until(lambda: old.open == 0)
    await until(lambda: not here.connected)


@play
async def test_a_retired_worker_that_is_lost_still_loses_no_call(pool, worker):
    here, old, new = pool(), await worker("old", die), await worker("new")
    here.follow([old.path])
    call = ask(here)
    await until(lambda: old.got)
    here.follow([new.path])
    assert (await call).data == b"<x>"


@play
async def test_a_worker_that_comes_back_is_connected_again(pool, worker):
    once = []

    async def first_time(calls):
        once.append(1)
        return None if len(once) == 1 else await echo(calls)

    here, there = pool(), await worker("w", first_time)
    here.follow([there.path])
    call = ask(here)
    await until(lambda: once)
    await until(lambda: not here._links)
    here.follow([there.path])
    assert (await call).data == b"<x>"


@play
async def test_an_undeployed_queue_is_answered(pool, worker):
    gate = Gate()
    here, there = pool(calls=1), await worker("w", gate)
    here.follow([there.path])
    held = ask(here, b"held")
    await until(lambda: there.got)
    waiting = ask(here)
    await asyncio.sleep(0)
    here.close()
    with pytest.raises(Unavailable, match="was undeployed"):
        await waiting
    gate.opened.set()
    assert (await held).data == b"<held>"
    await until(lambda: there.open == 0)


@play
async def test_nobody_at_a_socket_is_no_connection(pool, worker):
    here = pool()
    here.follow(["/nowhere/w.sock"])
    await asyncio.sleep(0)
    assert not here.connected
    await until(lambda: not here._connecting)
    assert not here.connected
    with pytest.raises(Expired):
        await ask(here, timeout=0.02)


@play
async def test_an_answer_in_pieces_is_put_together(pool, worker):
    big = bytes(3 << 20)

    async def much(calls):
        return [Answer(call.id, data=big) for call in calls]

    here, there = pool(), await worker("w", much)
    here.follow([there.path])
    answers = await asyncio.gather(*[ask(here, big[:1000]) for _ in range(3)])
    assert all(answer.data == big for answer in answers)
