"""What happens around the requests: first answers, a killed worker, memory, and many models and
keys.
"""

import signal
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx2
import psutil

from bench.measuring import Figures, Target, interleaved, memory
from bench.rates import renamed, told
from bench.subject import Bench, Modelmill, Row, first_answer

KILL_SECONDS = 8.0
"""How long a load goes on around the death of a worker, at least."""
PATIENCE = 30.0
FURTHER = 5


def deploy(bench: Bench) -> list[Row]:
    """From the call of deploy to the first answer of the CNN, which was imported before."""
    mill, times = bench.mill, []
    mill.bring("cnn")
    for number in range(bench.told.repeats):
        name = f"cnn-first-{number}"
        target = mill.targets("cnn", name)["binary"]
        started = time.perf_counter()
        mill.client.deploy("cnn", name=name, replicas=1, threads=1)
        first_answer(target, PATIENCE)
        times.append(time.perf_counter() - started)
        mill.client.undeploy(name)
    middle = statistics.median(times)
    return [
        Row(
            "first answer after `deploy`, CNN",
            f"**{middle:.2f} s**",
            "<= 1.0 s",
            middle <= 1.0,
        )
    ]


def kill(bench: Bench) -> list[Row]:
    """`kill -9` of the only worker while 32 connections ask; then the same for Triton and
    LitServe.
    """
    ours = bench.cnn()["binary"]
    mill = bench.mill
    runs = []
    bench.peers.pause()
    for _ in range(bench.told.repeats):
        runs.append(_killed(bench, ours, lambda: mill.workers("cnn")))
        first_answer(ours, PATIENCE)
    worst = max(max(run.stall, run.silence) for run in runs) / 1e3
    failed = sum(run.failed for run in runs)
    rows = [
        Row(
            "longest time without an answer around `kill -9` of the only worker, worst of "
            f"{len(runs)}",
            f"**{worst:.2f} s**, **{failed} failed**",
            "<= 1.0 s, 0 failed",
            worst <= 1.0 and not failed,
        )
    ]
    for name, part in (
        ("triton", "triton_python_backend_stub"),
        ("litserve", "spawn_main"),
    ):
        if (peer := bench.peers.running.get(name)) is not None:
            peer.resume()
            got = _killed(
                bench,
                bench.peers.fastest[name],
                lambda p=peer, w=part: _named(p.processes(), w),
            )  # type: ignore[misc]
            text = (
                f"{got.stall / 1e3:.2f} s"
                if got.silence < 1e3
                else f"no answer any more in {got.silence / 1e3:.1f} s"
            )
            rows.append(
                Row(f"&nbsp;&nbsp;{peer.name}", f"{text}, {got.failed} failed")
            )
            peer.stop()
            bench.peers.forget(name)
    return rows


def _named(
    processes: Sequence[psutil.Process], part: str
) -> list[psutil.Process]:
    return [one for one in processes if part in " ".join(one.cmdline())]


def _killed(
    bench: Bench, target: Target, workers: Callable[[], list[psutil.Process]]
) -> Figures:
    driven = target.start(32, max(KILL_SECONDS, bench.told.seconds), 0.5)
    time.sleep(2.5)
    victims = workers()
    if not victims:
        driven.result()
        raise RuntimeError(f"no worker of {target.name} was found")
    for one in victims:
        one.send_signal(signal.SIGKILL)
    return driven.result()


