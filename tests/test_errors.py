"""Every failure has a code, one line for people, and survives the way to another process."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill import errors
from modelmill.errors import (
    BY_CODE,
    InvalidInput,
    MillError,
    NotFound,
    StorageFull,
    from_code,
    from_os,
    unknown,
)
from modelmill.protocols.base import STATUS


def kinds(kind: type[MillError] = MillError) -> list[type[MillError]]:
    return [
        kind,
        *(below for sub in kind.__subclasses__() for below in kinds(sub)),
    ]


def test_every_failure_has_a_code_of_its_own_and_an_http_status():
    own = [kind for kind in kinds() if kind.__module__ == errors.__name__]
    assert sorted(kind.code for kind in own) == sorted(BY_CODE)
    assert BY_CODE.keys() == STATUS.keys()


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_a_failure_comes_out_of_another_process_as_it_went_in(code):
    error = from_code(code, "why", retry_after=2.0)
    assert (type(error), error.code, error.message, error.retry_after) == (
        BY_CODE[code],
        code,
        "why",
        2.0,
    )


def test_an_unknown_code_is_an_internal_failure():
    assert type(from_code("from the future", "why")) is MillError


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_a_message_is_one_line(text):
    assert len(MillError(text).message.splitlines()) <= 1


@pytest.mark.parametrize(
    ("name", "names", "says"),
    [
        ("digit", ["digits", "reviews"], "did you mean 'digits'?"),
        ("zzz", ["digits", "reviews"], "there are: digits, reviews"),
        ("digits", [], "there are none yet"),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_exist(name, names, says):
    error = unknown("model", name, names)
    assert isinstance(error, NotFound)
    assert says in error.message
    assert f"unknown model '{name}'" in error.message


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EACCES, MillError),
        (errno.EIO, MillError),
    ],
)
def test_a_full_disk_has_an_error_code_of_its_own(number, kind):
    error = from_os(OSError(number, "no", "/x/y"), "writing the bundle")
    assert type(error) is kind
    assert "writing the bundle" in error.message
    assert "/x/y" in error.message


def test_what_is_too_large_is_also_invalid():
    assert issubclass(errors.TooLarge, InvalidInput)
