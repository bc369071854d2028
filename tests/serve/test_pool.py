"""One queue for all workers of a deployment: every call is answered once, whatever becomes of the
workers.
"""

import asyncio
import logging
import time

import pytest

from modelmill.errors import Expired, ModelFailed
from modelmill.serve import link as links
from modelmill.serve.batcher import BatchLimits
from modelmill.serve.meter import Series
from modelmill.serve.pool import Pool, PoolLimits
from modelmill.serve.wire import HEAD, Answer, Batch, frame, read_calls
from tests.helpers.workers import until
from tests.serve.stage import Gate, ask, die, dies_of, echo, lost, play, sent

# ---- batches


@play
async def test_calls_of_one_turn_go_as_one_batch_and_answers_are_matched_by_id(
    pool, worker
):
    async def backwards(calls):
        return (await echo(calls))[::-1]

    here, there = pool(), await worker("w", backwards)
    here.follow([there.path])
    await until(lambda: here.connected)
    answers = await asyncio.gather(*[ask(here, b"%d" % n) for n in range(20)])
    assert [answer.data for answer in answers] == [
        b"<%d>" % n for n in range(20)
    ]
    assert len(there.got) == 1
    assert here.pending == 0


@play
async def test_a_worker_gets_a_second_batch_while_it_runs_the_first_and_no_third(
    pool, worker
):
    gate = Gate()
    there, here = await worker("w", gate), pool(calls=1)
    here.follow([there.path])
    calls = [ask(here, b"%d" % n) for n in range(4)]
    await until(lambda: there.got)
    assert (here.waiting, here.pending, here.busy) == (2, 4, 1)
    gate.opened.set()
    await asyncio.gather(*calls)
    assert sent(there) == [[b"0"], [b"1"], [b"2"], [b"3"]]
    assert (here.waiting, here.pending, here.busy) == (0, 0, 0)


@play
async def test_an_idle_worker_gets_the_batch_before_a_busy_one(pool, worker):
    gate = Gate()
    slow, fast = await worker("slow", gate), await worker("fast", gate)
    here = pool(calls=1)
    here.follow([slow.path, fast.path])
    await until(lambda: here.connected == 2)
    calls = [ask(here), ask(here)]
    await until(lambda: slow.got and fast.got)
    assert here.busy == 2
    gate.opened.set()
    await asyncio.gather(*calls)


@play
async def test_a_worker_whose_batches_take_long_gets_one_at_a_time(
    pool, worker
):
    gate = Gate()
    there, here = await worker("w", gate), pool(calls=1)
    here.follow([there.path])
    links.LONG_SECONDS = 0.0
    first = ask(here)
    gate.opened.set()
    await first
    gate.opened.clear()
    calls = [ask(here, b"%d" % n) for n in range(3)]
    await until(lambda: len(there.got) == 2)
    assert here.waiting == 2
    gate.opened.set()
    await asyncio.gather(*calls)


@play
async def test_a_batch_may_wait_for_more_calls(pool, worker):
    there, here = await worker("w"), pool(max_wait=10.0, calls=3)
    here.follow([there.path])
    await until(lambda: here.connected)
    calls = [ask(here, b"1")]
    await asyncio.sleep(0.01)
    assert not there.got
    calls += [ask(here, b"2"), ask(here, b"3")]
    await asyncio.gather(*calls)
    assert sent(there) == [[b"1", b"2", b"3"]]


@play
async def test_a_batch_that_does_not_fill_goes_when_its_time_has_come(
    pool, worker
):
    there, here = await worker("w"), pool(max_wait=0.02)
    here.follow([there.path])
    await until(lambda: here.connected)
    assert (await ask(here, b"1")).data == b"<1>"


@play
async def test_priorities_and_turns_hold_in_the_queue(pool, worker):
    here = pool(calls=1)
    calls = [ask(here, b"a%d" % n, key="a") for n in range(3)]
    calls += [
        ask(here, b"b", key="b"),
        ask(here, b"late", key="c", priority=9),
        ask(here, b"first", priority=-1),
    ]
    there = await worker("w")
    here.follow([there.path])
    await asyncio.gather(*calls)
    assert [data for (data,) in sent(there)] == [
        b"first",
        b"a0",
        b"b",
        b"a1",
        b"a2",
        b"late",
    ]


