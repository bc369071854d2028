"""The one door: who may ask, what they can see, and what is counted."""

import asyncio
import random
from collections import Counter

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelmill.errors import Cancelled, Forbidden, MillError, NotFound, Overloaded, Unauthenticated, Unavailable
from modelmill.serve.gateway import Gateway
from modelmill.serve.wire import Answer, Batch, Tensor
from modelmill.settings import Limits
from modelmill.types import KeyInfo
from tests.making import FakeWorker, a_route, a_snapshot, until

KEYS = {"mine": ("default", "admin"), "theirs": ("other", "user"), "ключ": ("default", "user")}


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
        [Answer(call.id, data=call.data or b"", tensors=call.tensors) for call in calls], len(calls), 0.25, 0.5
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
    """`{(sample, labels): value}` of the exposition."""
    families = text_string_to_metric_families(here.exposition().decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def metric(here, name, **labels):
    return metrics(here).get((name, frozenset(labels.items())))


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


def a_canary(version=2, weight=0.25, **changed):
    return a_route("digits", version=version, weight=weight, **changed)


def a_shadow(version=3, **changed):
    return a_route("digits", version=version, shadow=True, **changed)


@inside
async def test_only_the_versions_that_are_served_can_be_asked(tmp_path):
    here = gateway(a_route("digits", others=[a_canary(2), a_shadow(3)]))
    caller = here.authorise("mine")
    assert [here.route(caller, "digits", version).version for version in (None, "", "1", "2", "3")] == [1, 1, 1, 2, 3]
    assert [here.pick(caller, "digits", version).version for version in ("1", "2", "3")] == [1, 2, 3]
    with pytest.raises(NotFound, match="serves version 1 and 2 and 3, not 4"):
        here.route(caller, "digits", "4")


@pytest.mark.parametrize(
    ("others", "shares"),
    [
        ([], {1: 1.0}),
        ([a_canary(2, 0.25)], {1: 0.75, 2: 0.25}),
        ([a_canary(2, 1.0)], {2: 1.0}),
        ([a_canary(2, 0.25), a_canary(3, 0.5)], {1: 0.25, 2: 0.25, 3: 0.5}),
        ([a_shadow(2)], {1: 1.0}),
        ([a_canary(2, 0.25), a_shadow(3)], {1: 0.75, 2: 0.25}),
        ([a_canary(2, 0.5, ready=False)], {1: 1.0}),  # its share goes to the main version
        ([a_canary(2, 0.5, ready=False), a_shadow(3)], {1: 1.0}),  # and never to a shadow
        ([a_canary(2, 0.5, ready=False), a_canary(3, 0.25)], {1: 0.75, 3: 0.25}),
    ],
)
def test_the_weights_of_canaries_decide_who_answers(others, shares):
    async def scene():
        here = gateway(a_route("digits", others=others))
        caller = here.authorise("mine")
        random.seed(7)
        drawn = Counter(here.pick(caller, "digits").version for _ in range(4000))
        here.update(a_snapshot())
        return drawn

    drawn = asyncio.run(scene())
    assert drawn.keys() == shares.keys()
    for version, share in shares.items():
        assert drawn[version] / 4000 == pytest.approx(share, abs=0.03)


@inside
async def test_each_version_has_its_own_workers_and_counters(tmp_path):
    main, other = await worker(tmp_path / "1", says(b"one")), await worker(tmp_path / "2", says(b"two"))
    here = gateway(a_route("digits", sockets=[main.path], others=[a_canary(2, sockets=[other.path])]))
    caller = here.authorise("mine")
    for version, answer in (("1", b"one"), ("2", b"two"), ("2", b"two")):
        route = here.pick(caller, "digits", version)
        assert (await here.predict(caller, route, "v2_http", data=b"x")).data == answer
    for version, count in (("1", 1), ("2", 2)):
        assert here.statistics(here.route(caller, "digits", version)).success == count
        where = {"deployment": "digits", "version": f"digits:{version}", "protocol": "v2_http", "outcome": "success"}
        assert metric(here, "modelmill_requests_total", **where) == count
    assert metric(here, "modelmill_ready_workers", deployment="digits", slot="main") == 1
    assert metric(here, "modelmill_ready_workers", deployment="digits", slot="digits:2") == 1


@inside
async def test_a_promoted_canary_keeps_its_calls(tmp_path):
    opened = asyncio.Event()

    async def slow(calls):
        await opened.wait()
        return await echo(calls)

    main, other = await worker(tmp_path / "1"), await worker(tmp_path / "2", slow)
    here = gateway(a_route("digits", sockets=[main.path], others=[a_canary(2, sockets=[other.path])], batch=1))
    caller = here.authorise("mine")
    route = here.pick(caller, "digits", "2")
    calls = [asyncio.create_task(here.predict(caller, route, "x", data=b"%d" % n)) for n in range(6)]
    await until(lambda: other.got)
    here.update(a_snapshot(a_route("digits", version=2, sockets=[other.path], batch=1), keys=KEYS))
    calls.append(asyncio.create_task(here.predict(caller, route, "x", data=b"6")))  # began before, asks after
    opened.set()
    assert [answer.data for answer in await asyncio.gather(*calls)] == [b"%d" % n for n in range(7)]
    await until(lambda: main.open == 0)
    assert main.got == []


# ---- shadows


@inside
async def test_a_shadow_gets_copies_and_its_agreement_is_counted(tmp_path):
    main = await worker(tmp_path / "1", says(b'[{"label":"a","score":0.9}]'))
    same = await worker(tmp_path / "2", says(b'[{"label":"a","score":0.8}]'))
    other = await worker(tmp_path / "3", says(b'[{"label":"b","score":0.8}]'))
    others = [a_shadow(2, sockets=[same.path]), a_shadow(3, sockets=[other.path])]
    here = gateway(a_route("digits", sockets=[main.path], others=others))
    caller = here.authorise("mine")
    for _ in range(3):
        await here.predict(caller, here.pick(caller, "digits"), "v2_http", data=b"x", parameters={"top_k": 1})
    shadows = [here.route(caller, "digits", version) for version in "23"]
    await until(lambda: all(here.statistics(one).shadow_answers == 3 for one in shadows))
    assert [here.statistics(one).shadow_disagreements for one in shadows] == [0, 3]
    assert all(call.data == b"x" and call.parameters == {"top_k": 1} for batch in same.got for call in batch)
    where = {"deployment": "digits", "version": "digits:3"}
    assert metric(here, "modelmill_shadow_answers_total", **where) == 3
    assert metric(here, "modelmill_shadow_disagreements_total", **where) == 3
    assert metric(here, "modelmill_usage_total", key="", deployment="digits") == 3  # copies are nobody's use


@pytest.mark.parametrize("fault", ["silent", "refuses", "dies", "not ready", "other shape"])
def test_a_shadow_disturbs_nobody(tmp_path, fault):
    async def silent(calls):
        await asyncio.sleep(3600)

    async def dies(calls):
        return None

    async def other_shape(calls):
        return [Answer(call.id, tensors=[Tensor("y", "FP32", [1], b"\0" * 4)]) for call in calls]

    kinds = {"silent": silent, "refuses": refuses("model_failed"), "dies": dies, "other shape": other_shape}

    @inside
    async def scene(tmp_path):
        main = await worker(tmp_path / "1", says(b'"yes"'))
        shadow = await worker(tmp_path / "2", kinds.get(fault, silent))
        side = a_shadow(2, sockets=[shadow.path], ready=fault != "not ready")
        here = gateway(a_route("digits", sockets=[main.path], others=[side]), queue=2)
        caller = here.authorise("mine")
        for _ in range(20):
            assert (await here.predict(caller, here.pick(caller, "digits"), "x", data=b"x")).data == b'"yes"'
        assert here.statistics(here.route(caller, "digits")).success == 20
        if fault == "not ready":
            assert shadow.got == []
        here.update(a_snapshot(a_route("digits", sockets=[main.path]), keys=KEYS))  # its copies go to nobody
        await asyncio.sleep(0.02)
        assert len([call for batch in main.got for call in batch]) == 20
        here.update(a_snapshot())

    scene(tmp_path)


@inside
async def test_a_canary_has_no_copies(tmp_path):
    canary, shadow = await worker(tmp_path / "2"), await worker(tmp_path / "3")
    others = [a_canary(2, 1.0, sockets=[canary.path]), a_shadow(3, sockets=[shadow.path])]
    here = gateway(a_route("digits", others=others))
    caller = here.authorise("mine")
    await here.predict(caller, here.pick(caller, "digits"), "x", data=b"x")
    await asyncio.sleep(0.02)
    assert shadow.got == []


# ---- limits of keys


def a_caller(**changed):
    return KeyInfo(**({"digest": "d", "project": "default", "role": "user", "name": "shop"} | changed))


@pytest.mark.parametrize(("rate", "burst", "gateways", "at_once"), [
    (5, 0, 1, 5), (5, 2, 1, 2), (0.1, 0, 1, 1), (100, 8, 4, 2), (1, 0, 8, 1),
])  # fmt: skip
def test_a_key_has_a_rate_and_several_gateways_share_it(tmp_path, rate, burst, gateways, at_once):
    @inside
    async def scene(tmp_path):
        there = await worker(tmp_path / "w")
        here = Gateway(Limits(), gateways)
        here.update(a_snapshot(a_route("digits", sockets=[there.path])))
        caller = a_caller(rate=rate / 1e6, burst=burst or max(1, int(rate)))  # no token comes back meanwhile
        route = here.route(caller, "digits")
        for _ in range(at_once):
            await here.predict(caller, route, "x", data=b"x")
        with pytest.raises(Overloaded, match="the key 'shop' may send") as caught:
            await here.predict(caller, route, "x", data=b"x")
        assert caught.value.retry_after > 0
        await here.predict(a_caller(digest="e"), route, "x", data=b"x")  # others are not concerned

    scene(tmp_path)


@inside
async def test_a_header_that_was_seen_is_known_until_the_keys_change(tmp_path):
    here = gateway(a_route("digits"))
    caller = here.authorise("mine")
    assert here.known(b"Bearer mine") is None
    here.remember(b"Bearer mine", caller)
    same = a_snapshot(a_route("digits", version=2), keys={})
    here.update(msgspec.structs.replace(same, keys=here._snapshot.keys))  # other routes, the same keys
    assert here.known(b"Bearer mine") is caller
    here.update(a_snapshot(a_route("digits"), keys={"theirs": ("other", "user")}))
    assert here.known(b"Bearer mine") is None
    with pytest.raises(Unauthenticated):
        here.authorise("mine")


# ---- what can't be answered


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, "'spots' is loading"),
        ({"error": "its files are gone"}, "'spots' can't be served: its files are gone"),
        ({"loaded": False}, "'spots' is unloaded; load it first"),
        ({"loaded": False, "error": "x"}, "is unloaded"),
    ],
)
def test_a_deployment_without_a_model_says_why(changed, says):
    async def scene():
        here = gateway(a_route(ready=False, **changed))
        caller = here.authorise("mine")
        with pytest.raises(Unavailable, match=says) as caught:
            await here.predict(caller, here.pick(caller, "spots"), "x", data=b"x")
        assert caught.value.retry_after
        here.update(a_snapshot())

    asyncio.run(scene())


