"""The one door: who may ask, what they can see, and what is counted."""

import asyncio

import msgspec
import pytest

from modelmill.errors import Forbidden, MillError, NotFound, Unauthenticated, Unavailable
from modelmill.serve.gateway import Gateway
from modelmill.serve.wire import Answer
from modelmill.settings import Limits
from tests.making import FakeWorker, a_route, a_snapshot, until

KEYS = {"mine": ("default", "admin"), "theirs": ("other", "user"), "ключ": ("default", "user")}


def gateway(*routes, **limits):
    """A gateway with these deployments; call it inside a running loop."""
    made = Gateway(Limits(**limits))
    made.update(a_snapshot(*routes, keys=KEYS))
    return made


def inside(scene):
    """Run a scene in a loop of its own."""

    def test(tmp_path):
        asyncio.run(asyncio.wait_for(scene(tmp_path), 20))

    test.__name__ = scene.__name__
    return test


async def echo(calls):
    return [Answer(call.id, data=call.data or b"", compute_seconds=0.5) for call in calls]


@inside
async def test_a_key_says_who_is_calling(tmp_path):
    here = gateway()
    assert here.authorise("mine").project == "default"
    assert here.authorise("theirs").role == "user"
    assert here.authorise("ключ").role == "user"


@pytest.mark.parametrize("key", [None, "", "Mine", "mine ", "\udcff", "x" * 10_000])
def test_any_other_key_is_refused(key):
    with pytest.raises(Unauthenticated):
        asyncio.run(_made(key))


async def _made(key):
    gateway().authorise(key)


def test_before_the_first_snapshot_nobody_is_refused_for_good():
    here = Gateway(Limits())
    assert not here.ready
    with pytest.raises(Unavailable) as caught:
        here.authorise("mine")
    assert caught.value.retry_after


@inside
async def test_only_an_admin_administers(tmp_path):
    here = gateway()
    here.require_admin(here.authorise("mine"))
    with pytest.raises(Forbidden):
        here.require_admin(here.authorise("theirs"))


@inside
async def test_a_deployment_of_another_project_does_not_exist(tmp_path):
    here = gateway(a_route("digits"), a_route("secret", project="other"), a_route("digits", project="other", version=9))
    mine, theirs = here.authorise("mine"), here.authorise("theirs")
    assert here.routes(mine).keys() == {"digits"}
    assert (here.route(mine, "digits").version, here.route(theirs, "digits").version) == (1, 9)
    with pytest.raises(NotFound) as caught:
        here.route(mine, "secret")
    assert "there are: digits" in caught.value.message
    assert here.route(theirs, "secret").deployment == "secret"


@inside
async def test_an_unknown_model_suggests_the_near_one(tmp_path):
    here = gateway(a_route("digits"), a_route("reviews"))
    with pytest.raises(NotFound, match="unknown model 'digit'; did you mean 'digits'"):
        here.route(here.authorise("mine"), "digit")


@inside
async def test_only_the_version_that_is_served_can_be_asked(tmp_path):
    here = gateway(a_route("digits", version=3))
    assert here.route(here.authorise("mine"), "digits", "3").version == 3
    with pytest.raises(NotFound, match="serves version 3, not 2"):
        here.route(here.authorise("mine"), "digits", "2")


@pytest.mark.parametrize(
    ("changed", "says"), [({}, "is loading"), ({"error": "its files are gone"}, "can't be served: its files are gone")]
)
def test_a_deployment_without_a_model_says_why(changed, says):
    with pytest.raises(Unavailable, match=says) as caught:
        Gateway(Limits()).refuse_unservable(a_route(ready=False, **changed))
    assert caught.value.retry_after


@inside
async def test_a_call_is_answered_and_counted(tmp_path):
    there = await FakeWorker(tmp_path / "w", echo).start()
    here = gateway(a_route("digits", sockets=[there.path]))
    caller = here.authorise("mine")
    route = here.route(caller, "digits")
    assert (await here.predict(caller, route, "v2_http", data=b"abc")).data == b"abc"
    assert here.connected(route)
    text = here.exposition().decode()
    assert 'modelmill_requests_total{deployment="digits",outcome="success",protocol="v2_http"} 1.0' in text
    assert 'modelmill_ready_workers{deployment="digits"} 1.0' in text
    assert 'modelmill_compute_seconds_sum{deployment="digits"} 0.5' in text
    await there.stop()


@inside
async def test_a_refused_call_is_counted_as_such(tmp_path):
    here = gateway(a_route("digits"))
    caller = here.authorise("mine")
    with pytest.raises(MillError):
        await here.predict(caller, here.route(caller, "digits"), "huggingface", data=b"x", timeout=0.01)
    assert 'outcome="failure",protocol="huggingface"} 1.0' in here.exposition().decode()


@inside
async def test_nobody_may_wait_longer_than_the_limit(tmp_path):
    here = gateway(a_route("digits"), timeout_seconds=0.02)
    caller = here.authorise("mine")
    with pytest.raises(MillError, match="time allowed"):
        await asyncio.wait_for(here.predict(caller, here.route(caller, "digits"), "x", data=b"x", timeout=100), 5)


@inside
async def test_an_update_leaves_calls_undisturbed(tmp_path):
    opened = asyncio.Event()

    async def slow(calls):
        await opened.wait()
        return await echo(calls)

    old, new = await FakeWorker(tmp_path / "old", slow).start(), await FakeWorker(tmp_path / "new", echo).start()
    here = gateway(a_route("digits", sockets=[old.path]))
    caller = here.authorise("mine")
    held = asyncio.create_task(here.predict(caller, here.route(caller, "digits"), "x", data=b"held"))
    await until(lambda: old.got)
    here.update(a_snapshot(a_route("digits", version=2, sockets=[new.path]), keys=KEYS))
    later = await here.predict(caller, here.route(caller, "digits", "2"), "x", data=b"later")
    opened.set()
    assert ((await held).data, later.data) == (b"held", b"later")
    await until(lambda: old.open == 0)
    await old.stop()
    await new.stop()


@inside
async def test_a_call_that_began_before_its_deployment_went_is_answered_in_words(tmp_path):
    here = gateway(a_route("digits"))
    caller = here.authorise("mine")
    route = here.route(caller, "digits")
    here.update(a_snapshot(keys=KEYS))
    with pytest.raises(MillError):
        await here.predict(caller, route, "x", data=b"x", timeout=0.05)


@inside
async def test_a_stuck_database_leaves_the_last_snapshot_in_force(tmp_path):
    snapshots = [a_snapshot(a_route("digits"), keys=KEYS)]
    asked = []

    def load(revision):
        asked.append(revision)
        if snapshots:
            return snapshots.pop()
        raise MillError("the database failed")

    here = Gateway(Limits())
    following = asyncio.create_task(here.follow(load, lambda: True))
    await until(lambda: len(asked) >= 3)
    assert asked[:2] == [-1, 1]
    assert here.route(here.authorise("mine"), "digits").ready
    assert here.ready
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


@inside
async def test_readiness_says_no_when_draining_or_the_disk_is_full(tmp_path):
    here = gateway()
    assert here.ready
    here.healthy = False
    assert not here.ready
    here.healthy, here.draining = True, True
    assert not here.ready


def test_a_snapshot_survives_the_way_to_another_process():
    snapshot = a_snapshot(a_route("digits"), keys=KEYS)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=type(snapshot)) == snapshot
    assert "mine" not in snapshot.keys  # only their hashes
