"""Who is answered when, and by which worker and version: queues, keys, priorities, replicas,
memory, canaries.
"""

import json
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from modelmill.errors import MillError
from tests.platform.calling import (
    Caller,
    answer,
    body,
    deploy,
    settled,
    statuses,
    workers,
)
from tests.platform.conftest import Platform, until
from tests.platform.test_nothing_lost import mark, ran

ALONE = {"MODELMILL_LIMITS__BATCH": "1"}
"""One call a batch, so that what a test sends is answered in an order that it can see."""

# ---- the queue


def test_a_full_queue_says_when_to_come_again(launch_reference) -> None:
    platform = launch_reference(MODELMILL_LIMITS__QUEUE="4", **ALONE)
    deploy(platform, "slow")
    with Caller(platform) as caller:
        answers = [
            future.result()
            for future in [caller.soon("slow", 0.2) for _ in range(16)]
        ]
        refused = [one for one in answers if one.status_code == 429]
        assert refused
        assert all(
            float(one.headers["Retry-After"]) > 0 and one.json()["error"]
            for one in refused
        )
        assert {one.status_code for one in answers} == {200, 429}
        assert len(answers) - len(refused) >= 4
        assert caller.now("slow", 0).status_code == 200


def test_a_caller_that_goes_takes_its_waiting_calls_along(
    launch_reference, tmp_path: Path
) -> None:
    platform = launch_reference(REFERENCE_SECONDS="0.7", **ALONE)
    deploy(platform, "counts")
    with Caller(platform) as caller:
        sent = [caller.soon("counts", number) for number in (1, 2)]
        until(lambda: caller.pending("counts") == 2)
        links = [leave_call(platform, number) for number in range(10, 16)]
        until(lambda: caller.pending("counts") == 8)
        for link in links:
            link.close()
        until(lambda: caller.pending("counts") <= 2)
        assert [future.result().status_code for future in sent] == [200, 200]
        assert caller.now("counts", 3).status_code == 200
    first, second, third = ran(tmp_path / "ledger")
    assert {first, second} == {1, 2}  # they came at the same time
    assert third == 3


def leave_call(platform: Platform, number: int) -> socket.socket:
    """A request whose answer nobody reads."""
    address = urlsplit(platform.url)
    content = json.dumps(body("counts", (number,))).encode()
    head = (
        f"POST /v2/models/counts/infer HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: "
        f"{len(content)}\r\n"
        f"Authorization: Bearer {platform.client.key}\r\n\r\n"
    )
    link = socket.create_connection(
        (str(address.hostname), int(address.port or 0))
    )
    link.sendall(head.encode() + content)
    return link


def test_a_call_that_waited_too_long_is_dropped(
    launch_reference, tmp_path: Path
) -> None:
    platform = launch_reference(REFERENCE_SECONDS="0.7", **ALONE)
    deploy(platform, "counts")
    with Caller(platform) as caller:
        sent = [caller.soon("counts", number) for number in (1, 2, 3)]
        until(lambda: caller.pending("counts") == 3)
        late = caller.now("counts", 10, timeout=100_000)  # microseconds
        assert late.status_code in (503, 504)
        assert [future.result().status_code for future in sent] == [200] * 3
    assert sorted(ran(tmp_path / "ledger")) == [1, 2, 3]


def test_a_greedy_key_does_not_starve_another(launch_reference) -> None:
    platform = launch_reference(**ALONE)
    deploy(platform, "slow")
    keys = [
        platform.client.add_key(name)["key"] for name in ("greedy", "modest")
    ]
    with (
        Caller(platform, keys[0]) as greedy,
        Caller(platform, keys[1]) as modest,
    ):
        waiting = [greedy.soon("slow", 0.05) for _ in range(40)]
        until(lambda: greedy.pending("slow") >= 20)
        assert modest.now("slow", 0.05).status_code == 200
        assert sum(future.done() for future in waiting) < 35
        assert {future.result().status_code for future in waiting} == {200}


def test_a_key_with_a_rate_is_held_to_it_and_others_are_not(
    launch_reference,
) -> None:
    platform = launch_reference()
    deploy(platform, "counts")
    key = platform.client.add_key("metered", "user", 0.5, 4)["key"]
    with Caller(platform, key) as metered, Caller(platform) as other:
        answers = [metered.now("counts", number) for number in range(8)]
        codes = [one.status_code for one in answers]
        assert codes[:4] == [200] * 4
        assert 429 in codes[4:]
        assert all(
            float(one.headers["Retry-After"]) > 0
            for one in answers
            if one.status_code == 429
        )
        assert {
            other.now("counts", number).status_code for number in range(20)
        } == {200}


def test_urgent_calls_go_first(launch_reference, tmp_path: Path) -> None:
    platform = launch_reference(REFERENCE_SECONDS="0.1", **ALONE)
    deploy(platform, "counts")
    with Caller(platform) as caller:
        sent = {n: caller.soon("counts", n, priority=5) for n in range(1, 13)}
        until(lambda: caller.pending("counts") == 12)
        sent[99] = caller.soon("counts", 99, priority=1)
        assert set(statuses(sent).values()) == {200}
    order = ran(tmp_path / "ledger")
    assert order.index(99) < 10
    assert sorted(order) == [*range(1, 13), 99]


# ---- workers come and go