@play
async def test_what_batches_cost_is_counted(pool, worker):
    async def costly(calls):
        return Batch(await echo(calls), 7, 0.5, 0.25, 0.125)

    here, there = pool(), await worker("w", costly)
    here.follow([there.path])
    await asyncio.gather(ask(here), ask(here))
    counted = here.series
    assert (
        counted.batches,
        counted.rows,
        counted.queue.count,
        counted.compute.count,
    ) == (1, 7, 2, 2)
    assert (
        counted.decode_seconds,
        counted.run_seconds,
        counted.encode_seconds,
    ) == (
        0.5,
        0.25,
        0.125,
    )


@play
async def test_an_answer_in_pieces_is_put_together(pool, worker):
    big = bytes(3 << 20)

    async def much(calls):
        return [Answer(call.id, data=big) for call in calls]

    here, there = pool(), await worker("w", much)
    here.follow([there.path])
    answers = await asyncio.gather(*[ask(here, big[:1000]) for _ in range(3)])
    assert all(answer.data == big for answer in answers)


@pytest.mark.parametrize(
    "cuts", [[1], [HEAD], [HEAD - 1, HEAD + 1], [20], [-1], []]
)
def test_frames_may_be_cut_and_joined_anywhere(tmp_path, cuts):
    """Two answers come in pieces that are no frames."""

    async def serve(reader, writer):
        calls = []
        for _ in range(2):
            size = int.from_bytes(await reader.readexactly(HEAD), "little")
            calls.append(read_calls(await reader.readexactly(size)))
        data = b"".join(
            [bytes(frame(Batch(await echo(batch)))) for batch in calls]
        )
        for start, end in zip([0, *cuts], [*cuts, None], strict=True):
            writer.write(data[start:end])
            await writer.drain()
            await asyncio.sleep(0.005)
        await reader.read()
        writer.close()

    async def scene():
        server = await asyncio.start_unix_server(serve, str(tmp_path / "w"))
        here = Pool("digits", BatchLimits(1), PoolLimits(), Series())
        here.follow([str(tmp_path / "w")])
        answers = await asyncio.wait_for(
            asyncio.gather(ask(here, b"1"), ask(here, b"2")), 10
        )
        assert [answer.data for answer in answers] == [b"<1>", b"<2>"]
        here.close()
        server.close()
        await asyncio.sleep(0.02)

    asyncio.run(scene())


# ---- lost workers


@play
async def test_the_calls_of_a_lost_worker_go_to_another(pool, worker):
    here, dying = pool(), await worker("dying", die)
    here.follow([dying.path])
    calls = [ask(here, b"%d" % n) for n in range(5)]
    await until(lambda: dying.got)
    other = await worker("other")
    here.follow([other.path])
    answers = await asyncio.gather(*calls)
    assert [answer.data for answer in answers] == [
        b"<%d>" % n for n in range(5)
    ]
    assert sent(other) == [
        [b"%d" % n] for n in range(5)
    ]  # each alone: one of them may be what ends workers


@play
async def test_the_call_that_ends_workers_is_blamed_and_its_batch_mates_are_answered(
    pool, worker
):
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("modelmill.gateway").addHandler(handler)
    here = pool()
    workers = [await worker(f"{n}", dies_of(b"poison")) for n in range(2)]
    here.follow([one.path for one in workers])
    good = [ask(here, b"%d" % n) for n in range(3)]
    bad = ask(here, b"poison", key="shop", request_id="order-17")
    good += [ask(here, b"%d" % n) for n in range(3, 6)]

    async def keep_connected():
        while True:
            here.follow([one.path for one in workers])
            await asyncio.sleep(0.005)

    keeping = asyncio.create_task(keep_connected())
    with pytest.raises(ModelFailed, match="ended twice on this input"):
        await bad
    assert [answer.data for answer in await asyncio.gather(*good)] == [
        b"<%d>" % n for n in range(6)
    ]
    assert (await ask(here, b"later")).data == b"<later>"
    keeping.cancel()
    (line,) = [line for line in records if "order-17" in line]
    assert "shop" in line
    assert "2 workers of digits" in line
    logging.getLogger("modelmill.gateway").removeHandler(handler)
    assert here.pending == 0