@inside
async def test_a_sleeping_deployment_is_woken_by_a_call_that_waits_for_it(tmp_path):
    woken, there = [], await worker(tmp_path / "w")
    here = gateway(a_route("digits", asleep=True))
    here.wake = lambda: woken.append(1)
    caller = here.authorise("mine")
    call = asyncio.create_task(here.predict(caller, here.pick(caller, "digits"), "x", data=b"x"))
    await until(lambda: woken)
    assert not call.done()
    here.update(a_snapshot(a_route("digits", sockets=[there.path]), keys=KEYS))
    assert (await call).data == b"x"


@inside
async def test_a_call_is_answered_and_counted(tmp_path):
    there = await worker(tmp_path / "w")
    here = gateway(a_route("digits", sockets=[there.path]))
    caller = here.authorise("mine")
    route = here.route(caller, "digits")
    assert (await here.predict(caller, route, "v2_http", data=b"abc")).data == b"abc"
    assert here.connected(route)
    where = {"deployment": "digits", "version": "digits:1"}
    assert metric(here, "modelmill_requests_total", **where, protocol="v2_http", outcome="success") == 1
    assert metric(here, "modelmill_request_seconds_count", **where) == 1
    assert metric(here, "modelmill_queue_seconds_count", **where) == 1
    assert metric(here, "modelmill_compute_seconds_sum", **where) == 0.75
    assert metric(here, "modelmill_rows_total", **where) == metric(here, "modelmill_batches_total", **where) == 1
    assert metric(here, "modelmill_batch_rows_count", **where) == 1
    assert metric(here, "modelmill_rejected_requests_total", **where) == 0
    slot = {"deployment": "digits", "slot": "main"}
    assert metric(here, "modelmill_ready_workers", **slot) == 1
    assert metric(here, "modelmill_busy_workers", **slot) == metric(here, "modelmill_pending_requests", **slot) == 0


