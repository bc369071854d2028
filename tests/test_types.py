"""Names become paths and URLs, so they are strict; a reference is NAME, NAME:VERSION or
NAME@ALIAS.
"""

from pathlib import PurePosixPath
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.errors import InvalidInput
from modelmill.types import (
    NAME,
    JobSpec,
    Manifest,
    Reference,
    check_name,
    parse_reference,
)
from tests.helpers.bundles import a_manifest

NAMES = st.from_regex(NAME, fullmatch=True)
NO_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/a",
    "a\\b",
    "a\0",
    "a\n",
    "\n",
    " a",
    "a b",
    "-a",
    "a-",
    ".a",
    "_a",
    "x" * 65,
    "né",
    "数字",
    "a٣",
    "a\u017f",
    "a:1",
    "a@b",
    "a%2f",
    "a?b",
    "a#b",
    "~",
    "$HOME",
    "a;b",
    "\ud800",
]
NO_REFERENCES = [
    "",
    ":",
    "@",
    ":3",
    "@champion",
    "a:",
    "a@",
    "a:0",
    "a:-1",
    "a:01",
    "a:1.0",
    "a:x",
    "a:³",
    "a:1:2",
    "a@b@c",
    "a:1@b",
    "a@b:1",
    "a: 1",
    "a:1\n",
    "../a:1",
    "a:9999999999",
    "a@../b",
]


@pytest.mark.parametrize(
    "name", ["a", "7", "digits", "Digits-2", "a.b_c-d", "x" * 64]
)
def test_a_plain_name_is_taken(name):
    assert check_name("model", name) == name


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_unsafe_in_a_path_or_url_is_no_name(name):
    with pytest.raises(InvalidInput, match="is not a valid name: use 1 to 64"):
        check_name("model", name)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=70) | NAMES)
def test_a_name_that_is_taken_is_one_safe_step_of_a_path(text):
    try:
        name = check_name("model", text)
    except InvalidInput:
        return
    assert PurePosixPath("/home", name).parent == PurePosixPath("/home")
    assert PurePosixPath(name).parts == (name,)
    assert name not in (".", "..")
    assert quote(name, safe="") == name


@settings(max_examples=60, deadline=None)
@given(NAMES, st.integers(1, 999_999_999), NAMES)
def test_every_way_to_name_a_model_is_read(name, version, alias):
    assert parse_reference(name) == Reference(name=name)
    assert parse_reference(f"{name}:{version}") == Reference(
        name=name, version=version
    )
    assert parse_reference(f"{name}@{alias}") == Reference(
        name=name, alias=alias
    )


@pytest.mark.parametrize("text", NO_REFERENCES)
def test_anything_else_is_no_reference(text):
    with pytest.raises(InvalidInput):
        parse_reference(text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab:@1./\0\n-é"), max_size=8))
def test_a_reference_is_read_or_refused_in_words(text):
    try:
        found = parse_reference(text)
    except InvalidInput:
        return
    assert NAME.fullmatch(found.name)
    assert found.version is None or found.alias is None


def test_nouns_cross_processes_as_json():
    manifest = a_manifest(files={"model.onnx": "0" * 64})
    assert (
        msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
        == manifest
    )
    spec = JobSpec(
        job=1, kind="train", folder="/x", threads=2, settings={"epochs": "3"}
    )
    assert msgspec.json.decode(msgspec.json.encode(spec), type=JobSpec) == spec


def test_nouns_are_immutable():
    with pytest.raises(AttributeError):
        a_manifest().task = "other"
