"""Content is kept by its sha256: added whole, once, and never changed."""

import errno
import hashlib
import os

import pytest

from modelmill.artifacts import Artifacts, sha256_of
from modelmill.errors import NotFound, StorageFull


@pytest.fixture
def store(tmp_path):
    return Artifacts(tmp_path / "artifacts")


def a_file(path, data=b"content"):
    path.write_bytes(data)
    return path


def all_files(root):
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_file_is_found_by_its_digest_and_moved(store, tmp_path):
    digest = store.add_file(a_file(tmp_path / "one"))
    assert digest == hashlib.sha256(b"content").hexdigest()
    assert store.path(digest).read_bytes() == b"content"
    assert not (tmp_path / "one").exists()


def test_the_same_content_is_kept_once(store, tmp_path):
    first = store.add_file(a_file(tmp_path / "one"))
    kept = store.path(first).stat().st_ino
    assert store.add_file(a_file(tmp_path / "two")) == first
    assert store.path(first).stat().st_ino == kept
    assert len(all_files(store.root)) == 1
    assert not (tmp_path / "two").exists()


def test_adding_what_is_there_already_from_its_own_place_keeps_it(
    store, tmp_path
):
    digest = store.add_file(a_file(tmp_path / "one"))
    assert store.add_file(store.path(digest)) == digest
    assert store.path(digest).read_bytes() == b"content"


def test_a_folder_is_kept_under_its_digest_once(store, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        a_file(tmp_path / name / "x")
        assert store.add_folder(tmp_path / name, "ab" * 32) == "ab" * 32
        assert not (tmp_path / name).exists()
    assert [path.name for path in all_files(store.root)] == ["x"]


def test_what_is_not_there_is_named(store):
    with pytest.raises(NotFound, match="artifact 000000000000 is missing"):
        store.path("0" * 64)


def test_a_full_disk_leaves_nothing_half_added(store, tmp_path, monkeypatch):
    source = a_file(tmp_path / "one")

    def full(*_):
        raise OSError(errno.ENOSPC, "no room", str(source))

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(StorageFull):
        store.add_file(source)
    assert source.read_bytes() == b"content"
    assert not all_files(store.root)


def test_the_digest_of_a_large_file_is_that_of_its_bytes(tmp_path):
    data = os.urandom(3 << 20)
    assert (
        sha256_of(a_file(tmp_path / "big", data))
        == hashlib.sha256(data).hexdigest()
    )
