"""The key of a request, from its headers."""

import base64
from collections.abc import Iterable, Mapping

from modelmill.errors import InvalidInput, Unauthenticated


def key_of(headers: Mapping[bytes, bytes]) -> str | None:
    """The key of a request, which is a bearer token; raises `Unauthenticated` for Basic.

    A browser sends a password that it once prompted for with every request, also with those of
    other sites.
    """
    scheme, _, value = _authorization(headers)
    if scheme.lower() == "basic":
        raise Unauthenticated(
            "a password is taken only for looking at the admin API: send the key as "
            "'Authorization: Bearer KEY'"
        )
    return (value.strip() or None) if scheme.lower() == "bearer" else None


def admin_key_of(headers: Mapping[bytes, bytes], method: str) -> str | None:
    """The key of a request to the admin API: to look at it also the password of Basic, which is
    what a browser asks for.
    """
    scheme, _, value = _authorization(headers)
    if method not in ("GET", "HEAD") or scheme.lower() != "basic":
        return key_of(headers)
    return _password(value)


def _password(value: str) -> str | None:
    """The password of Basic; None where it is empty or damaged."""
    try:
        text = base64.b64decode(value, validate=True).decode("latin-1")
    except ValueError:  # also what base64 raises
        return None
    return text.partition(":")[2] or None


def refuse_several_keys(given: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises `InvalidInput` for a request with several Authorization headers: another server could
    look at another one of them.
    """
    count = sum(name == b"authorization" for name, _ in given)
    if count > 1:
        raise InvalidInput(
            f"a request has one Authorization header; this one has {count}"
        )


def _authorization(headers: Mapping[bytes, bytes]) -> tuple[str, str, str]:
    return headers.get(b"authorization", b"").decode("latin-1").partition(" ")