@play
async def test_a_suspect_waits_for_an_idle_worker_and_does_not_stop_the_queue_for_ever(
    pool, worker
):
    gate = Gate()
    here, dying, busy = (
        pool(calls=1),
        await worker("dying", die),
        await worker("busy", gate),
    )
    here.follow([dying.path])
    suspect = ask(here, b"suspect")
    await until(lambda: dying.got)
    await until(lost(here))
    others = [ask(here, b"%d" % n) for n in range(4)]
    here.follow([busy.path])
    await until(lambda: busy.got)
    assert sent(busy) == [[b"suspect"]]
    assert here.waiting == 4  # nothing goes ahead behind a suspect
    gate.opened.set()
    await asyncio.gather(suspect, *others)
    assert len(busy.got) == 5


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [Answer(10**9, data=b"whose?")],
        "fewer",
    ],
)
def test_a_worker_that_does_not_answer_what_it_was_given_is_a_lost_worker(
    tmp_path, answers
):
    @play
    async def scene(pool, worker):
        async def wrong(calls):
            return (await echo(calls))[:1] if answers == "fewer" else answers

        here, bad = pool(), await worker("bad", wrong)
        here.follow([bad.path])
        calls = [ask(here, b"1"), ask(here, b"2")]
        await until(lambda: bad.got)
        await until(lost(here))
        good = await worker("good")
        here.follow([good.path])
        assert [answer.data for answer in await asyncio.gather(*calls)] == [
            b"<1>",
            b"<2>",
        ]

    scene(tmp_path)


@play
async def test_a_worker_that_speaks_nonsense_is_a_lost_worker(pool, worker):
    async def garbage(calls):
        return Batch([{"not": "an answer"}])

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    here, bad = pool(), await worker("bad", garbage)
    here.follow([bad.path])
    call = ask(here)
    await until(lambda: bad.got)
    await until(lost(here))
    good = await worker("good")
    here.follow([good.path])
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
    await until(lost(here))
    here.follow([there.path])
    assert (await call).data == b"<x>"


@play
async def test_nobody_at_a_socket_is_no_connection(pool, worker):
    here = pool()
    here.follow(["/nowhere/w.sock"])
    await until(lost(here))
    assert not here.connected
    with pytest.raises(Expired):
        await ask(here, timeout=0.02)


@play
async def test_a_worker_that_hangs_is_reported(pool, worker):
    told = []
    here, there = pool(hang_seconds=30), await worker("w", Gate())
    here.on_hang = told.append
    here.follow([there.path])
    call = ask(here)
    await until(lambda: there.got)
    now = time.monotonic()
    here.watch(now + 20)
    assert told == []
    here.watch(now + 31)
    here.watch(now + 32)  # told again: the news may be lost
    assert told == [there.path] * 2
    call.cancel()


@play
async def test_a_batch_that_hangs_is_noticed_although_others_pass_it(
    pool, worker
):
    """A worker decodes one batch while it runs another, so one can be stuck and the other come
    back.
    """

    async def serve(reader, writer):
        while head := await reader.read(HEAD):
            calls = read_calls(
                await reader.readexactly(int.from_bytes(head, "little"))
            )
            if calls[0].data != b"stuck":
                writer.write(frame(Batch(await echo(calls))))
        writer.close()

    told = []
    there = await worker("unused")
    server = await asyncio.start_unix_server(serve, there.path + "2")
    here = pool(hang_seconds=0.05, calls=1)
    here.on_hang = told.append
    here.follow([there.path + "2"])
    stuck = ask(here, b"stuck")
    while not told:
        assert (await ask(here, b"fine")).data == b"<fine>"
        here.watch(time.monotonic())
    stuck.cancel()
    here.close()
    for one in list(here._links.values()):
        one.abort()
    server.close()
