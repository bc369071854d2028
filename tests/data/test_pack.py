"""What is packed is what was there, and the same content gives the same bytes."""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.data.base import open_source
from modelmill.data.pack import pack
from modelmill.errors import InvalidInput, NotFound, StorageFull

from .conftest import make_folder, make_zip

PART = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\:\0"),
    min_size=1,
    max_size=8,
).filter(lambda part: part.strip(".") == part and len(part.encode()) < 40)
TREE = st.dictionaries(
    st.tuples(PART, PART), st.binary(max_size=300), min_size=1, max_size=6
)


def packed(path: Path) -> bytes:
    out = io.BytesIO()
    pack(path, out)
    return out.getvalue()


def contents(path: Path) -> dict[str, bytes]:
    with open_source(path) as source:
        return {name: source.read(name) for name in source.names}


@settings(max_examples=60)
@given(TREE)
def test_a_packed_folder_reads_like_the_folder(tree):
    with tempfile.TemporaryDirectory() as place:
        folder = make_folder(
            Path(place) / "set",
            {f"d{a}/f{b}.bin": data for (a, b), data in tree.items()},
        )
        archive = Path(place) / "set.zip"
        pack(folder, archive)
        assert contents(archive) == contents(folder)


def test_bytes_depend_on_content_only(tmp_path):
    files = {"cat/1.png": b"one", "dog/2.png": b"two" * 1000}
    first = make_folder(tmp_path / "first", files)
    second = make_folder(
        tmp_path / "second", dict(reversed(files.items())) | {".cache": b"x"}
    )
    os.utime(second / "cat/1.png", (1, 1))
    (second / "dog/2.png").chmod(0o600)
    assert packed(first) == packed(second)
    (second / "cat/1.png").write_bytes(b"One")
    assert packed(first) != packed(second)


def test_a_stream_gets_the_bytes_of_a_file(tmp_path):
    folder = make_folder(tmp_path / "set", {"cat/1.png": b"one"})
    pack(folder, tmp_path / "set.zip")
    read, write = os.pipe()
    with open(read, "rb") as source, open(write, "wb") as target:
        pack(folder, target)
        target.close()
        assert (
            source.read()
            == (tmp_path / "set.zip").read_bytes()
            == packed(folder)
        )


def test_a_zip_goes_as_it_is_also_from_its_folder(tmp_path):
    archive = make_zip(tmp_path / "set.zip", {"cat/1.png": b"one"})
    (tmp_path / "README.md").write_text("about")
    assert packed(archive) == packed(tmp_path) == archive.read_bytes()


def test_a_single_file_becomes_a_zip_of_it(tmp_path):
    (tmp_path / "reviews.csv").write_bytes(b"text,label\n")
    pack(tmp_path / "reviews.csv", tmp_path / "out.zip")
    assert contents(tmp_path / "out.zip") == {"reviews.csv": b"text,label\n"}


def test_what_cannot_be_packed_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="holds no files"):
        packed(tmp_path / "empty")
    with pytest.raises(NotFound):
        packed(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match="unsafe name"):
        packed(make_folder(tmp_path / "odd", {"a\\b.png": b""}))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_has_its_own_failure(tmp_path):
    with pytest.raises(StorageFull, match="packing the data"):
        pack(
            make_folder(tmp_path / "set", {"a.bin": bytes(1 << 20)}),
            Path("/dev/full"),
        )


def test_packing_needs_the_standard_library_only():
    code = (
        "import sys; import modelmill.data.pack; print({'numpy', 'msgspec', 'PIL'} & "
        "set(sys.modules))"
    )
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [shutil.which(sys.executable) or sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
