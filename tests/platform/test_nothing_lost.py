"""Every accepted request is answered, whatever models, workers, gateways and the database do
meanwhile.
"""

import signal
import socket
import sqlite3
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from tests.platform.calling import (
    Caller,
    answer,
    deploy,
    settled,
    statuses,
    workers,
)
from tests.platform.conftest import Platform, until
from tests.reference.engine import OTHER_TRIGGER, TRIGGER

HANG = {"MODELMILL_LIMITS__HANG_SECONDS": "1.5"}


class Stream:
    """Counted rows without a pause from some threads, repeated only when the gateway itself broke
    the connection.
    """

    def __init__(
        self, platform: Platform, name: str = "counts", threads: int = 4
    ) -> None:
        self.answered: list[int] = []
        self.failures: list[str] = []
        self.repeated = 0
        self._name, self._number = name, 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._callers = [Caller(platform) for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._run, args=(caller,))
            for caller in self._callers
        ]

    def __enter__(self) -> "Stream":
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread, caller in zip(self._threads, self._callers, strict=True):
            thread.join()
            caller.__exit__()

    def goes_on(self) -> None:
        """Wait for some more answers."""
        aim = len(self.answered) + 20
        until(lambda: len(self.answered) >= aim)

    def _run(self, caller: Caller) -> None:
        while not self._stop.is_set():
            with self._lock:
                self._number = number = self._number + 1
            while not self._ask(caller, number) and not self._stop.is_set():
                time.sleep(0.02)

    def _ask(self, caller: Caller, number: int) -> bool:
        try:
            response = caller.now(
                self._name, number, kind="counts", id=str(number)
            )
        except httpx2.TransportError:
            self.repeated += 1
            return False
        if response.status_code != 200:
            self.failures.append(f"{response.status_code} {response.text}")
        elif response.json()["id"] != str(number) or answer(
            response, "answer"
        ) != [3 * number + 1]:
            self.failures.append(f"{number} was answered {response.text}")
        else:
            self.answered.append(number)
        return True


def ran(ledger: Path) -> list[int]:
    return [int(line) for line in ledger.read_text().split()]


# ---- models that end or stop their worker


@pytest.mark.parametrize("model", ["crashes", "eats"])
def test_a_request_that_ends_workers_is_refused_and_its_batch_mates_are_answered(
    launch_reference, model: str
) -> None:
    platform = launch_reference()
    deploy(platform, model)
    with Caller(platform) as caller:
        occupied = [
            caller.soon(model, 0.4) for _ in range(4)
        ]  # what follows gathers into a batch
        until(lambda: caller.pending(model) == 4)
        mates = {n: caller.soon(model, n / 1000) for n in range(10)}
        guilty = caller.soon(model, TRIGGER, id="guilty")
        mates |= {n: caller.soon(model, n / 1000) for n in range(10, 20)}
        assert {future.result().status_code for future in occupied} == {200}
        assert guilty.result().status_code == 500
        assert "ended twice" in guilty.result().json()["error"]
        for number, future in mates.items():
            assert answer(future.result(), "value") == [
                pytest.approx(number / 1000)
            ]
    assert "guilty" in (platform.home / "logs" / "gateway.log").read_text()


@pytest.mark.parametrize(
    "trigger",
    [TRIGGER, OTHER_TRIGGER],
    ids=["asleep", "holding the interpreter"],
)
def test_a_hung_worker_is_replaced_and_innocents_are_answered(
    launch_reference, trigger: float
) -> None:
    platform = launch_reference(**HANG)
    deploy(platform, "hangs")
    first = workers(platform, "hangs")
    with Caller(platform) as caller:
        guilty = caller.soon("hangs", trigger)
        until(lambda: caller.pending("hangs") == 1)
        mates = {n: caller.soon("hangs", n / 1000) for n in range(8)}
        for number, future in mates.items():
            assert answer(future.result(), "value") == [
                pytest.approx(number / 1000)
            ]
        assert guilty.result().status_code == 500
    assert not set(first) & set(workers(platform, "hangs"))


@pytest.mark.parametrize(
    "trigger",
    [TRIGGER, OTHER_TRIGGER],
    ids=["as none should", "as an engine should"],
)
def test_a_row_that_fails_is_refused_alone(
    launch_reference, trigger: float
) -> None:
    platform = launch_reference()
    deploy(platform, "raises")
    before = workers(platform, "raises")
    with Caller(platform) as caller:
        occupied = [
            caller.soon("raises", 0.3) for _ in range(3)
        ]  # what follows gathers into a batch
        until(lambda: caller.pending("raises") == 3)
        sent = {
            n: caller.soon("raises", n / 1000 if n != 5 else trigger)
            for n in range(12)
        }
        found = {n: future.result() for n, future in sent.items()}
        assert {future.result().status_code for future in occupied} == {200}
    assert found.pop(5).status_code == 500
    for number, response in found.items():
        assert answer(response, "value") == [pytest.approx(number / 1000)]
    assert workers(platform, "raises") == before


def test_killed_workers_lose_no_row(launch_reference, tmp_path: Path) -> None:
    platform = launch_reference()
    deploy(platform, "counts", replicas=2)
    with Stream(platform) as stream:
        for _ in range(3):
            psutil.Process(workers(platform, "counts")[0]).kill()
            stream.goes_on()
            until(lambda: len(workers(platform, "counts")) == 2)
    assert stream.failures == []
    assert stream.repeated == 0
    assert set(stream.answered) <= set(ran(tmp_path / "ledger"))
    assert len(stream.answered) == len(set(stream.answered))


