"""Several versions behind one name: pinned ones, canaries by their weight, and shadows that disturb
nobody.
"""

import asyncio
import random
from collections import Counter

import pytest

from modelmill.errors import NotFound
from modelmill.serve.wire import Answer, Tensor
from tests.helpers.gateways import a_route, a_snapshot
from tests.helpers.workers import until
from tests.serve.live_gateway import (
    KEYS,
    echo,
    gateway,
    inside,
    metric,
    refuses,
    says,
    worker,
)


def a_canary(version=2, weight=0.25, **changed):
    return a_route("digits", version=version, weight=weight, **changed)


def a_shadow(version=3, **changed):
    return a_route("digits", version=version, shadow=True, **changed)


@inside
async def test_only_the_versions_that_are_served_can_be_called(tmp_path):
    here = gateway(a_route("digits", others=[a_canary(2), a_shadow(3)]))
    caller = here.authorise("mine")
    assert [
        here.route(caller, "digits", version).version
        for version in (None, "", "1", "2", "3")
    ] == [1, 1, 1, 2, 3]
    assert [
        here.pick(caller, "digits", version).version
        for version in ("1", "2", "3")
    ] == [1, 2, 3]
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
        (
            [a_canary(2, 0.5, ready=False)],
            {1: 1.0},
        ),  # its share goes to the main version
        (
            [a_canary(2, 0.5, ready=False), a_shadow(3)],
            {1: 1.0},
        ),  # and never to a shadow
        (
            [a_canary(2, 0.5, ready=False), a_canary(3, 0.25)],
            {1: 0.75, 3: 0.25},
        ),
    ],
)
def test_the_weights_of_canaries_decide_who_answers(others, shares):
    async def scene():
        here = gateway(a_route("digits", others=others))
        caller = here.authorise("mine")
        random.seed(7)
        drawn = Counter(
            here.pick(caller, "digits").version for _ in range(4000)
        )
        here.update(a_snapshot())
        return drawn

    drawn = asyncio.run(scene())
    assert drawn.keys() == shares.keys()
    for version, share in shares.items():
        assert drawn[version] / 4000 == pytest.approx(share, abs=0.03)


@inside
async def test_each_version_has_its_own_workers_and_counters(tmp_path):
    main, other = (
        await worker(tmp_path / "1", says(b"one")),
        await worker(tmp_path / "2", says(b"two")),
    )
    here = gateway(
        a_route(
            "digits",
            sockets=[main.path],
            others=[a_canary(2, sockets=[other.path])],
        )
    )
    caller = here.authorise("mine")
    for version, answer in (("1", b"one"), ("2", b"two"), ("2", b"two")):
        route = here.pick(caller, "digits", version)
        assert (
            await here.predict(caller, route, "v2_http", data=b"x")
        ).data == answer
    for version, count in (("1", 1), ("2", 2)):
        assert (
            here.statistics(here.route(caller, "digits", version)).success
            == count
        )
        where = {
            "deployment": "digits",
            "version": f"digits:{version}",
            "protocol": "v2_http",
            "outcome": "success",
        }
        assert metric(here, "modelmill_requests_total", **where) == count
    assert (
        metric(
            here, "modelmill_ready_workers", deployment="digits", slot="main"
        )
        == 1
    )
    assert (
        metric(
            here,
            "modelmill_ready_workers",
            deployment="digits",
            slot="digits:2",
        )
        == 1
    )


@inside
async def test_a_promoted_canary_keeps_its_calls(tmp_path):
    opened = asyncio.Event()

    async def slow(calls):
        await opened.wait()
        return await echo(calls)

    main, other = (
        await worker(tmp_path / "1"),
        await worker(tmp_path / "2", slow),
    )
    here = gateway(
        a_route(
            "digits",
            sockets=[main.path],
            others=[a_canary(2, sockets=[other.path])],
            batch=1,
        )
    )
    caller = here.authorise("mine")
    route = here.pick(caller, "digits", "2")
    calls = [
        asyncio.create_task(here.predict(caller, route, "x", data=b"%d" % n))
        for n in range(6)
    ]
    await until(lambda: other.got)
    here.update(
        a_snapshot(
            a_route("digits", version=2, sockets=[other.path], batch=1),
            keys=KEYS,
        )
    )
    # Began before, asks after
    calls.append(
        asyncio.create_task(here.predict(caller, route, "x", data=b"6"))
    )
    opened.set()
    assert [answer.data for answer in await asyncio.gather(*calls)] == [
        b"%d" % n for n in range(7)
    ]
    await until(lambda: main.open == 0)
    assert main.got == []


