"""A training says when other processes slow it down."""

import json
import threading
from contextlib import closing

import pytest

from modelmill.jobs.contention import Contention, Times, slowdown, thread_times
from modelmill.jobs.process import Events

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {}, 1.0),
        ({"1": Times(0, 0)}, {"1": Times(0, 0)}, 1.0),
        ({"1": Times(0, 0)}, {"1": Times(5, 0)}, 1.0),
        ({"1": Times(10, 10)}, {"1": Times(12, 16)}, 4.0),
        # A thread that hardly runs says nothing, nor does one that has just begun or has ended.
        (
            {"1": Times(0, 0), "2": Times(0, 0)},
            {"1": Times(50, 50), "2": Times(1, 9)},
            2.0,
        ),
        ({"1": Times(0, 0)}, {"1": Times(5, 5), "2": Times(1, 99)}, 2.0),
        ({"1": Times(0, 0), "2": Times(1, 99)}, {"1": Times(5, 5)}, 2.0),
    ],
)
def test_the_busiest_thread_says_how_slow_it_is(before, after, expected):
    assert slowdown(before, after) == expected


def test_the_kernel_reports_times_of_threads():
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    found = thread_times()
    end.set()
    for thread in threads:
        thread.join()
    assert len(found) > 3 or not found  # not every kernel keeps account


def test_a_busy_machine_is_named_once_and_so_is_its_end(tmp_path):
    now = [0.0]
    kept = [Times(0, 0)]
    path = tmp_path / "events.jsonl"
    with closing(Events(path)) as events:
        watch = Contention(events, lambda: now[0], lambda: {"1": kept[0]})

        def pass_on(seconds, waited):
            now[0] += seconds
            kept[0] = Times(
                kept[0].ran + 2 * SECOND, kept[0].waited + int(waited * SECOND)
            )
            watch.look()

        pass_on(5, 0)
        pass_on(5, 2.2)  # 2.1 times slower
        pass_on(5, 3)
        pass_on(5, 0.6)  # 1.3 times: neither
        pass_on(1, 0)  # too soon to look
        pass_on(5, 0)
        pass_on(5, 0)
    said = [
        json.loads(line)["message"] for line in path.read_text().splitlines()
    ]
    assert said == [
        "the machine is busy: this goes 2.1 times slower than it would alone",
        "the machine is no longer busy",
    ]