# ---- changes


def test_new_versions_more_and_fewer_workers_lose_nothing(
    launch_reference,
) -> None:
    platform = launch_reference()
    deploy(platform, "counts", name="changing")
    with Stream(platform, "changing") as stream:
        for replicas in (3, 1, 2, 1):
            deploy(platform, "counts", name="changing", replicas=replicas)
            until(
                lambda wanted=replicas: (
                    len(workers(platform, "changing")) == wanted
                )
            )
            stream.goes_on()
    assert stream.failures == []


def test_a_version_answers_as_itself_while_another_takes_its_place(
    launch_reference,
) -> None:
    platform = launch_reference()
    deploy(platform, "marked:1")
    seen: list[float] = []
    with Caller(platform) as caller:
        for reference in ("marked:2", "marked:1", "marked:2"):
            deploy(platform, reference, wait=False)
            wanted = float(reference[-1])
            until(lambda wanted=wanted: mark(caller, seen) == wanted)
    assert set(seen) == {1.0, 2.0}


def mark(caller: Caller, seen: list[float], *, named: bool = True) -> float:
    """Which version answers now; with `named`, it is the one that the answer is said to come
    from.
    """
    response = caller.add("marked", 2, 3)
    assert answer(response, "sum") == [5]
    if named:
        assert answer(response, "mark") == [
            float(response.json()["model_version"])
        ]
    seen.append(answer(response, "mark")[0])
    return seen[-1]


def test_undeploying_answers_what_was_accepted(launch_reference) -> None:
    platform = launch_reference()
    deploy(platform, "slow")
    with Caller(platform) as caller:
        accepted = {n: caller.soon("slow", 0.1) for n in range(12)}
        until(lambda: caller.pending("slow") == 12)
        platform.client.undeploy("slow")
        assert set(statuses(accepted).values()) == {200}
        until(lambda: caller.now("slow", 0).status_code == 404)
        until(lambda: not workers(platform, "slow"))


def test_deploy_load_and_unload_twice_is_once(launch_reference) -> None:
    platform = launch_reference()
    with Caller(platform) as caller:
        deploy(platform, "counts", wait=False)
        deploy(platform, "counts")
        before = workers(platform, "counts")
        deploy(platform, "counts")
        assert workers(platform, "counts") == before
        for _ in range(2):
            assert (
                caller.post("/v2/repository/models/counts/unload").status_code
                == 200
            )
        assert caller.now("counts", 1).status_code in (400, 404, 503)
        until(lambda: not workers(platform, "counts"))
        for _ in range(2):
            assert (
                caller.post("/v2/repository/models/counts/load").status_code
                == 200
            )
        assert answer(caller.now("counts", 1), "answer") == [4]
        assert len(workers(platform, "counts")) == 1


# ---- gateways, the end, the database


def test_sigterm_answers_what_was_accepted_and_refuses_what_is_new(
    launch_reference,
) -> None:
    platform = launch_reference()
    deploy(platform, "slow")
    address = urlsplit(platform.url)
    with Caller(platform) as caller:
        accepted = [caller.soon("slow", 0.7) for _ in range(4)]
        until(lambda: caller.pending("slow") == 4)
        platform.process.send_signal(signal.SIGTERM)
        until(
            lambda: refused(str(address.hostname), int(address.port or 0)), 2.5
        )
        assert not all(future.done() for future in accepted)
        assert [future.result().status_code for future in accepted] == [200] * 4
    assert platform.process.wait(30) == 0


def refused(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_of_several_gateways_one_may_die(launch_reference) -> None:
    platform = launch_reference(MODELMILL_GATEWAYS="2")
    deploy(platform, "counts")
    assert len(platform.children("modelmill: gateway")) == 2
    with Stream(platform) as stream:
        victim = platform.children("modelmill: gateway")[0]
        victim.kill()
        stream.goes_on()
        until(lambda: len(platform.children("modelmill: gateway")) == 2)
        assert victim.pid not in [
            one.pid for one in platform.children("modelmill: gateway")
        ]
        stream.goes_on()
    assert stream.failures == []
    assert stream.repeated <= 8  # no more than what the dead one held


def test_a_gateway_that_replaces_another_refuses_nobody(
    launch_reference,
) -> None:
    platform = launch_reference()
    deploy(platform, "counts")
    with Stream(platform) as stream:
        for _ in range(2):
            platform.children("modelmill: gateway")[0].kill()
            stream.goes_on()
    assert stream.failures == []


def test_a_locked_database_stops_no_prediction(launch_reference) -> None:
    platform = launch_reference()
    deploy(platform, "counts", replicas=2)
    until(lambda: len(workers(platform, "counts")) == 2)
    locked = sqlite3.connect(
        platform.home / "modelmill.db", isolation_level=None
    )
    locked.execute("BEGIN EXCLUSIVE")
    try:
        with Stream(platform) as stream:
            psutil.Process(workers(platform, "counts")[0]).kill()
            for _ in range(5):
                stream.goes_on()
                time.sleep(0.2)
        assert stream.failures == []
        assert stream.repeated == 0
    finally:
        locked.execute("ROLLBACK")
        locked.close()
    until(lambda: len(workers(platform, "counts")) == 2)
    until(lambda: settled(platform, "counts"))
