"""A folder, a file and a zip look the same, and a hostile one is refused in one line."""

import io
import stat
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.data.base import open_source
from modelmill.errors import InvalidInput, MillError, NotFound, TooLarge

from .conftest import make_folder, make_zip

FILES = {"cat/1.png": b"one", "cat/2.png": b"two", "dog/a b.png": b"three"}
JUNK = {
    "README.md": b"",
    "LICENSE": b"",
    "notes.md": b"",
    ".DS_Store": b"",
    "cat/Thumbs.db": b"",
    "dog/.hidden/x.png": b"",
    "__MACOSX/cat/._1.png": b"",
    "desktop.ini": b"",
}


def contents(path: Path) -> dict[str, bytes]:
    with open_source(path) as source:
        return {name: source.read(name) for name in source.names}


def test_folder_and_zip_show_the_same_names_without_junk_and_notes(tmp_path):
    folder = make_folder(tmp_path / "set", FILES | JUNK)
    archive = make_zip(tmp_path / "set.zip", FILES | JUNK)
    assert contents(folder) == contents(archive) == FILES
    assert list(contents(folder)) == sorted(FILES)


def test_a_single_top_folder_is_not_part_of_the_names(tmp_path):
    nested = {f"my set/{name}": data for name, data in (FILES | JUNK).items()}
    assert contents(make_zip(tmp_path / "set.zip", nested)) == FILES
    assert contents(make_folder(tmp_path / "outer", nested)) == FILES


def test_a_zip_of_the_working_folder_keeps_its_names(tmp_path):
    dotted = {f"./{name}": data for name, data in (FILES | JUNK).items()}
    assert contents(make_zip(tmp_path / "set.zip", dotted)) == FILES


def test_tables_named_like_a_licence_are_data(tmp_path):
    files = {"license_plates.csv": b"text,label\n", "readme_reviews.tsv": b""}
    assert contents(make_folder(tmp_path / "set", files)) == files


def test_a_file_is_a_source_of_itself(tmp_path):
    assert contents(
        make_folder(tmp_path, {"reviews.csv": b"a"}) / "reviews.csv"
    ) == {"reviews.csv": b"a"}


def test_a_zip_is_known_by_its_content_too(tmp_path):
    assert contents(make_zip(tmp_path / "0123456789abcdef", FILES)) == FILES


def test_a_folder_of_one_zip_means_the_zip_and_of_several_is_refused(tmp_path):
    make_folder(tmp_path, {"README.md": b"text"})
    make_zip(tmp_path / "small.zip", FILES)
    assert contents(tmp_path) == FILES
    make_zip(tmp_path / "large.zip", FILES)
    with pytest.raises(
        InvalidInput, match=r"pick one of them: large\.zip, small\.zip"
    ):
        open_source(tmp_path)


def test_missing_and_empty_data_say_so(tmp_path):
    with pytest.raises(NotFound, match="no file or folder"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match="holds no data"):
        open_source(make_folder(tmp_path / "set", JUNK))
    with pytest.raises(InvalidInput, match="holds no data"):
        open_source(make_zip(tmp_path / "set.zip", JUNK))
    with (
        open_source(make_folder(tmp_path / "full", FILES)) as source,
        pytest.raises(NotFound),
    ):
        source.open("../full/cat/1.png")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../up.png",
        "a/../../b.png",
        "a\\b.png",
        "C:/x.png",
        "c:x.png",
        "a/..",
        "\\\\host\\x",
    ],
)
def test_unsafe_member_names_are_refused(tmp_path, name):
    path = make_zip(tmp_path / "bad.zip", {"ok/1.png": b"1", name: b"2"})
    with pytest.raises(InvalidInput, match="unsafe name"):
        open_source(path)


def test_an_empty_member_name_is_refused(tmp_path):
    (tmp_path / "bad.zip").write_bytes(SAMPLE.replace(b"b/2.png", b"\0/2.png"))
    with pytest.raises(InvalidInput, match="unsafe name"):
        open_source(tmp_path / "bad.zip")


def test_links_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("cat/link.png")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InvalidInput, match="link"):
        open_source(tmp_path / "bad.zip")


def test_twins_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("cat/1.png", "a")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("cat/1.png", "b")
    with pytest.raises(InvalidInput, match="twice"):
        open_source(tmp_path / "bad.zip")


def test_encrypted_and_damaged_zips_are_refused(tmp_path):
    good = make_zip(tmp_path / "good.zip", FILES).read_bytes()
    local, central = good.index(b"PK\x03\x04"), good.index(b"PK\x01\x02")
    locked = bytearray(good)
    locked[local + 6] |= 1
    locked[central + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(InvalidInput, match="encrypted"):
        open_source(tmp_path / "locked.zip")
    (tmp_path / "cut.zip").write_bytes(good[:-30])
    with pytest.raises(InvalidInput, match="damaged"):
        open_source(tmp_path / "cut.zip")


def test_links_that_lead_outside_are_skipped_and_circles_end(tmp_path):
    outside = make_folder(tmp_path / "outside", {"secret.png": b"s"})
    folder = make_folder(tmp_path / "set", FILES)
    (folder / "cat" / "secret.png").symlink_to(outside / "secret.png")
    (folder / "more").symlink_to(outside)
    (folder / "cat" / "again").symlink_to(folder)
    (folder / "bird").symlink_to(folder / "dog")
    (folder / "broken.png").symlink_to(folder / "nothing")
    assert contents(folder) == FILES | {"bird/a b.png": b"three"}


def test_a_name_that_is_no_utf8_can_still_be_read(tmp_path):
    folder = make_folder(tmp_path / "set", {"cat/1.png": b"1"})
    path = bytes(folder) + b"/cat/\xff.png"
    with open(path, "wb") as file:
        file.write(b"2")
    assert contents(folder) == {"1.png": b"1", "\\xff.png": b"2"}


def test_a_bomb_stops_at_the_limit(tmp_path):
    path = make_zip(
        tmp_path / "bomb.zip", {"a/zeros.png": bytes(3 << 20), "b/x.png": b""}
    )
    with open_source(path) as source:
        with pytest.raises(TooLarge, match="larger than 1 MiB"):
            source.read("a/zeros.png", limit=1 << 20)
        assert len(source.read("a/zeros.png", limit=3 << 20)) == 3 << 20


def test_members_that_share_their_bytes_are_refused(tmp_path):
    path = make_zip(tmp_path / "bomb.zip", {"a/1.png": bytes(1 << 20)})
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(500):
            twin = zipfile.ZipInfo(f"a/twin{number}.png")
            first = archive.infolist()[0]
            for field in (
                "CRC",
                "compress_size",
                "file_size",
                "header_offset",
                "compress_type",
            ):
                setattr(twin, field, getattr(first, field))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    with pytest.raises(InvalidInput, match="overlap"):
        open_source(path)


def sample_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", b"abc" * 50)
        archive.writestr("b/2.png", zlib.compress(b"xyz" * 50))
    return out.getvalue()


SAMPLE = sample_zip()


@given(
    st.lists(
        st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)),
        min_size=1,
        max_size=4,
    )
)
def test_a_changed_zip_reads_or_fails_with_a_meaning(tmp_path_factory, changes):
    data = bytearray(SAMPLE)
    for place, value in changes:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "mutated.zip"
    path.write_bytes(data)
    with suppress(MillError):
        contents(path)
