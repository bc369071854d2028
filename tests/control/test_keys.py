"""Keys: the admin's for its owner's eyes, all kept as hashes; names once per project, and one admin
key at least.
"""

import pytest
from sqlalchemy import select

from modelmill.control.db import KEYS, ApiKey, Revision
from modelmill.control.deployments import Deployments
from modelmill.control.keys import Keys, digest_of, ensure_admin_key
from modelmill.errors import Conflict, InvalidInput, NotFound
from modelmill.types import KeyInfo


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
def test_a_key_that_is_lost_or_spoilt_is_written_again(
    database, tmp_path, content
):
    path = ensure_admin_key(database, tmp_path)
    first = path.read_text()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    again = ensure_admin_key(database, tmp_path)
    assert again.read_text() != first
    assert again.stat().st_mode & 0o777 == 0o600
    assert digest_of(again.read_text().strip()) in {
        row.digest for row in rows(database)
    }


def test_gateways_learn_of_a_new_key(database, tmp_path):
    def revision():
        with database.session() as session:
            return session.scalars(
                select(Revision.value).where(Revision.id == KEYS)
            ).one()

    before = revision()
    ensure_admin_key(database, tmp_path)
    assert revision() == before + 1
    ensure_admin_key(database, tmp_path)
    assert revision() == before + 1


# ---- keys that people make


@pytest.fixture
def keys(database, tmp_path):
    ensure_admin_key(database, tmp_path)
    return Keys(database)


def test_a_key_is_returned_once_and_kept_as_a_hash(keys, database, project):
    row, key = keys.add(project, "shop", "user", 2.5, 0)
    assert (row.name, row.role, row.rate, row.burst, row.digest) == (
        "shop",
        "user",
        2.5,
        3,
        digest_of(key),
    )
    assert keys.add(project, "other", "user", 0, 0)[1] != key
    assert [row.name for row in keys.all(project)] == ["admin", "other", "shop"]


def test_gateways_get_name_role_and_limits(keys, database, registry, project):
    before = Deployments(database, registry).snapshot(None)
    _, key = keys.add(project, "shop", "user", 2.5, 10)
    snapshot = Deployments(database, registry).snapshot(before)
    assert snapshot.keys[digest_of(key)] == KeyInfo(
        digest=digest_of(key),
        project="default",
        role="user",
        name="shop",
        rate=2.5,
        burst=10,
    )
    keys.remove(project, "shop")
    assert (
        digest_of(key)
        not in Deployments(database, registry).snapshot(snapshot).keys
    )


def test_a_name_is_taken_once_in_a_project(keys, project, other):
    keys.add(project, "shop", "user", 0, 0)
    with pytest.raises(Conflict, match="there is a key 'shop' already"):
        keys.add(project, "shop", "admin", 0, 0)
    keys.add(other, "shop", "user", 0, 0)
    keys.remove(other, "shop")
    assert [row.name for row in keys.all(project)] == ["admin", "shop"]
    assert keys.all(other) == []


def test_keys_of_another_project_are_not_there(keys, project, other):
    with pytest.raises(
        NotFound, match="unknown key 'admin'; there are none yet"
    ):
        keys.remove(other, "admin")


def test_the_last_admin_key_of_a_project_stays(keys, project, other):
    keys.add(other, "chief", "admin", 0, 0)
    keys.add(project, "shop", "user", 0, 0)
    for number, name in ((project, "admin"), (other, "chief")):
        with pytest.raises(Conflict, match=f"'{name}' is the last admin key"):
            keys.remove(number, name)
    keys.add(project, "deputy", "admin", 0, 0)
    keys.remove(project, "admin")
    assert [row.name for row in keys.all(project)] == ["deputy", "shop"]


def test_the_file_of_a_removed_admin_key_opens_nothing_and_is_written_again(
    keys, database, project, tmp_path
):
    keys.add(project, "deputy", "admin", 0, 0)
    old = (tmp_path / "admin.key").read_text()
    keys.remove(project, "admin")
    assert ensure_admin_key(database, tmp_path).read_text() != old
    assert [row.name for row in keys.all(project)] == ["admin", "deputy"]


@pytest.mark.parametrize("name", ["", "a b", "../x", "-", "x" * 65, "\n"])
def test_names_are_strict(keys, project, name):
    with pytest.raises(InvalidInput, match="not a valid name"):
        keys.add(project, name, "user", 0, 0)


def test_a_burst_needs_a_rate(keys, project):
    with pytest.raises(InvalidInput, match="give a rate too"):
        keys.add(project, "shop", "user", 0, 5)
