"""The one api: who may ask, what they can see, and what is counted."""

import asyncio

import msgspec
import pytest

from modelmill.errors import (
    Cancelled,
    Forbidden,
    MillError,
    NotFound,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from modelmill.serve.gateway import Gateway
from modelmill.serve.wire import Tensor
from modelmill.settings import Limits
from modelmill.types import KeyInfo
from tests.helpers.gateways import a_route, a_snapshot
from tests.helpers.workers import until
from tests.serve.live_gateway import (
    KEYS,
    echo,
    gateway,
    inside,
    metric,
    metrics,
    refuses,
    worker,
)


@inside
async def test_a_key_says_who_is_calling(tmp_path):
    here = gateway()
    assert here.authorise("mine").project == "default"
    assert here.authorise("theirs").role == "user"
    assert here.authorise("ключ").role == "user"


@pytest.mark.parametrize(
    "key", [None, "", "Mine", "mine ", "\udcff", "x" * 10_000]
)
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
    here = gateway(
        a_route("digits"),
        a_route("secret", project="other"),
        a_route("digits", project="other", version=9),
    )
    mine, theirs = here.authorise("mine"), here.authorise("theirs")
    assert here.routes(mine).keys() == {"digits"}
    assert (
        here.route(mine, "digits").version,
        here.route(theirs, "digits").version,
    ) == (1, 9)
    with pytest.raises(NotFound) as caught:
        here.route(mine, "secret")
    assert "there are: digits" in caught.value.message
    assert here.route(theirs, "secret").deployment == "secret"


@inside
async def test_an_unknown_model_suggests_the_near_one(tmp_path):
    here = gateway(a_route("digits"), a_route("reviews"))
    with pytest.raises(
        NotFound, match="unknown model 'digit'; did you mean 'digits'"
    ):
        here.route(here.authorise("mine"), "digit")


# ---- limits of keys


def a_caller(**changed):
    return KeyInfo(
        **(
            {
                "digest": "d",
                "project": "default",
                "role": "user",
                "name": "shop",
            }
            | changed
        )
    )


@pytest.mark.parametrize(
    ("rate", "burst", "gateways", "at_once"),
    [
        (5, 0, 1, 5),
        (5, 2, 1, 2),
        (0.1, 0, 1, 1),
        (100, 8, 4, 2),
        (1, 0, 8, 1),
    ],
)
def test_a_key_has_a_rate_and_several_gateways_share_it(
    tmp_path, rate, burst, gateways, at_once
):
    @inside
    async def scene(tmp_path):
        there = await worker(tmp_path / "w")
        here = Gateway(Limits(), gateways)
        here.update(a_snapshot(a_route("digits", sockets=[there.path])))
        # No token comes back meanwhile
        caller = a_caller(rate=rate / 1e6, burst=burst or max(1, int(rate)))
        route = here.route(caller, "digits")
        for _ in range(at_once):
            await here.predict(caller, route, "x", data=b"x")
        with pytest.raises(
            Overloaded, match="the key 'shop' may send"
        ) as caught:
            await here.predict(caller, route, "x", data=b"x")
        assert caught.value.retry_after > 0
        await here.predict(
            a_caller(digest="e"), route, "x", data=b"x"
        )  # others are not concerned

    scene(tmp_path)


@inside
async def test_a_cached_header_is_valid_until_the_keys_change(tmp_path):
    here = gateway(a_route("digits"))
    caller = here.authorise("mine")
    assert here.known(b"Bearer mine") is None
    here.remember(b"Bearer mine", caller)
    same = a_snapshot(a_route("digits", version=2), keys={})
    # Other routes, the same keys
    here.update(msgspec.structs.replace(same, keys=here._snapshot.keys))
    assert here.known(b"Bearer mine") is caller
    here.update(
        a_snapshot(a_route("digits"), keys={"theirs": ("other", "user")})
    )
    assert here.known(b"Bearer mine") is None
    with pytest.raises(Unauthenticated):
        here.authorise("mine")


# ---- what can't be answered


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, "'spots' is loading"),
        (
            {"error": "its files are gone"},
            "'spots' can't be served: its files are gone",
        ),
        ({"loaded": False}, "'spots' is unloaded; load it first"),
        ({"loaded": False, "error": "x"}, "is unloaded"),
    ],
)
def test_a_deployment_without_a_model_says_why(changed, says):
    async def scene():
        here = gateway(a_route(ready=False, **changed))
        caller = here.authorise("mine")
        with pytest.raises(Unavailable, match=says) as caught:
            await here.predict(
                caller, here.pick(caller, "spots"), "x", data=b"x"
            )
        assert caught.value.retry_after
        here.update(a_snapshot())

    asyncio.run(scene())