# ---- shadows


@inside
async def test_a_shadow_gets_copies_and_its_agreement_is_counted(tmp_path):
    main = await worker(tmp_path / "1", says(b'[{"label":"a","score":0.9}]'))
    same = await worker(tmp_path / "2", says(b'[{"label":"a","score":0.8}]'))
    other = await worker(tmp_path / "3", says(b'[{"label":"b","score":0.8}]'))
    others = [
        a_shadow(2, sockets=[same.path]),
        a_shadow(3, sockets=[other.path]),
    ]
    here = gateway(a_route("digits", sockets=[main.path], others=others))
    caller = here.authorise("mine")
    for _ in range(3):
        await here.predict(
            caller,
            here.pick(caller, "digits"),
            "v2_http",
            data=b"x",
            parameters={"top_k": 1},
        )
    shadows = [here.route(caller, "digits", version) for version in "23"]
    await until(
        lambda: all(here.statistics(one).shadow_answers == 3 for one in shadows)
    )
    assert [here.statistics(one).shadow_disagreements for one in shadows] == [
        0,
        3,
    ]
    assert all(
        call.data == b"x" and call.parameters == {"top_k": 1}
        for batch in same.got
        for call in batch
    )
    where = {"deployment": "digits", "version": "digits:3"}
    assert metric(here, "modelmill_shadow_answers_total", **where) == 3
    assert metric(here, "modelmill_shadow_disagreements_total", **where) == 3
    assert (
        metric(here, "modelmill_usage_total", key="", deployment="digits") == 3
    )  # copies are nobody's use


@pytest.mark.parametrize(
    "fault", ["silent", "refuses", "dies", "not ready", "other shape"]
)
def test_a_shadow_disturbs_nobody(tmp_path, fault):
    async def silent(calls):
        await asyncio.sleep(3600)

    async def dies(calls):
        return None

    async def other_shape(calls):
        return [
            Answer(call.id, tensors=[Tensor("y", "FP32", [1], b"\0" * 4)])
            for call in calls
        ]

    kinds = {
        "silent": silent,
        "refuses": refuses("model_failed"),
        "dies": dies,
        "other shape": other_shape,
    }

    @inside
    async def scene(tmp_path):
        main = await worker(tmp_path / "1", says(b'"yes"'))
        shadow = await worker(tmp_path / "2", kinds.get(fault, silent))
        side = a_shadow(2, sockets=[shadow.path], ready=fault != "not ready")
        here = gateway(
            a_route("digits", sockets=[main.path], others=[side]), queue=2
        )
        caller = here.authorise("mine")
        for _ in range(20):
            assert (
                await here.predict(
                    caller, here.pick(caller, "digits"), "x", data=b"x"
                )
            ).data == b'"yes"'
        assert here.statistics(here.route(caller, "digits")).success == 20
        if fault == "not ready":
            assert shadow.got == []
        # Its copies go to nobody
        here.update(
            a_snapshot(a_route("digits", sockets=[main.path]), keys=KEYS)
        )
        await asyncio.sleep(0.02)
        assert len([call for batch in main.got for call in batch]) == 20
        here.update(a_snapshot())

    scene(tmp_path)


@inside
async def test_a_canary_has_no_copies(tmp_path):
    canary, shadow = await worker(tmp_path / "2"), await worker(tmp_path / "3")
    others = [
        a_canary(2, 1.0, sockets=[canary.path]),
        a_shadow(3, sockets=[shadow.path]),
    ]
    here = gateway(a_route("digits", others=others))
    caller = here.authorise("mine")
    await here.predict(caller, here.pick(caller, "digits"), "x", data=b"x")
    await asyncio.sleep(0.02)
    assert shadow.got == []
