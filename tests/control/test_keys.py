"""The admin key: for its owner's eyes, kept as a hash, written again when it is lost."""

import pytest
from sqlalchemy import select

from modelmill.control.db import ApiKey, Revision
from modelmill.control.keys import digest_of, ensure_admin_key


def rows(database):
    with database.session() as session:
        return session.scalars(select(ApiKey)).all()


def test_the_file_is_for_its_owner_alone(database, tmp_path):
    path = ensure_admin_key(database, tmp_path)
    assert path == tmp_path / "admin.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_text().strip()) > 40


def test_only_a_hash_is_stored(database, tmp_path):
    key = ensure_admin_key(database, tmp_path).read_text().strip()
    (row,) = rows(database)
    assert (row.digest, row.role) == (digest_of(key), "admin")
    database.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("mill.db*"))
    assert key.encode() not in stored
    assert digest_of(key).encode() in stored


def test_the_key_stays_from_start_to_start(database, tmp_path):
    first = ensure_admin_key(database, tmp_path).read_text()
    assert ensure_admin_key(database, tmp_path).read_text() == first
    assert len(rows(database)) == 1


@pytest.mark.parametrize("content", [None, b"", b"mm_another", b"\xff\xfe"])
def test_a_key_that_is_lost_or_spoilt_is_written_again(database, tmp_path, content):
    path = ensure_admin_key(database, tmp_path)
    first = path.read_text()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    again = ensure_admin_key(database, tmp_path)
    assert again.read_text() != first
    assert again.stat().st_mode & 0o777 == 0o600
    assert digest_of(again.read_text().strip()) in {row.digest for row in rows(database)}


def test_gateways_are_told_of_a_new_key(database, tmp_path):
    def revision():
        with database.session() as session:
            return session.scalars(select(Revision.value)).one()

    before = revision()
    ensure_admin_key(database, tmp_path)
    assert revision() == before + 1
    ensure_admin_key(database, tmp_path)
    assert revision() == before + 1