@inside
async def test_a_sleeping_deployment_is_woken_by_a_call_that_waits_for_it(
    tmp_path,
):
    there = await worker(tmp_path / "w")
    here = gateway(a_route("digits", asleep=True))
    caller = here.authorise("mine")
    call = asyncio.create_task(
        here.predict(caller, here.pick(caller, "digits"), "x", data=b"x")
    )
    await until(here.urgent.is_set)
    assert not call.done()
    here.update(a_snapshot(a_route("digits", sockets=[there.path]), keys=KEYS))
    assert (await call).data == b"x"


@inside
async def test_a_call_is_answered_and_counted(tmp_path):
    there = await worker(tmp_path / "w")
    here = gateway(a_route("digits", sockets=[there.path]))
    caller = here.authorise("mine")
    route = here.route(caller, "digits")
    assert (
        await here.predict(caller, route, "v2_http", data=b"abc")
    ).data == b"abc"
    assert here.connected(route)
    where = {"deployment": "digits", "version": "digits:1"}
    assert (
        metric(
            here,
            "modelmill_requests_total",
            **where,
            protocol="v2_http",
            outcome="success",
        )
        == 1
    )
    assert metric(here, "modelmill_request_seconds_count", **where) == 1
    assert metric(here, "modelmill_queue_seconds_count", **where) == 1
    assert metric(here, "modelmill_compute_seconds_sum", **where) == 0.75
    assert (
        metric(here, "modelmill_rows_total", **where)
        == metric(here, "modelmill_batches_total", **where)
        == 1
    )
    assert metric(here, "modelmill_batch_rows_count", **where) == 1
    assert metric(here, "modelmill_rejected_requests_total", **where) == 0
    slot = {"deployment": "digits", "slot": "main"}
    assert metric(here, "modelmill_ready_workers", **slot) == 1
    assert (
        metric(here, "modelmill_busy_workers", **slot)
        == metric(here, "modelmill_pending_requests", **slot)
        == 0
    )


@inside
async def test_parameters_of_the_caller_reach_the_worker(tmp_path):
    there = await worker(tmp_path / "w")
    here = gateway(a_route("digits", sockets=[there.path]))
    caller, sent = (
        here.authorise("mine"),
        [Tensor("image", "UINT8", [1, 2], b"ab")],
    )
    route = here.pick(caller, "digits")
    answer = await here.predict(
        caller,
        route,
        "x",
        tensors=sent,
        parameters={"a": 1},
        outputs=["scores"],
    )
    assert answer.tensors == sent
    ((call,),) = there.got
    assert (call.data, call.tensors, call.parameters, call.outputs) == (
        None,
        sent,
        {"a": 1},
        ["scores"],
    )


@inside
async def test_what_the_worker_says_is_raised_and_counted(tmp_path):
    there = await worker(tmp_path / "w", refuses("model_failed"))
    here = gateway(a_route("digits", sockets=[there.path]))
    caller = here.authorise("mine")
    with pytest.raises(MillError, match="because") as caught:
        await here.predict(
            caller, here.pick(caller, "digits"), "v2_http", data=b"x"
        )
    assert caught.value.code == "model_failed"
    where = {
        "deployment": "digits",
        "version": "digits:1",
        "protocol": "v2_http",
        "outcome": "failure",
    }
    assert metric(here, "modelmill_requests_total", **where) == 1
    assert (
        metric(here, "modelmill_usage_total", key="", deployment="digits")
        is None
    )


