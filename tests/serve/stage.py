"""Scenes with a pool and workers on real sockets."""

import asyncio

import pytest

from modelmill.serve import link as links
from modelmill.serve.batcher import BatchLimits
from modelmill.serve.meter import Series
from modelmill.serve.pool import Ask, Pool, PoolLimits
from modelmill.serve.wire import Answer
from tests.helpers.workers import FakeWorker


async def echo(calls):
    return [Answer(call.id, data=b"<" + call.data + b">") for call in calls]


async def die(calls):
    return None


def dies_of(poison):
    """A worker that one input ends."""

    async def answering(calls):
        return (
            None
            if poison in [call.data for call in calls]
            else await echo(calls)
        )

    return answering


class Gate:
    """Answers when it is opened."""

    def __init__(self):
        self.opened = asyncio.Event()

    async def __call__(self, calls):
        await self.opened.wait()
        return await echo(calls)


def play(scene):
    """Run a scene with makers of pools and of workers, and clean up."""

    async def whole(tmp_path):
        pools, workers = [], []

        def pool(
            queue=100,
            queue_bytes=1 << 30,
            hang_seconds=30.0,
            name="digits",
            **batch,
        ):
            pools.append(
                Pool(
                    name,
                    BatchLimits(**batch),
                    PoolLimits(queue, queue_bytes, hang_seconds),
                    Series(),
                )
            )
            return pools[-1]

        async def worker(name, answering=echo):
            workers.append(await FakeWorker(tmp_path / name, answering).start())
            return workers[-1]

        try:
            await asyncio.wait_for(scene(pool, worker), 20)
        finally:
            for one in pools:
                one.close()
            for one in workers:
                await one.stop()
                for writer in one.writers:
                    writer.transport.abort()
            await asyncio.sleep(0.01)

    def test(tmp_path):
        with pytest.MonkeyPatch.context() as patch:
            # A busy machine makes any worker a slow one
            patch.setattr(links, "LONG_SECONDS", 1e9)
            asyncio.run(whole(tmp_path))

    test.__name__ = scene.__name__
    return test


def ask(pool, data=b"x", timeout=10.0, **said):
    """The future of a call."""
    return pool.submit(
        data, [], said.pop("parameters", {}), Ask(timeout=timeout, **said)
    ).future


def sent(worker):
    """What a worker got, batch by batch."""
    return [[call.data for call in batch] for batch in worker.got]


def lost(pool):
    """Whether no link is left."""
    return lambda: not pool._links and not pool._connecting
