"""An index of vectors: what it finds, and that nothing that was answered is ever lost."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest

from modelmill.control import vector_index
from modelmill.control.vector_index import NewItem, VectorIndex
from modelmill.control.vector_log import HEAD, HEADER
from modelmill.errors import InvalidInput, MillError, NotFound

SIDE = 8
WRITER = """
import sys
from pathlib import Path
import numpy as np
from modelmill.control.vector_index import NewItem, VectorIndex
index = VectorIndex(Path(sys.argv[1]), 8)
rng = np.random.default_rng(int(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    print(*index.add([NewItem(vector, sys.argv[2]) for vector in rng.normal(size=(3, 8))]), flush=True)
"""


def vectors(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, SIDE))


def filled(folder, count=40):
    VectorIndex.create(folder)
    index = VectorIndex(folder, SIDE)
    index.add(
        [
            NewItem(vector, f"label{row % 4}", f'{{"row": {row}}}')
            for row, vector in enumerate(vectors(count))
        ]
    )
    index.settle()
    return index


def again(folder):
    index = VectorIndex(folder, SIDE)
    with suppress(MillError):
        index.settle()
    return index


@pytest.fixture(params=["exact", "graph"])
def kind(request, monkeypatch):
    """Whether every row is looked at, or the graph is asked."""
    if request.param == "graph":
        monkeypatch.setattr(vector_index, "EXACT", 10)
    return request.param


def test_the_nearest_items_come_first_with_their_cosine(tmp_path, kind):
    index, all_of_them = filled(tmp_path), vectors(40)
    query = all_of_them[7] + 0.1
    unit = all_of_them / np.linalg.norm(all_of_them, axis=1, keepdims=True)
    wanted = unit @ (query / np.linalg.norm(query))
    found = index.search(query, 5)
    assert [hit.id - 1 for hit in found] == np.argsort(-wanted)[:5].tolist()
    assert [hit.score for hit in found] == pytest.approx(
        np.sort(wanted)[::-1][:5].tolist(), abs=1e-5
    )
    assert (found[0].label, found[0].metadata) == ("label3", '{"row": 7}')
    assert len(index.search(query, 1000)) == 40


def test_what_is_removed_is_not_found_and_its_number_never_comes_again(
    tmp_path, kind
):
    index = filled(tmp_path)
    assert index.remove(id=8) == 1
    assert index.remove(label="label0") == 10
    for one in (index, again(tmp_path)):
        assert len(one) == 29
        assert {hit.id for hit in one.search(vectors(40)[7], 40)} == {
            hit.id for hit in one.items()
        }
        assert one.labels() == {"label1": 10, "label2": 10, "label3": 9}
    assert index.remove(id=40) == 1
    assert again(tmp_path).add([NewItem(vectors(1)[0])]) == [41]
    with pytest.raises(NotFound):
        index.remove(id=8)


def test_an_index_that_is_open_elsewhere_sees_every_change(tmp_path, kind):
    one = filled(tmp_path)
    other = again(tmp_path)
    (number,) = one.add([NewItem(vectors(1, seed=1)[0], "new")])
    assert other.search(vectors(1, seed=1)[0], 1)[0].id == number
    other.remove(id=number)
    assert one.search(vectors(1, seed=1)[0], 1)[0].id != number


def test_removing_most_of_it_shrinks_the_log_for_all_who_have_it_open(
    tmp_path, kind, monkeypatch
):
    monkeypatch.setattr(vector_index, "WASTE", 5)
    index = filled(tmp_path)
    other = again(tmp_path)
    assert len(other) == 40
    before = (tmp_path / "log").stat().st_size
    for number in range(3):
        index.remove(label=f"label{number}")
    assert (tmp_path / "log").stat().st_size < before / 2
    for one in (index, other, again(tmp_path)):
        assert one.labels() == {"label3": 10}
        assert one.search(vectors(40)[3], 1)[0].id == 4
    assert other.add([NewItem(vectors(1)[0])]) == [41]


def test_a_record_that_a_writer_left_unfinished_is_dropped(tmp_path, kind):
    filled(tmp_path)
    sound = (tmp_path / "log").read_bytes()
    again(tmp_path).add([NewItem(vectors(1, seed=1)[0], "torn")])
    whole = (tmp_path / "log").read_bytes()
    for length in range(len(sound) + 1, len(whole), 7):
        (tmp_path / "log").write_bytes(whole[:length])
        assert "torn" not in again(tmp_path).labels()
    assert again(tmp_path).add([NewItem(vectors(1, seed=2)[0], "next")]) == [41]
    assert again(tmp_path).labels() == {
        "label0": 10,
        "label1": 10,
        "label2": 10,
        "label3": 10,
        "next": 1,
    }


@pytest.mark.parametrize("place", [0, 5, HEAD.size + 3])
def test_damage_before_sound_records_is_said_and_never_cut_off(tmp_path, place):
    filled(tmp_path).add([NewItem(vectors(1)[0])])
    data = bytearray((tmp_path / "log").read_bytes())
    data[HEADER + place] ^= 0x41
    (tmp_path / "log").write_bytes(data)
    index = again(tmp_path)
    for act in (
        lambda: index.search(vectors(1)[0], 1),
        lambda: index.add([NewItem(vectors(1)[0])]),
        index.labels,
    ):
        with pytest.raises(MillError, match=f"damaged at byte {HEADER}"):
            act()
    assert (tmp_path / "log").read_bytes() == data


@pytest.mark.parametrize(
    "damage", ["missing", "changed", "cut", "of another log"]
)
def test_a_snapshot_is_made_again_when_it_is_no_good(
    tmp_path, monkeypatch, damage
):
    monkeypatch.setattr(vector_index, "EXACT", 10)
    monkeypatch.setattr(vector_index, "BATCH", 10)
    filled(tmp_path)
    graph = tmp_path / "graph"
    data = graph.read_bytes()
    if damage == "missing":
        graph.unlink()
    elif damage == "changed":
        graph.write_bytes(data[:-3] + b"\0\1\2")
    elif damage == "cut":
        graph.write_bytes(data[: len(data) // 2])
    else:
        graph.write_bytes(bytes([*data[:10], data[10] ^ 1, *data[11:]]))
    assert [hit.id for hit in again(tmp_path).search(vectors(40)[7], 1)] == [8]
    assert graph.read_bytes()[:HEADER] == data[:HEADER]


def test_what_was_answered_survives_a_kill_in_the_middle_of_adding(
    tmp_path, kind
):
    filled(tmp_path)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), "1", "100000"],
        stdout=subprocess.PIPE,
        text=True,
    )
    answered = [writer.stdout.readline() for _ in range(20)]
    writer.send_signal(signal.SIGKILL)
    answered += writer.communicate()[0].splitlines(keepends=True)
    numbers = {
        int(word)
        for line in answered
        if line.endswith("\n")
        for word in line.split()
    }
    assert len(numbers) >= 60
    index = again(tmp_path)
    there = {hit.id for hit in index.items("1", limit=10**6)}
    assert numbers <= there
    assert len(there) % 3 == 0  # what came together is there together
    assert index.add([NewItem(vectors(1)[0], "after")])[0] > max(there)


def test_writers_in_several_processes_do_not_collide(tmp_path):
    filled(tmp_path)
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen(
            [*command, seed, "30"], stdout=subprocess.PIPE, text=True
        )
        for seed in "12"
    ]
    said = [writer.communicate(timeout=120)[0] for writer in writers]
    numbers = [int(word) for text in said for word in text.split()]
    assert len(set(numbers)) == len(numbers) == 180
    assert len(again(tmp_path)) == 220


@pytest.mark.parametrize(
    "vector",
    [
        [1.0],
        [0.0] * SIDE,
        [float("nan")] * SIDE,
        [1e300] * SIDE,
        "abcdefgh",
        [None] * 8,
    ],
)
def test_what_is_no_vector_is_refused(tmp_path, vector):
    index = filled(tmp_path)
    with pytest.raises(InvalidInput):
        index.search(vector, 1)
    with pytest.raises(InvalidInput):
        index.add([NewItem(vectors(1)[0]), NewItem(vector)])
    assert len(index) == 40


def test_a_full_disk_leaves_the_index_as_it_was(tmp_path, monkeypatch):
    index = filled(tmp_path)
    size = (tmp_path / "log").stat().st_size
    real = os.fsync

    def full(number):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MillError, match="the disk is full"):
        index.add([NewItem(vectors(1)[0])])
    monkeypatch.setattr(os, "fsync", real)
    assert (tmp_path / "log").stat().st_size == size
    assert index.add([NewItem(vectors(1)[0])]) == [41]


def test_while_the_graph_is_made_every_row_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_index, "EXACT", 10)
    released = threading.Event()
    real = vector_index._read_graph

    def slow(*arguments):
        released.wait(30)
        return real(*arguments)

    monkeypatch.setattr(vector_index, "_read_graph", slow)
    VectorIndex.create(tmp_path)
    index = VectorIndex(tmp_path, SIDE)
    index.add([NewItem(vector) for vector in vectors(40)])
    assert index.search(vectors(40)[7], 1)[0].id == 8
    index.remove(id=8)
    index.add([NewItem(vectors(1, seed=1)[0])])
    released.set()
    for _ in "before", "after":
        assert index.search(vectors(40)[7], 1)[0].id != 8
        assert index.search(vectors(1, seed=1)[0], 1)[0].id == 41
        index.settle()
