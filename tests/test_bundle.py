"""A bundle is seen whole or not at all, and every changed byte is found before it is used."""

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill import bundle
from modelmill.errors import BundleCorrupt, StorageFull
from modelmill.types import Manifest
from tests.helpers.bundles import a_manifest, plain_bundle


@pytest.fixture
def draft(tmp_path):
    folder = tmp_path / "draft"
    (folder / "pictures").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "pictures" / "a.png").write_bytes(b"png")
    (folder / "empty").write_bytes(b"")
    return folder


def test_a_sealed_bundle_names_every_file_and_opens(draft, tmp_path):
    digest = bundle.seal(draft, a_manifest(), tmp_path / "sealed")
    assert not draft.exists()
    manifest = bundle.open_bundle(tmp_path / "sealed")
    assert sorted(manifest.files) == ["empty", "model.onnx", "pictures/a.png"]
    assert digest == bundle.digest_of(tmp_path / "sealed")
    assert msgspec.structs.replace(manifest, files={}) == a_manifest()


def test_the_digest_depends_on_content_only(tmp_path):
    one, same = plain_bundle(tmp_path / "one"), plain_bundle(tmp_path / "same")
    other = plain_bundle(tmp_path / "other", metrics={"accuracy": 0.5})
    assert (
        bundle.digest_of(one)
        == bundle.digest_of(same)
        != bundle.digest_of(other)
    )


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_half_written_bundle_is_never_visible(
    draft, tmp_path, monkeypatch, failing
):
    def full(*_):
        raise OSError(errno.ENOSPC, "no room", "x")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(StorageFull):
        bundle.seal(draft, a_manifest(), tmp_path / "sealed")
    assert not (tmp_path / "sealed").exists()


def test_a_folder_without_manifest_is_no_bundle(draft):
    with pytest.raises(BundleCorrupt, match=r"has no manifest\.json"):
        bundle.open_bundle(draft)


def test_a_missing_file_is_named(tmp_path):
    folder = plain_bundle(tmp_path / "sealed")
    (folder / "model.onnx").unlink()
    with pytest.raises(BundleCorrupt, match=r"lacks the file model\.onnx"):
        bundle.open_bundle(folder)


@settings(max_examples=60)
@given(data=st.data())
def test_any_changed_byte_of_any_file_is_found(data, tmp_path_factory):
    with tempfile.TemporaryDirectory() as place:
        folder = plain_bundle(Path(place) / "sealed")
        path = folder / data.draw(
            st.sampled_from(["model.onnx", "golden.json"])
        )
        content = bytearray(path.read_bytes())
        how = data.draw(st.sampled_from(["change", "cut", "extend"]))
        at = data.draw(st.integers(0, len(content) - 1))
        if how == "change":
            content[at] ^= data.draw(st.integers(1, 255))
        elif how == "cut":
            del content[at:]
        else:
            content += b"\0"
        path.write_bytes(content)
        with pytest.raises(BundleCorrupt, match=path.name):
            bundle.open_bundle(folder)


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_manifest_is_refused_or_still_vouches_for_its_files(data):
    with tempfile.TemporaryDirectory() as place:
        folder = plain_bundle(Path(place) / "sealed")
        path = folder / bundle.MANIFEST
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
            st.integers(0, 255)
        )
        path.write_bytes(content)
        with suppress(BundleCorrupt):
            assert bundle.open_bundle(folder).files is not None


def with_file(folder: Path, name: str) -> Path:
    manifest = bundle.read_manifest(folder)
    changed = msgspec.structs.replace(
        manifest, files={**manifest.files, name: "0" * 64}
    )
    (folder / bundle.MANIFEST).write_bytes(msgspec.json.encode(changed))
    return folder


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../outside", "link/outside"]
)
def test_a_manifest_that_names_a_file_outside_is_refused(tmp_path, name):
    (tmp_path / "outside").write_bytes(b"secret")
    folder = plain_bundle(tmp_path / "sealed")
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(BundleCorrupt, match="outside the bundle"):
        bundle.open_bundle(with_file(folder, name))


@pytest.mark.parametrize(
    "name", ["", ".", "a\0b", "n" * 300, "no/such", "\U0001f600"]
)
def test_a_manifest_with_a_name_that_can_be_no_file_is_refused(tmp_path, name):
    with pytest.raises(BundleCorrupt):
        bundle.open_bundle(with_file(plain_bundle(tmp_path / "sealed"), name))


def test_a_manifest_of_something_else_is_refused(tmp_path):
    folder = plain_bundle(tmp_path / "sealed")
    for content in (
        b"",
        b"[]",
        b"{}",
        b'{"task": 3}',
        b"\xff\xfe",
        b'{"task": "\xff"}',
    ):
        (folder / bundle.MANIFEST).write_bytes(content)
        with pytest.raises(BundleCorrupt, match="can't be read"):
            bundle.open_bundle(folder)


def test_a_bundle_moves_with_its_folder(tmp_path):
    folder = plain_bundle(tmp_path / "sealed")
    shutil.move(folder, tmp_path / "elsewhere")
    assert isinstance(bundle.open_bundle(tmp_path / "elsewhere"), Manifest)
