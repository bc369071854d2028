"""Logs in parts: bounded, and complete for those who follow."""

import os

import pytest

from modelmill.cluster.logs import Keeper, LogLimits, read

LINE = 100


@pytest.fixture
def writer(tmp_path):
    """Writes lines into a log as a process does whose output goes there."""
    opened = []

    class Writer:
        def __init__(self, limits):
            self.path = tmp_path / "log.txt"
            self.descriptor = os.open(
                self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
            )
            opened.append(self.descriptor)
            self.keeper = Keeper(self.path, limits, (self.descriptor,))
            self.look = self.keeper.look

        def write(self, *numbers):
            for number in numbers:
                os.write(self.descriptor, b"%0*d\n" % (LINE - 1, number))

    yield Writer
    for descriptor in opened:
        os.close(descriptor)


def parts(folder):
    return sorted(path.name for path in folder.iterdir())


def numbers(data):
    return [int(line) for line in data.splitlines()]


def test_a_log_that_is_not_full_stays_one_file(writer, tmp_path):
    one = writer(LogLimits(10 * LINE, 3))
    one.write(*range(9))
    one.look()
    assert parts(tmp_path) == ["log.txt"]


def test_a_full_log_goes_on_in_an_empty_file_and_the_oldest_part_goes(
    writer, tmp_path
):
    one = writer(LogLimits(10 * LINE, 3))
    for turn in range(7):
        one.write(*range(turn * 10, turn * 10 + 10))
        one.look()
    one.write(70)
    kept = ["log.txt", "log.txt.4000", "log.txt.5000", "log.txt.6000"]
    assert parts(tmp_path) == kept
    assert numbers(one.path.read_bytes()) == [70]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 31 * LINE


def test_a_reader_that_follows_by_bytes_gets_every_line_once(writer):
    one = writer(LogLimits(10 * LINE, 3))
    seen, offset = b"", 0
    for turn in range(30):
        one.write(*range(turn * 7, turn * 7 + 7))
        one.look()
        data, begin = read(one.path, offset, 5 * LINE)
        assert begin == offset  # nothing was skipped
        seen += data
        offset = begin + len(data)
        data, begin = read(one.path, offset, 1 << 20)
        seen += data
        offset = begin + len(data)
    assert numbers(seen) == list(range(210))


def test_a_reader_that_comes_late_begins_with_what_is_left(writer):
    one = writer(LogLimits(10 * LINE, 2))
    for turn in range(5):
        one.write(*range(turn * 10, turn * 10 + 10))
        one.look()
    one.write(50)
    data, begin = read(one.path, 0, 1 << 20)
    assert begin == 3000
    assert numbers(data) == list(range(30, 51))
    assert read(one.path, begin + len(data), 1 << 20) == (
        b"",
        begin + len(data),
    )


def test_several_processes_go_on_in_the_same_file(writer, tmp_path):
    one, other = (
        writer(LogLimits(10 * LINE, 5)),
        writer(LogLimits(10 * LINE, 5)),
    )
    one.write(*range(10))
    one.look()
    other.write(
        10
    )  # it has not looked yet: its line goes where it wrote before
    other.look()
    other.write(11)
    one.write(12)
    assert parts(tmp_path) == ["log.txt", "log.txt.0"]
    assert numbers(one.path.read_bytes()) == [11, 12]
    data, _ = read(one.path, 0, 1 << 20)
    assert numbers(data) == list(range(13))


def test_what_a_killed_process_has_begun_is_finished(writer, tmp_path):
    one = writer(LogLimits(10 * LINE, 3))
    one.write(*range(10))
    (tmp_path / "log.txt.next").write_bytes(b"%0*d\n" % (LINE - 1, 10))
    one.look()
    one.write(11)
    assert parts(tmp_path) == ["log.txt", "log.txt.0"]
    assert numbers(read(one.path, 0, 1 << 20)[0]) == list(range(12))


def test_a_log_that_was_removed_is_begun_again(writer, tmp_path):
    one = writer(LogLimits(10 * LINE, 3))
    one.path.unlink()
    one.look()
    one.write(1)
    assert numbers(one.path.read_bytes()) == [1]


def test_a_log_that_is_not_there_has_no_bytes(tmp_path):
    assert read(tmp_path / "none" / "log.txt", 7, 100) == (b"", 7)