@inside
async def test_what_the_caller_asks_for_reaches_the_worker(tmp_path):
    there = await worker(tmp_path / "w")
    here = gateway(a_route("digits", sockets=[there.path]))
    caller, sent = here.authorise("mine"), [Tensor("image", "UINT8", [1, 2], b"ab")]
    route = here.pick(caller, "digits")
    answer = await here.predict(caller, route, "x", tensors=sent, parameters={"a": 1}, outputs=["scores"])
    assert answer.tensors == sent
    ((call,),) = there.got
    assert (call.data, call.tensors, call.parameters, call.outputs) == (None, sent, {"a": 1}, ["scores"])


@inside
async def test_what_the_worker_says_is_raised_and_counted(tmp_path):
    there = await worker(tmp_path / "w", refuses("model_failed"))
    here = gateway(a_route("digits", sockets=[there.path]))
    caller = here.authorise("mine")
    with pytest.raises(MillError, match="because") as caught:
        await here.predict(caller, here.pick(caller, "digits"), "v2_http", data=b"x")
    assert caught.value.code == "model_failed"
    where = {"deployment": "digits", "version": "digits:1", "protocol": "v2_http", "outcome": "failure"}
    assert metric(here, "modelmill_requests_total", **where) == 1
    assert metric(here, "modelmill_usage_total", key="", deployment="digits") is None


