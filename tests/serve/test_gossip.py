"""What gateways tell one another and the supervisor."""

import asyncio
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from modelmill.serve import gossip as module
from modelmill.serve.gateway import Gateway
from modelmill.serve.gossip import Ear, Gossip, Load, News
from modelmill.serve.meter import Series
from modelmill.settings import Limits
from tests.helpers.gateways import a_route, a_snapshot
from tests.helpers.workers import until

DIGITS = ("default", "digits", "digits:1")


@pytest.fixture
def folder():
    """A folder whose name leaves room for a socket's."""
    made = Path(tempfile.mkdtemp(prefix="mill-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def ears(folder):
    made = [Ear(folder, name) for name in ("node", "gateway-1", "gateway-2")]
    yield made
    for ear in made:
        ear.close()


def news(gateway="gateway-1", **said):
    values = {"series": {}, "load": [], "hung": []} | said
    return News(gateway, **values)


def heard(ear):
    return list(ear.news())


def test_a_report_reaches_all_others(ears):
    node, one, two = ears
    series = Series(rejected=3)
    told = news(
        series={DIGITS: series},
        load=[Load("default", "digits", "main", 2, 0.5, 1, 1, 0.0)],
        hung=["w1.sock"],
        usage={("default", "shop", "digits", "requests"): 4},
    )
    one.tell(told)
    assert heard(node) == heard(two) == [told]
    assert heard(one) == []
    assert heard(node) == []  # and never waits


def test_what_is_no_news_is_passed_over(ears, folder):
    node, one, _ = ears
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        for data in (b"", b"garbage", b"\xff" * 1000, b"\x90"):
            stranger.sendto(data, str(node.path))
    one.tell(news())
    assert heard(node) == [news()]


def test_who_does_not_listen_misses_it_and_disturbs_nobody(ears, folder):
    node, one, two = ears
    two.socket.close()  # it ended, and its file is still there
    (folder / "file.gossip").write_text("no socket")
    for _ in range(5000):  # more than a socket holds
        one.tell(news(hung=["w" * 100]))
    assert 0 < len(heard(node)) < 5000
    one.tell(news())
    assert heard(node) == [news()]


def test_an_ear_of_an_earlier_run_is_replaced(folder):
    first = Ear(folder, "node")
    first.socket.close()
    second = Ear(folder, "node")
    speaker = Ear(folder, "gateway-1")
    speaker.tell(news())
    assert len(heard(second)) == 1
    second.close()
    speaker.close()
    assert list(folder.iterdir()) == []


class Two:
    """A gateway that gossips, and the supervisor's ear."""

    def __init__(self, folder):
        self.ear = Ear(folder, "node")
        self.gateway = Gateway(Limits())
        self.gateway.update(a_snapshot(a_route("digits")))
        self.task = asyncio.ensure_future(Gossip(self.gateway, folder).run())
        self.news = []

    def listen(self):
        self.news += self.ear.news()
        return self.news

    async def close(self):
        self.gateway.update(a_snapshot())
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.ear.close()


def scene(folder, play):
    async def whole():
        two = Two(folder)
        try:
            await asyncio.wait_for(play(two), 20)
        finally:
            await two.close()

    asyncio.run(whole())
    assert list(folder.iterdir()) == []  # nothing is left behind


def test_a_gateway_reports_its_changes_and_queue_lengths(folder):
    async def play(two):
        from modelmill.serve.pool import Ask

        (_, pool) = next(iter(two.gateway.pools()))
        two.gateway.meter.series(DIGITS).answered("x", 0.1, True)
        two.gateway.meter.usage_of("default", "shop", "digits")["requests"] = 1
        call = pool.submit(b"x", [], {}, Ask()).future
        await until(lambda: any(one.load for one in two.listen()))
        (load,) = next(one.load for one in two.news if one.load)
        assert (
            load.project,
            load.deployment,
            load.slot,
            load.waiting,
            load.connected,
        ) == (
            "default",
            "digits",
            "main",
            1,
            0,
        )
        await until(lambda: any(one.series for one in two.listen()))
        assert (
            next(one.series for one in two.news if one.series)[DIGITS].success
            == 1
        )
        assert any(one.usage for one in two.news)
        count = len([one for one in two.news if one.series])
        before = len(two.news)
        await until(lambda: len(two.listen()) > before + 2)
        assert (
            len([one for one in two.news if one.series]) == count
        )  # what was told is not told again and again
        call.cancel()

    scene(folder, play)


def test_a_call_for_a_sleeping_model_is_reported_at_once(folder, monkeypatch):
    monkeypatch.setattr(module, "TELL_SECONDS", 3600)

    async def play(two):
        from modelmill.serve.pool import Ask

        await asyncio.sleep(0)
        (_, pool) = next(iter(two.gateway.pools()))
        call = pool.submit(b"x", [], {}, Ask()).future
        await until(
            lambda: any(
                one.load and one.load[0].waiting for one in two.listen()
            )
        )
        call.cancel()

    scene(folder, play)


def test_a_hung_worker_is_reported_once_for_each_time_it_is_noticed(folder):
    async def play(two):
        two.gateway._report_hung("w1.sock")
        await until(lambda: any(one.hung for one in two.listen()))
        before = len(two.news)
        await until(lambda: len(two.listen()) > before + 1)
        assert [one.hung for one in two.news if one.hung] == [["w1.sock"]]

    scene(folder, play)


def test_big_news_come_in_portions_that_a_socket_takes(folder):
    names = [("default", f"model-{n}", f"model-{n}:1") for n in range(300)]
    uses = {
        (
            f"project-{'z' * 50}",
            f"key-{'x' * 50}-{n}",
            f"deployment-{'y' * 40}-{n}",
            "requests",
        ): n + 1
        for n in range(5000)
    }

    async def play(two):
        for name in names:
            two.gateway.meter.series(name).answered("x", 0.1, True)
        for (*payer, unit), amount in uses.items():
            two.gateway.meter.usage_of(*payer)[unit] = amount
        got, used = set(), {}

        def everything():
            for one in two.listen():
                got.update(one.series)
                used.update(one.usage)
            two.news.clear()
            return got >= set(names) and used == uses

        two.gateway.meter.forget = lambda known: None
        await until(everything, 15)

    scene(folder, play)


def test_lost_messages_are_sent_again(folder, monkeypatch):
    monkeypatch.setattr(module, "ALL_SECONDS", 0.05)
    monkeypatch.setattr(module, "TELL_SECONDS", 0.02)

    async def play(two):
        two.gateway.meter.series(DIGITS).answered("x", 0.1, True)
        await until(lambda: any(one.series for one in two.listen()))
        two.news.clear()  # as if they had been lost
        await until(lambda: any(one.series for one in two.listen()))

    scene(folder, play)


def test_gateways_answer_for_one_another(folder):
    async def play(two):
        other = Ear(folder, "gateway-other")
        series = Series()
        series.answered("x", 0.1, True)
        other.tell(
            news(
                "gateway-other",
                series={DIGITS: series},
                usage={("default", "shop", "digits", "requests"): 3},
            )
        )
        await until(lambda: two.gateway.meter.total(DIGITS).success == 1)
        assert two.gateway.meter.used() == {
            ("default", "shop", "digits", "requests"): 3
        }
        other.close()

    scene(folder, play)
