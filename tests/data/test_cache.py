"""Decoded data are built once, whole or not at all."""

import errno
import os
import threading

import numpy as np
import pytest

from modelmill.data import cache
from modelmill.data.cache import cached, trim
from modelmill.errors import MillError, StorageFull


def rows(count, shape=(4, 3)):
    for number in range(count):
        yield (
            {
                "image": np.full(shape, number % 256, np.uint8),
                "size": np.float32(number),
            },
            {"label": np.int64(number % 7)},
        )


def build(folder, key="key", count=10, make=None):
    return cached(
        folder, key, make or (lambda: rows(count)), count, lambda done: None
    )


def never():
    raise AssertionError("built again")


def test_what_was_built_comes_back_without_building_again(tmp_path):
    told = []
    first = cached(tmp_path, "key", lambda: rows(600), 600, told.append)
    again = build(tmp_path, count=600, make=never)
    for arrays in (first, again):
        assert {
            name: (part.shape, part.dtype)
            for name, part in arrays.arrays.items()
        } == {
            "image": ((600, 4, 3), np.uint8),
            "size": ((600,), np.float32),
        }
        assert arrays.targets["label"].dtype == np.int64
        assert arrays.targets["label"].tolist() == [
            number % 7 for number in range(600)
        ]
        assert (
            arrays.arrays["image"][599].tolist()
            == np.full((4, 3), 599 % 256).tolist()
        )
        assert isinstance(arrays.arrays["image"], np.memmap)
        assert not arrays.arrays["image"].flags.writeable
    assert told == [256, 512, 600]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("count", [9, 11])
def test_another_count_than_announced_fails_and_leaves_nothing(tmp_path, count):
    with pytest.raises(MillError, match="10"):
        build(tmp_path, make=lambda: rows(count))
    assert not list(tmp_path.iterdir())


def test_items_of_another_shape_or_name_fail_and_leave_nothing(tmp_path):
    def other_shape():
        yield from rows(9)
        yield from rows(1, (3, 4))

    def other_name():
        yield from rows(9)
        yield {"picture": np.zeros(1)}, {"label": np.int64(0)}

    with pytest.raises(MillError, match="item 9: 'image' is uint8"):
        build(tmp_path, make=other_shape)
    with pytest.raises(MillError, match="item 9 has the arrays"):
        build(tmp_path, make=other_name)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_before_anything_is_decoded(
    tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageFull):
        build(tmp_path)
    assert not list(tmp_path.iterdir())


def test_builders_may_race(tmp_path):
    barrier, results = threading.Barrier(4), []

    def slow():
        barrier.wait()
        yield from rows(10)

    threads = [
        threading.Thread(
            target=lambda: results.append(build(tmp_path, make=slow))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [arrays.targets["label"].tolist() for arrays in results] == [
        [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    ] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_damaged_entry_is_made_again(tmp_path):
    build(tmp_path)
    (tmp_path / "key" / "image.npy").write_bytes(b"\x93NUMPY\x01\x00")
    assert build(tmp_path).arrays["image"][3, 0, 0] == 3
    (tmp_path / "key" / "target.label.npy").unlink()
    assert build(tmp_path).targets["label"][3] == 3


def test_trim_drops_the_least_recently_used_and_abandoned_drafts(tmp_path):
    for number, key in enumerate("abc"):
        build(tmp_path, key)
        os.utime(tmp_path / key, (1000 + number, 1000 + number))
    size = sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    kept = build(tmp_path, "a", make=never)  # used just now
    for draft, age in (("x.tmp-1-old", 2 * cache.STALE), ("y.tmp-1-new", 0.0)):
        (tmp_path / draft).mkdir()
        when = (tmp_path / "a").stat().st_mtime - age
        os.utime(tmp_path / draft, (when, when))
    assert trim(tmp_path, 2 * size) == size
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a",
        "c",
        "y.tmp-1-new",
    ]
    assert trim(tmp_path, 0) == 2 * size
    assert kept.arrays["image"][5, 0, 0] == 5, "what is open stays readable"
    assert trim(tmp_path / "nowhere", 0) == 0
