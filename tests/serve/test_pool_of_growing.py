"""Workers whose answers grow: texts are spread, follow no dead worker in a crowd for ever, end with
their caller.
"""

import asyncio

import pytest

from modelmill.errors import Cancelled, ModelFailed, NotFound
from modelmill.serve.wire import ANSWER, CANCEL, Answer, Batch, Part
from modelmill.types import StreamPart
from tests.helpers.workers import until
from tests.serve.stage import ask, echo, play


class Slow:
    """Holds texts until they are taken back or it is opened; one input ends it."""

    def __init__(self, poison=b"poison"):
        self.poison = poison
        self.held = []
        self.opened = asyncio.Event()
        self.most = 0

    async def __call__(self, calls):
        (call,) = calls
        if call.outputs == [CANCEL]:
            self.held = [held for held in self.held if held != call.id]
            return [Answer(call.id, code="cancelled", message="")]
        if call.data == self.poison:
            return None
        if self.opened.is_set():
            return await echo(calls)
        self.held.append(call.id)
        self.most = max(self.most, len(self.held))
        return Batch([])


@play
async def test_texts_go_where_the_fewest_are(pool, worker):
    one, other = await worker("one", Slow()), await worker("other", Slow())
    here = pool(calls=1, rows=1)
    here.slots = 8
    here.follow([one.path, other.path])
    await until(lambda: here.connected == 2)
    for _ in range(10):
        ask(here)
    await until(lambda: len(one.got) + len(other.got) == 10)
    assert (len(one.got), len(other.got)) == (5, 5)


@play
async def test_a_text_that_ends_workers_is_blamed_alone(pool, worker):
    workers = []

    async def dies(calls):
        return None if calls[0].data == b"poison" else Batch([])

    for number in range(2):
        workers.append(await worker(f"{number}", dies))
    last = await worker("last", Slow())
    last._answering.opened.set()
    here = pool(calls=1, rows=1)
    here.slots = 8
    good = [ask(here, b"%d" % number) for number in range(4)]
    bad = ask(here, b"poison")
    for one in [*workers, last]:  # each is there when the one before has gone
        here.follow([one.path])
        await until(lambda one=one: one.got)
        if one is not last:
            await until(lambda: not here.connected)
    with pytest.raises(ModelFailed, match="ended 3 times on this input"):
        await asyncio.wait_for(bad, 5)
    here.follow([(await worker("fresh")).path])
    assert [answer.data for answer in await asyncio.gather(*good)] == [
        b"<%d>" % number for number in range(4)
    ]


@play
async def test_a_disconnect_is_noticed_while_the_answer_is_generated(
    pool, worker
):
    slow = Slow()
    here = pool(calls=1, rows=1)
    here.slots = 4
    here.follow([(await worker("w", slow)).path])
    left = []
    going, staying = ask(here, gone=lambda: bool(left)), ask(here)
    await until(lambda: len(slow.held) == 2)
    here.watch(0.0)
    assert not going.done()
    left.append(True)
    here.watch(0.0)
    with pytest.raises(Cancelled):
        await going
    await until(lambda: len(slow.held) == 1)
    assert not staying.done()
    staying.cancel()


@play
async def test_an_answer_that_has_begun_is_not_ended_by_another_version(
    pool, worker
):
    here = pool(calls=1, rows=1)
    here.slots = 4
    parts = []

    async def begins(calls):
        return Batch(
            [], parts=[Part(calls[0].id, StreamPart(1, 7, "part", 0, 3))]
        )

    old, new = await worker("old", begins), await worker("new")
    here.follow([old.path], "m:1")
    from modelmill.serve.pool import Ask

    pending = here.submit(
        b"x", [], {}, Ask(on_part=parts.append, outputs=(ANSWER,))
    )
    await until(lambda: parts)
    pending.pin = pending.version  # as the gateway does with what was told
    here.follow([new.path], "m:2")
    await until(lambda: here.connected)
    for writer in old.writers:
        writer.transport.abort()
    with pytest.raises(NotFound, match="no longer serves m:1"):
        await pending.future
    assert not new.got
