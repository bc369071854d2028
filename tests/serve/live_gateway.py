"""Scenes with a gateway and workers on real sockets."""

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from modelmill.serve.gateway import Gateway
from modelmill.serve.wire import Answer, Batch
from modelmill.settings import Limits
from tests.helpers.gateways import a_snapshot
from tests.helpers.workers import FakeWorker

KEYS = {
    "mine": ("default", "admin"),
    "theirs": ("other", "user"),
    "ключ": ("default", "user"),
}


def gateway(*routes, **limits):
    """A gateway with these deployments; call it inside a running loop."""
    made = Gateway(Limits(**limits))
    made.update(a_snapshot(*routes, keys=KEYS))
    return made


def inside(scene):
    """Run a scene in a loop of its own, and let go of all workers that it made."""

    async def whole(tmp_path):
        try:
            await asyncio.wait_for(scene(tmp_path), 20)
        finally:
            while MADE:
                one = MADE.pop()
                await one.stop()
                for writer in one.writers:
                    writer.transport.abort()
            await asyncio.sleep(0.01)

    def test(tmp_path):
        asyncio.run(whole(tmp_path))

    test.__name__ = scene.__name__
    return test


MADE: list[FakeWorker] = []


async def worker(path, answering=None):
    MADE.append(await FakeWorker(path, answering or echo).start())
    return MADE[-1]


async def echo(calls):
    return Batch(
        [
            Answer(call.id, data=call.data or b"", tensors=call.tensors)
            for call in calls
        ],
        len(calls),
        0.25,
        0.5,
    )


def says(text):
    """A worker with this answer to everything."""

    async def answering(calls):
        return [Answer(call.id, data=text) for call in calls]

    return answering


def refuses(code):
    async def answering(calls):
        return [Answer(call.id, code=code, message="because") for call in calls]

    return answering


def metrics(here):
    """`{(sample, labels): value}` as an admin key is told."""
    caller = here.authorise("mine")
    families = text_string_to_metric_families(here.exposition(caller).decode())
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in families
        for one in family.samples
    }


def metric(here, name, **labels):
    labels = {"project": "default", **labels}
    return metrics(here).get((name, frozenset(labels.items())))