@inside
async def test_a_refused_call_is_counted_as_such(tmp_path):
    here = gateway(a_route("digits"), queue=1)
    caller = here.authorise("mine")
    route = here.pick(caller, "digits")
    waiting = asyncio.create_task(
        here.predict(caller, route, "huggingface", data=b"x", timeout=0.05)
    )
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await here.predict(caller, route, "huggingface", data=b"x")
    with pytest.raises(MillError):
        await waiting
    where = {"deployment": "digits", "version": "digits:1"}
    assert (
        metric(
            here,
            "modelmill_requests_total",
            **where,
            protocol="huggingface",
            outcome="failure",
        )
        == 2
    )
    assert metric(here, "modelmill_rejected_requests_total", **where) == 1


@inside
async def test_a_call_whose_client_has_gone_is_dropped(tmp_path):
    here, left = gateway(a_route("digits")), []
    caller = here.authorise("mine")
    route = here.pick(caller, "digits")
    polite = asyncio.create_task(here.predict(caller, route, "x", data=b"1"))
    rude = asyncio.create_task(
        here.predict(caller, route, "x", data=b"2", gone=lambda: bool(left))
    )
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
    here = gateway(
        a_route("digits", sockets=[there.path]),
        a_route("reviews", sockets=[there.path]),
    )
    caller = here.authorise("mine")
    for name in ("digits", "reviews"):
        await here.predict(caller, here.pick(caller, name), "x", data=b"x")
    here.update(a_snapshot(a_route("reviews", sockets=[there.path]), keys=KEYS))
    assert {dict(labels)["deployment"] for _, labels in metrics(here)} == {
        "reviews"
    }


@inside
async def test_nobody_may_wait_longer_than_the_limit(tmp_path):
    here = gateway(a_route("digits"), timeout_seconds=0.02)
    caller = here.authorise("mine")
    with pytest.raises(MillError, match="time allowed"):
        await asyncio.wait_for(
            here.predict(
                caller,
                here.route(caller, "digits"),
                "x",
                data=b"x",
                timeout=100,
            ),
            5,
        )


@inside
async def test_an_update_leaves_calls_undisturbed(tmp_path):
    opened = asyncio.Event()

    async def slow(calls):
        await opened.wait()
        return await echo(calls)

    old, new = (
        await worker(tmp_path / "old", slow),
        await worker(tmp_path / "new"),
    )
    here = gateway(a_route("digits", sockets=[old.path]))
    caller = here.authorise("mine")
    held = asyncio.create_task(
        here.predict(caller, here.route(caller, "digits"), "x", data=b"held")
    )
    await until(lambda: old.got)
    here.update(
        a_snapshot(a_route("digits", version=2, sockets=[new.path]), keys=KEYS)
    )
    later = await here.predict(
        caller, here.route(caller, "digits", "2"), "x", data=b"later"
    )
    opened.set()
    assert ((await held).data, later.data) == (b"held", b"later")
    await until(lambda: old.open == 0)


@inside
async def test_a_call_that_began_before_its_deployment_went_is_answered_in_words(
    tmp_path,
):
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
    assert (Gateway(Limits()).ready, Gateway(Limits()).unready) == (
        False,
        "starting",
    )
    here = gateway()
    assert (here.ready, here.unready) == (True, "")
    here.healthy = False
    assert (here.ready, here.unready) == (False, "the disk is full")
    here.healthy, here.draining = True, True
    assert (here.ready, here.unready) == (False, "draining")


def test_a_snapshot_survives_the_way_to_another_process():
    snapshot = a_snapshot(a_route("digits"), keys=KEYS)
    assert (
        msgspec.msgpack.decode(
            msgspec.msgpack.encode(snapshot), type=type(snapshot)
        )
        == snapshot
    )
    assert "mine" not in snapshot.keys  # only their hashes
