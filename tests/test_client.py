"""The SDK: which platform it speaks to, and with which key."""

from pathlib import Path

import pytest

from modelmill import Client
from modelmill.errors import InvalidInput, Unavailable


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose platform is at an address."""
    for name in ("MODELMILL_URL", "MODELMILL_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "address").write_text("http://127.0.0.1:1\n")
    (tmp_path / "admin.key").write_text("secret\n")
    return tmp_path


def test_a_home_gives_the_address_and_the_key_of_its_platform(
    home: Path,
) -> None:
    with Client(home=home) as client:
        assert (client.url, client.key) == ("http://127.0.0.1:1", "secret")


def test_the_key_of_a_home_is_sent_to_no_other_platform(home: Path) -> None:
    with Client("http://other.example", home=home) as client:
        assert client.key == ""


def test_a_url_needs_its_scheme(home: Path) -> None:
    with pytest.raises(InvalidInput, match=r"write http://127\.0\.0\.1:8080"):
        Client("127.0.0.1:8080", home=home)


def test_without_a_platform_it_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODELMILL_URL", raising=False)
    with pytest.raises(Unavailable, match="modelmill up"):
        Client(home=tmp_path)


def test_a_platform_that_is_gone_is_said_to_be(home: Path) -> None:
    with (
        Client(home=home) as client,
        pytest.raises(
            Unavailable, match=r"no platform answers at http://127\.0\.0\.1:1"
        ),
    ):
        client.jobs()
