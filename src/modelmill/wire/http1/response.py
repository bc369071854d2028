"""The head of an HTTP/1.1 response."""

from collections.abc import Sequence

from uvicorn.protocols.http.httptools_impl import STATUS_LINE


def response_head(
    status: int,
    kind: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    length: int,
    keep_alive: bool,
) -> list[bytes]:
    """Status line and headers of an answer, in parts."""
    parts = [STATUS_LINE[status]]
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    parts += (
        b"content-type: ",
        kind,
        b"\r\ncontent-length: ",
        b"%d" % length,
        b"\r\n",
    )
    parts.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    return parts
