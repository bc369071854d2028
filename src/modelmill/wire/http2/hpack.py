"""Header blocks of HTTP/2 (RFC 7541): decoded with a memory for blocks that repeat, encoded as
plain literals.
"""

from collections.abc import Iterable
from typing import Any, Generic, TypeVar, cast

import hpack
from hpack.exceptions import HPACKError

T = TypeVar("T")

Headers = dict[bytes, bytes]

LIST_BYTES = 16 << 10
"""Largest list of headers that is taken, as in SETTINGS_MAX_HEADER_LIST_SIZE."""
BLOCKS, BLOCK_BYTES = 64, 2048
OK = b"\x88"
"""`:status 200`, which has a number of its own."""
SHRINK = b"\x20"
"""Tells the peer that the table of the encoder is empty, which ours always is."""


class Malformed(ValueError):
    """Headers that can't belong to a request."""


class HeaderReader(Generic[T]):
    """What the header blocks of one connection say, through `read`, a function of the headers.

    A client repeats the same block for call after call. A block that does not change the table of
    the decoder means the same until the table changes, so its meaning is kept.
    """

    def __init__(self, read: Any) -> None:
        self._read = read
        self._decoder = hpack.Decoder(max_header_list_size=LIST_BYTES)
        self._known: dict[bytes, T] = {}

    def __call__(self, block: bytes) -> T:
        """The meaning of a block; raises `HPACKError` when the connection can't go on, and what
        `read` raises.
        """
        known = self._known.get(block)
        return self._read_new(block) if known is None else known

    def _read_new(self, block: bytes) -> T:
        """The meaning of a block, which is kept if the table stays as it is."""
        entries = self._decoder.header_table.dynamic_entries
        before = (len(entries), entries[0] if entries else None)
        fields = self._fields(block)
        # Every entry is a new tuple, so the first tells whether one was added.
        if len(entries) != before[0] or (
            entries and entries[0] is not before[1]
        ):
            self._known.clear()
            return cast(T, self._read(_joined(fields)))
        meaning = cast(T, self._read(_joined(fields)))
        resizes = block[:1] > b"\x1f" and block[:1] < b"\x40"
        if len(block) <= BLOCK_BYTES and not resizes:
            if len(self._known) >= BLOCKS:
                self._known.clear()
            self._known[block] = meaning
        return meaning

    def _fields(self, block: bytes) -> Iterable[tuple[bytes, bytes]]:
        try:
            return cast(
                "Iterable[tuple[bytes, bytes]]",
                self._decoder.decode(block, raw=True),
            )
        except (IndexError, ValueError) as error:
            # A truncated block may surface as either
            raise HPACKError(str(error)) from error


def _joined(fields: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Fields by name; what may come twice is joined as the RFC has it."""
    headers: Headers = {}
    for name, value in fields:
        if name in headers:
            if name[:1] == b":":
                raise Malformed("a pseudo-header comes twice")
            value = (
                headers[name] + (b"; " if name == b"cookie" else b",") + value
            )
        headers[name] = value
    return headers


def literal(name: bytes, value: bytes) -> bytes:
    """A header that neither side remembers."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    """A whole number with a prefix of seven bits (RFC 7541 section 5.1)."""
    if size < 127:
        return bytes((size,))
    out, size = bytearray(b"\x7f"), size - 127
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)