def resident(bench: Bench) -> list[Row]:
    """Memory of gateway and worker after 200 predictions, and of each further deployed CNN."""
    mill, target = bench.mill, bench.cnn()["binary"]
    _ask(target, 200)
    parts = [*mill.gateways(), *mill.workers("cnn")]
    pss, rss = memory(parts)
    before = memory([*mill.gateways(), *mill.workers()])
    names = [f"cnn-{number}" for number in range(FURTHER)]
    for name in names:
        mill.client.deploy("cnn", name=name, replicas=1, threads=1, wait=True)
        _ask(mill.targets("cnn", name)["binary"], 20)
    after = memory([*mill.gateways(), *mill.workers()])
    more = [
        (late - early) / FURTHER
        for early, late in zip(before, after, strict=True)
    ]
    for name in names:
        mill.client.undeploy(name)
    rows = [
        Row(
            f"resident, gateway and worker of the CNN ({len(parts)} processes)",
            f"**{pss:.0f} MB** (PSS), {rss:.0f} MB (RSS, shared pages counted in each)",
            "<= 150 MB",
            pss <= 150,
        ),
        Row(
            "added by each further deployed CNN",
            f"**{more[0]:.0f} MB** (PSS), {more[1]:.0f} MB (RSS)",
            "<= 60 MB",
            more[0] <= 60,
        ),
    ]
    for name, peer in bench.peers.running.items():
        if name != "echo":
            _ask(bench.peers.fastest[name], 200)
            rows.append(
                Row(
                    f"&nbsp;&nbsp;{peer.name}",
                    "{:.0f} MB (PSS), {:.0f} MB (RSS)".format(
                        *memory(peer.processes())
                    ),
                )
            )
    return rows


def _ask(target: Target, count: int) -> None:
    target.resume()
    with httpx2.Client(timeout=PATIENCE) as client:
        for _ in range(count):
            client.post(
                target.url, content=target.body, headers=target.headers
            ).raise_for_status()


def many(bench: Bench) -> list[Row]:
    """The CNN on a platform with hundreds of idle models and thousands of keys, against one with
    neither.
    """
    plain = bench.cnn()["binary"]
    crowded = Modelmill(bench.told.cache)
    try:
        seconds = _crowd(crowded, bench.told.models, bench.told.keys)
        full = renamed(
            crowded.deploy("cnn", replicas=1, threads=1)["binary"], "crowded"
        )
        what = f"CNN with {bench.told.models} deployed models and {bench.told.keys:,} keys"
        rows = [
            Row(
                "&nbsp;&nbsp;making these models and keys, until all models sleep",
                f"{seconds:.0f} s",
            )
        ]
        bench.peers.pause()
        for connections in (1, 32):
            got = interleaved(
                [plain, full],
                connections,
                bench.told.seconds,
                bench.told.repeats,
            )
            before, after = got[plain.name], got["crowded"]
            change = after.rps / before.rps - 1
            text = f"**{change:+.1%}**: {told(after)}; without: {told(before)}"
            rows.append(
                Row(
                    f"{what}, {connections} connections",
                    text,
                    "within 5 %",
                    change >= -0.05,
                )
            )
        return rows
    finally:
        crowded.stop()


def _crowd(mill: Modelmill, models: int, keys: int) -> float:
    """Deployments that sleep until they are called, and keys; returns the seconds that it took."""
    started = time.perf_counter()
    mill.bring("cnn")
    headers = {"Authorization": f"Bearer {mill.client.key}"}
    with (
        httpx2.Client(
            base_url=mill.client.url, headers=headers, timeout=120
        ) as client,
        ThreadPoolExecutor(4) as pool,
    ):

        def key(number: int) -> None:
            client.post(
                "/api/v1/keys", json={"name": f"bench-{number}", "role": "user"}
            ).raise_for_status()

        def model(number: int) -> None:
            body = {
                "model": "cnn",
                "name": f"idle-{number}",
                "min_replicas": 0,
                "max_replicas": 1,
                "idle_seconds": 1,
            }
            client.post("/api/v1/deployments", json=body).raise_for_status()

        list(pool.map(key, range(keys)))
        list(pool.map(model, range(models)))
    end = time.monotonic() + 600
    while (
        mill.workers() and time.monotonic() < end
    ):  # each may be loaded once, and sleeps then
        time.sleep(0.5)
    return time.perf_counter() - started
