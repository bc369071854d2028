"""Settings: arguments over variables, variables over the file, the file over the defaults."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from modelmill.errors import InvalidInput
from modelmill.settings import default_home, exposed_password, read_settings


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("MODELMILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MODELMILL_HOME", str(tmp_path))
    return tmp_path


def test_defaults_are_complete(home):
    settings = read_settings()
    assert (settings.home, settings.host, settings.port) == (
        home,
        "127.0.0.1",
        8080,
    )
    assert settings.threads >= 1
    assert settings.limits.queue == 2048


def test_each_source_wins_over_the_next(home, monkeypatch):
    assert read_settings().port == 8080
    (home / "modelmill.toml").write_text("port = 1001\n")
    assert read_settings().port == 1001
    monkeypatch.setenv("MODELMILL_PORT", "1002")
    assert read_settings().port == 1002
    assert read_settings(port=1003).port == 1003
    assert read_settings(port=None).port == 1002


def test_levels_are_merged_leaf_by_leaf(home, monkeypatch):
    (home / "modelmill.toml").write_text("[limits]\nqueue = 10\nbatch = 20\n")
    monkeypatch.setenv("MODELMILL_LIMITS__QUEUE", "500")
    limits = read_settings().limits
    assert (limits.queue, limits.batch, limits.timeout_seconds) == (500, 20, 60)


def test_the_file_of_a_home_that_is_given_counts(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "modelmill.toml").write_text("port = 1004\n")
    assert read_settings(home=other).port == 1004


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MODELMILL_PORT", "many", "port"),
        ("MODELMILL_PORT", "70000", "port"),
        ("MODELMILL_THREADS", "0", "threads"),
        ("MODELMILL_LIMITS__QUEUE", "0", r"limits\.queue"),
        ("MODELMILL_LIMITS__QEUE", "5", r"limits\.qeue"),
        ("MODELMILL_LIMITS", "5", "limits"),
        ("MODELMILL_LIMITS", "five", "limits"),
    ],
)
def test_a_wrong_variable_is_named_in_one_line(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=says) as caught:
        read_settings()
    assert len(caught.value.message.splitlines()) == 1


@pytest.mark.parametrize(
    "content", ["port = 'many'\n", "port = \n", "limits = 5\n", "\xff"]
)
def test_a_broken_file_is_said_to_be_broken(home, content):
    (home / "modelmill.toml").write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidInput):
        read_settings()


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        read_settings().port = 1


def test_the_home_is_absolute(monkeypatch):
    monkeypatch.setenv("MODELMILL_HOME", "~/mill")
    assert default_home() == Path.home() / "mill"
    monkeypatch.setenv("MODELMILL_HOME", "mill")
    assert default_home().is_absolute()


def test_a_file_that_begins_with_a_byte_order_mark_is_read(home):
    (home / "modelmill.toml").write_bytes(b"\xef\xbb\xbfport = 1001\n")
    assert read_settings().port == 1001


SECRET = 'database = "postgresql+psycopg://mill:s3cret@db/mill"\n'


@pytest.mark.parametrize(
    ("text", "mode", "warns"),
    [
        (SECRET, 0o644, True),
        (SECRET, 0o640, True),
        (SECRET, 0o600, False),
        (
            'database = "postgresql://db/mill?user=mill&password=s3cret"',
            0o644,
            True,
        ),
        ('database = "postgresql://mill@db/mill"', 0o644, False),
        ("port = 1001", 0o644, False),
        ("port = ", 0o644, False),
    ],
)
def test_a_password_that_others_may_read_is_warned_of(home, text, mode, warns):
    path = home / "modelmill.toml"
    path.write_text(text)
    path.chmod(mode)
    said = exposed_password(home)
    assert bool(said) == warns
    assert "s3cret" not in said
    if warns:
        assert f"chmod 600 {path}" in said


def test_a_home_without_a_file_of_settings_warns_of_nothing(home):
    assert exposed_password(home) == ""