def test_the_first_call_wakes_a_deployment_that_sleeps(
    launch_reference,
) -> None:
    platform = launch_reference()
    deploy(
        platform,
        "counts",
        min_replicas=0,
        max_replicas=1,
        idle_seconds=1,
        wait=False,
    )
    with Caller(platform) as caller:
        until(
            lambda: (
                caller.platform.client.deployment("counts")["state"]
                in ("ready", "asleep")
            )
        )
        for number in (1, 2):
            until(lambda: not workers(platform, "counts"))
            assert answer(caller.now("counts", number), "answer") == [
                3 * number + 1
            ]
            assert len(workers(platform, "counts")) == 1


def test_another_worker_comes_when_calls_wait(launch_reference) -> None:
    platform = launch_reference(**ALONE)
    deploy(platform, "slow", min_replicas=1, max_replicas=2)
    assert len(workers(platform, "slow")) == 1
    with Caller(platform) as caller:
        sent = [caller.soon("slow", 0.25) for _ in range(40)]
        until(lambda: len(workers(platform, "slow")) == 2)
        assert {future.result().status_code for future in sent} == {200}


@pytest.mark.slow
def test_a_worker_goes_when_there_is_little_to_do(launch_reference) -> None:
    platform = launch_reference(**ALONE)
    deploy(platform, "slow", min_replicas=1, max_replicas=2)
    with Caller(platform) as caller:
        sent = [caller.soon("slow", 0.25) for _ in range(40)]
        until(lambda: len(workers(platform, "slow")) == 2)
        assert {future.result().status_code for future in sent} == {200}
        until(
            lambda: (
                caller.now("slow", 0).status_code != 200
                or len(workers(platform, "slow")) == 1
            ),
            120,
        )
        assert caller.now("slow", 0).status_code == 200


def test_within_a_memory_budget_the_least_used_model_makes_room(
    launch_reference,
) -> None:
    platform = launch_reference(MODELMILL_MEMORY_BYTES=str(1))
    for name in ("one", "two"):
        deploy(
            platform,
            "counts",
            name=name,
            min_replicas=0,
            max_replicas=1,
            idle_seconds=600,
            wait=False,
        )
    with Caller(platform) as caller:
        for name, other in (("one", "two"), ("two", "one"), ("one", "two")):
            until(
                lambda name=name: (
                    caller.now(name, 1, kind="counts").status_code == 200
                )
            )
            until(lambda other=other: not workers(platform, other))


# ---- versions beside one another


def test_a_canary_gets_its_share_and_can_be_asked_for(launch_reference) -> None:
    platform = launch_reference()
    deploy(platform, "marked:1")
    deploy(platform, "marked:2", canary=30, wait=False)
    seen: list[float] = []
    with Caller(platform) as caller:
        until(lambda: mark(caller, []) == 2)
        for _ in range(300):
            mark(caller, seen)
        assert 40 < seen.count(2.0) < 150
        for version in ("1", "2"):
            for _ in range(10):
                pinned = caller.add("marked", 1, 1, version=version)
                assert answer(pinned, "mark") == [float(version)]
        platform.client.promote("marked")
        until(
            lambda: {mark(caller, [], named=False) for _ in range(20)} == {2.0}
        )
    until(lambda: platform.client.deployment("marked")["serving"] == 2)


def test_a_canary_can_be_taken_back(launch_reference) -> None:
    platform = launch_reference()
    deploy(platform, "marked:1")
    deploy(platform, "marked:2", canary=50, wait=False)
    with Caller(platform) as caller:
        until(lambda: mark(caller, []) == 2)
        platform.client.rollback("marked")
        # What waited for the canary is answered by the main version.
        until(
            lambda: {mark(caller, [], named=False) for _ in range(20)} == {1.0}
        )


def test_a_shadow_gets_copies_and_never_answers(launch_reference) -> None:
    platform = launch_reference()
    deploy(platform, "marked:1")
    deploy(platform, "marked:2", shadow=True, wait=False)
    with Caller(platform) as caller:
        until(lambda: len(workers(platform, "marked")) == 2)
        seen: list[float] = []
        until(
            lambda: [mark(caller, seen) for _ in range(20)] and shadowed(caller)
        )
        assert set(seen) == {1.0}


def shadowed(caller: Caller) -> bool:
    """Whether the second version has been asked."""
    rows = (
        caller._http.get("/v2/models/marked/versions/2/stats")
        .json()
        .get("model_stats", [])
    )
    return any(int(row["inference_count"]) > 0 for row in rows)


def test_a_canary_that_fails_is_rolled_back_by_itself(launch_reference) -> None:
    platform = launch_reference()
    deploy(platform, "worsens:1")
    deploy(platform, "worsens:2", canary=50, wait=False)
    with Caller(platform) as caller:
        until(lambda: caller.now("worsens", 0, kind="fails").status_code == 500)
        streak, deadline = 0, time.monotonic() + 60
        while streak < 40:
            assert time.monotonic() < deadline, "the canary was not rolled back"
            good = caller.now("worsens", 0, kind="fails").status_code == 200
            streak = streak + 1 if good else 0
    until(lambda: settled(platform, "worsens"))
    assert platform.client.deployment("worsens")["serving"] == 1


def test_a_model_that_cannot_be_deployed_says_so(launch_reference) -> None:
    platform = launch_reference()
    with pytest.raises(MillError, match="worsens"):
        platform.client.deploy("worsens:3")
