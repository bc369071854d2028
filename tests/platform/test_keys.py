"""Access keys: made and shown once, limited to what their role may do, withdrawn for good."""

import json
import re
from collections.abc import Iterator

import httpx2
import pytest

from modelmill import Client
from modelmill.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthenticated,
)
from tests.platform.conftest import Platform, until


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with nothing but its admin key, which every test leaves so."""
    running = Platform(tmp_path_factory.mktemp("keys") / "home")
    yield running
    running.stop()


def knows(platform: Platform, key: str) -> bool:
    headers = {"Authorization": f"Bearer {key}"}
    return (
        httpx2.get(f"{platform.url}/v1/models", headers=headers).status_code
        == 200
    )


def test_a_key_is_made_listed_and_removed_by_commands(empty: Platform) -> None:
    made = empty.run("key", "add", "web-shop", "--rate", "2.5")
    key = made.stdout.strip()
    assert re.fullmatch(r"mm_[\w-]{43}", key)
    assert knows(empty, key)
    listed = empty.run("key", "list").stdout
    assert "web-shop" in listed
    assert key not in listed
    rows = {
        row["name"]: row
        for row in json.loads(empty.run("key", "list", "--json").stdout)
    }
    assert rows.keys() == {"admin", "web-shop"}
    assert (
        rows["web-shop"].items()
        >= {"role": "user", "rate": 2.5, "burst": 3}.items()
    )
    assert "key" not in rows["web-shop"]
    assert empty.run("key", "remove", "web-shop").stdout == "removed web-shop\n"
    until(lambda: not knows(empty, key))
    again = empty.run("key", "remove", "web-shop")
    assert (again.returncode, again.stderr) == (
        1,
        "error: unknown key 'web-shop'; there are: admin\n",
    )


def test_json_shows_the_key_once_and_nothing_keeps_it(empty: Platform) -> None:
    made = json.loads(
        empty.run("key", "add", "once", "--role", "admin", "--json").stdout
    )
    assert made["role"] == "admin"
    assert all(
        made["key"].encode() not in path.read_bytes()
        for path in empty.home.rglob("*")
        if path.is_file()
    )
    empty.client.remove_key("once")


def test_a_user_predicts_and_looks_and_nothing_else(empty: Platform) -> None:
    made = empty.client.add_key("reader")
    with Client(empty.url, made["key"]) as reader:
        for path in ("/v1/models", "/v2"):
            assert reader._get(path)
        with pytest.raises(NotFound, match="unknown model"):
            reader.predict("absent", b"x")
        for forbidden in (
            reader.keys,
            reader.jobs,
            lambda: reader.add_key("more", role="admin"),
            lambda: reader.remove_key("admin"),
            lambda: reader.deploy("absent"),
        ):
            with pytest.raises(Forbidden, match="this needs an admin key"):
                forbidden()
        empty.client.remove_key("reader")
        until(lambda: not knows(empty, made["key"]))
        with pytest.raises(Unauthenticated):
            reader.models()


def test_an_admin_may_make_and_remove_keys(empty: Platform) -> None:
    made = empty.client.add_key("deputy", "admin")
    with Client(empty.url, made["key"]) as deputy:
        deputy.add_key("helper", rate=10, burst=50)
        rows = deputy.keys()
        assert {row["name"]: row["burst"] for row in rows} == {
            "admin": 0,
            "deputy": 0,
            "helper": 50,
        }
        deputy.remove_key("helper")
        deputy.remove_key("deputy")


def test_the_last_admin_key_stays(empty: Platform) -> None:
    with pytest.raises(
        Conflict, match="'admin' is the last admin key: add another one first"
    ):
        empty.client.remove_key("admin")
    assert knows(empty, empty.client.key)


def test_a_name_is_taken_once(empty: Platform) -> None:
    empty.client.add_key("twice")
    with pytest.raises(Conflict, match="there is a key 'twice' already"):
        empty.client.add_key("twice")
    with pytest.raises(Conflict, match=r"is the name of the key in admin\.key"):
        empty.client.add_key("admin")
    empty.client.remove_key("twice")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": ""}, "not a valid name"),
        ({"name": "../x"}, "not a valid name"),
        ({"name": "a b"}, "not a valid name"),
        ({"name": "x" * 65}, "not a valid name"),
        (
            {"name": "x", "role": "root"},
            "role: input should be 'admin' or 'user'",
        ),
        ({"name": "x", "rate": -1}, "rate: input should be greater"),
        ({"name": "x", "rate": 1e9}, "rate: input should be less"),
        (
            {"name": "x", "rate": 1, "burst": -1},
            "burst: input should be greater",
        ),
        ({"name": "x", "burst": 5}, "give a rate too"),
    ],
)
def test_what_makes_no_sense_is_refused(
    empty: Platform, values: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        empty.client.add_key(**values)  # type: ignore[arg-type]
    rows = empty.client.keys()
    assert [row["name"] for row in rows] == ["admin"]


def test_a_key_is_never_cached_on_its_way(empty: Platform) -> None:
    made = httpx2.post(
        f"{empty.url}/api/v1/keys",
        json={"name": "fresh"},
        headers=empty.headers,
    )
    assert (made.status_code, made.headers["cache-control"]) == (
        201,
        "no-store",
    )
    empty.client.remove_key("fresh")