@inside
async def test_a_refused_call_is_counted_as_such(tmp_path):
    here = gateway(a_route("digits"), queue=1)
    caller = here.authorise("mine")
    route = here.pick(caller, "digits")
    waiting = asyncio.create_task(here.predict(caller, route, "huggingface", data=b"x", timeout=0.05))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await here.predict(caller, route, "huggingface", data=b"x")
    with pytest.raises(MillError):
        await waiting
    where = {"deployment": "digits", "version": "digits:1"}
    assert metric(here, "modelmill_requests_total", **where, protocol="huggingface", outcome="failure") == 2
    assert metric(here, "modelmill_rejected_requests_total", **where) == 1


@inside
async def test_a_call_whose_client_has_gone_is_dropped(tmp_path):
    here, left = gateway(a_route("digits")), []
    caller = here.authorise("mine")
    route = here.pick(caller, "digits")
    polite = asyncio.create_task(here.predict(caller, route, "x", data=b"1"))
    rude = asyncio.create_task(here.predict(caller, route, "x", data=b"2", gone=lambda: bool(left)))
    await asyncio.sleep(0)
    polite.cancel()
    left.append(1)
    there = await worker(tmp_path / "w")
    here.update(a_snapshot(a_route("digits", sockets=[there.path]), keys=KEYS))
    with pytest.raises(Cancelled):
        await rude
    with pytest.raises(asyncio.CancelledError):
        await polite
    assert there.got == []


@inside
async def test_what_is_undeployed_is_no_longer_counted(tmp_path):
    there = await worker(tmp_path / "w")
    here = gateway(a_route("digits", sockets=[there.path]), a_route("reviews", sockets=[there.path]))
    caller = here.authorise("mine")
    for name in ("digits", "reviews"):
        await here.predict(caller, here.pick(caller, name), "x", data=b"x")
    here.update(a_snapshot(a_route("reviews", sockets=[there.path]), keys=KEYS))
    assert {dict(labels)["deployment"] for _, labels in metrics(here)} == {"reviews"}


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

    old, new = await worker(tmp_path / "old", slow), await worker(tmp_path / "new")
    here = gateway(a_route("digits", sockets=[old.path]))
    caller = here.authorise("mine")
    held = asyncio.create_task(here.predict(caller, here.route(caller, "digits"), "x", data=b"held"))
    await until(lambda: old.got)
    here.update(a_snapshot(a_route("digits", version=2, sockets=[new.path]), keys=KEYS))
    later = await here.predict(caller, here.route(caller, "digits", "2"), "x", data=b"later")
    opened.set()
    assert ((await held).data, later.data) == (b"held", b"later")
    await until(lambda: old.open == 0)


@inside
async def test_a_call_that_began_before_its_deployment_went_is_answered_in_words(tmp_path):
    here = gateway(a_route("digits"))
    caller = here.authorise("mine")
    route = here.route(caller, "digits")
    here.update(a_snapshot(keys=KEYS))
    with pytest.raises(NotFound, match="'digits' was undeployed"):
        await here.predict(caller, route, "x", data=b"x", timeout=5)


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
    assert asked[0] is None
    assert asked[1].revision == (1, 1)
    assert here.route(here.authorise("mine"), "digits").ready
    assert here.ready
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


@inside
async def test_readiness_says_no_when_draining_or_the_disk_is_full(tmp_path):
    assert (Gateway(Limits()).ready, Gateway(Limits()).unready) == (False, "starting")
    here = gateway()
    assert (here.ready, here.unready) == (True, "")
    here.healthy = False
    assert (here.ready, here.unready) == (False, "the disk is full")
    here.healthy, here.draining = True, True
    assert (here.ready, here.unready) == (False, "draining")


def test_a_snapshot_survives_the_way_to_another_process():
    snapshot = a_snapshot(a_route("digits"), keys=KEYS)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=type(snapshot)) == snapshot
    assert "mine" not in snapshot.keys  # only their hashes
