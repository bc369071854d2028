"""Protection of browsers: requests of other sites are refused, and admin answers say what a page
may do.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from modelmill.errors import Forbidden
from modelmill.protocols.base import Scope, Send

ASSETS = "/docs/assets/"
CLOSED = b"default-src 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of what is no page."""
PAGE = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "connect-src 'self'; font-src 'self'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self'"
)
"""Content-Security-Policy of a page, to which the digests of its inline scripts are added."""
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def refuse_other_sites(headers: Mapping[bytes, bytes]) -> None:
    """Raises `Forbidden` for what a browser sends for a page of another site."""
    if headers.get(b"sec-fetch-site", b"").lower() == b"cross-site":
        raise Forbidden(
            "a page of another site may not call this: send the request from a program, or from "
            "a page of this site"
        )


def protection(
    path: str, policy: bytes = CLOSED
) -> tuple[tuple[bytes, bytes], ...]:
    """Headers of an answer of the admin API: it is not kept, framed or taken for another type."""
    headers = (
        (b"content-security-policy", policy),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
    )
    if path.startswith(
        ASSETS
    ):  # they come with the release and hold nothing of anybody's
        return headers
    return (*headers, (b"cache-control", b"no-store"))


def protected(scope: Scope, send: Send) -> Send:
    """`send` for the answer of the admin API, with headers that protect browsers.

    The start of a page is held back until its first part shows which scripts are its own.
    """
    return _Protected(scope["path"], send).send


class _Protected:
    """The answer to one request: its path, where it goes, and the start of a page that is held
    back.
    """

    def __init__(self, path: str, send: Send) -> None:
        self._path, self._send = path, send
        self._page: dict[str, Any] | None = None

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message of the answer, the start with protection."""
        if message["type"] == "http.response.start":
            if _is_page(message["headers"]):
                self._page = message
                return
            message = _with(message, protection(self._path))
        elif self._page is not None:
            page, self._page = self._page, None
            policy = _policy(message.get("body", b""))
            await self._send(_with(page, protection(self._path, policy)))
        await self._send(message)


def _with(
    start: dict[str, Any], headers: Iterable[tuple[bytes, bytes]]
) -> dict[str, Any]:
    return {**start, "headers": [*start["headers"], *headers]}


def _is_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"text/html")
        for name, value in headers
    )


def _policy(page: bytes) -> bytes:
    digests = (sha256(script).digest() for script in _SCRIPT.findall(page))
    own = (f" 'sha256-{b64encode(digest).decode()}'" for digest in digests)
    return (PAGE + "".join(own)).encode()
