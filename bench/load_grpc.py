"""A closed-loop generator of unary gRPC calls over raw HTTP/2: every connection has one call in
flight.

`python -m bench.load_grpc HOST:PORT --body FILE --metadata NAME:VALUE --connections 32 --seconds 5`
prints one JSON line as `bench.load` does. FILE holds one serialised message. Frames are made once
and of an answer only frame heads and `grpc-status` are read, so that on shared cores the server
gets most of the time. The header table is set to size 0 (RFC 7541, 4.2): no header block then
depends on another, and one that was read once is known by its bytes.
"""

import argparse
import asyncio
import json
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import uvloop

from bench.load import Load, summary

METHOD = "/inference.GRPCInferenceService/ModelInfer"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA = 0
HEADERS = 1
RST_STREAM = 3
SETTINGS = 4
PING = 6
GOAWAY = 7
WINDOW_UPDATE = 8
CONTINUATION = 9
END_STREAM = 1
ACK = 1
END_HEADERS = 4
PADDED = 8
PRIORITY = 32
HEADER_TABLE_SIZE = 1
ENABLE_PUSH = 2
INITIAL_WINDOW = 4
MAX_FRAME = 5
MAX_HEADERS = 6
WINDOW = (1 << 31) - 1

# The Huffman code of RFC 7541, appendix B, for the letters of "grpc-status" and the digits of its
# values.
HUFFMAN = {
    "g": "100110",
    "r": "101100",
    "p": "101011",
    "c": "00100",
    "-": "010110",
    "s": "01000",
    "t": "01001",
    "a": "00011",
    "u": "101101",
    "0": "00000",
    "1": "00001",
    "2": "00010",
    "3": "011001",
    "4": "011010",
    "5": "011011",
    "6": "011100",
    "7": "011101",
    "8": "011110",
    "9": "011111",
}


def huffman(text: str) -> bytes:
    """A text of the letters above in HPACK's code, padded with ones."""
    bits = "".join(HUFFMAN[letter] for letter in text)
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


STATUS_NAMES = {b"grpc-status", huffman("grpc-status")}
STATUSES = {
    spelled: str(code)
    for code in range(17)
    for spelled in (str(code).encode(), huffman(str(code)))
}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame as in RFC 9113, 4.1."""
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    )


def header_block(authority: str, path: str, metadata: dict[str, str]) -> bytes:
    """The headers of a call: literals that are never indexed, names from the static table where it
    has them.
    """
    block = (
        b"\x83\x86"
        + _literal(4, path)
        + _literal(1, authority)
        + _literal(31, "application/grpc")
    )
    for name, value in {"te": "trailers", **metadata}.items():
        block += b"\x00" + _text(name.lower()) + _text(value)
    return block


def _literal(index: int, value: str) -> bytes:
    return (bytes([index]) if index < 15 else bytes([15, index - 15])) + _text(
        value
    )


def _text(value: str) -> bytes:
    data = value.encode()
    return _number(len(data), 7) + data


def _number(value: int, bits: int) -> bytes:
    top = (1 << bits) - 1
    if value < top:
        return bytes([value])
    out, value = [top], value - top
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def status_of(block: bytes) -> str:
    """`grpc-status` of a header block that uses no dynamic table; "" when it has none."""
    at = 0
    while at < len(block):
        first = block[at]
        if (
            first & 0x80 or first & 0xE0 == 0x20
        ):  # an indexed field; a new size of the table
            _, at = _read_number(block, at, 7 if first & 0x80 else 5)
            continue
        index, at = _read_number(block, at, 6 if first & 0x40 else 4)
        name = b""
        if not index:
            name, at = _read_text(block, at)
        value, at = _read_text(block, at)
        if name in STATUS_NAMES:
            return STATUSES.get(value, "unreadable")
    return ""


def _read_text(block: bytes, at: int) -> tuple[bytes, int]:
    size, at = _read_number(block, at, 7)
    return block[at : at + size], at + size


def _read_number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    top = (1 << bits) - 1
    value = block[at] & top
    at = at + 1
    shift = 0
    if value < top:
        return value, at
    while True:
        byte = block[at]
        value += (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


@dataclass
class Calls(Load):
    """What is sent, over all connections: `request` is the message with gRPC's prefix of five
    bytes.
    """

    headers: bytes = b""
    keep: bool = False
    frames: tuple[bytes, bytes, bytes, bytes] = (b"", b"", b"", b"")
    """A whole call as it goes over the wire, cut where the number of the stream goes."""
    answers: list[bytes] = field(default_factory=list)
    known: dict[bytes, str] = field(default_factory=dict)


class Connection(asyncio.Protocol):
    """One connection; the next call follows each answer on a stream of its own."""

    def __init__(self, calls: Calls, done: "asyncio.Future[None]") -> None:
        self.calls, self.done = calls, done
        self.rest = b""
        self.stream = 1
        self.received = 0
        self.window = 65535
        self.stream_window = 65535
        self.initial = 65535
        self.max_frame = 16384
        self.unsent = b""
        self.answer = b""
        self.block = b""
        self.ends, self.started = 0, 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        wanted = {
            HEADER_TABLE_SIZE: 0,
            ENABLE_PUSH: 0,
            INITIAL_WINDOW: WINDOW,
            MAX_FRAME: 1 << 20,
        }
        settings = b"".join(
            struct.pack(">HI", *item) for item in wanted.items()
        )
        transport.write(PREFACE + frame(SETTINGS, 0, 0, settings))
        transport.write(
            frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW - 65535))
        )

    def send(self) -> None:
        """Start the next call."""
        self.started = time.perf_counter()
        calls, size = self.calls, len(self.calls.request)
        self.stream_window = self.initial
        if (
            size <= self.max_frame
            and size <= self.window
            and size <= self.initial
        ):
            self.window -= size
            stream, (head, block, data, message) = (
                self.stream.to_bytes(4, "big"),
                calls.frames,
            )
            self.transport.write(
                b"".join((head, stream, block, data, stream, message))
            )
            return
        self.transport.write(
            frame(HEADERS, END_HEADERS, self.stream, calls.headers)
        )
        self.unsent = calls.request
        self.send_more()

    def send_more(self) -> None:
        """What the windows allow of a message that is larger than they are."""
        while (
            self.unsent
            and (room := min(self.max_frame, self.window, self.stream_window))
            > 0
        ):
            part, self.unsent = self.unsent[:room], self.unsent[room:]
            self.window -= len(part)
            self.stream_window -= len(part)
            self.transport.write(
                frame(DATA, 0 if self.unsent else END_STREAM, self.stream, part)
            )

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        at, size = 0, len(data)
        while size - at >= 9:
            end = at + 9 + (data[at] << 16 | data[at + 1] << 8 | data[at + 2])
            if end > size:
                break
            kind, flags = data[at + 3], data[at + 4]
            if kind == DATA:
                self.on_data(data[at + 9 : end], flags)
            elif kind in (HEADERS, CONTINUATION):
                self.on_headers(kind, data[at + 9 : end], flags)
            else:
                self.on_other(
                    kind,
                    flags,
                    int.from_bytes(data[at + 5 : at + 9], "big"),
                    data[at + 9 : end],
                )
            at = end
        self.rest = data[at:]

    def on_data(self, payload: bytes, flags: int) -> None:
        """A part of an answer; the connection's window is opened again long before it is used
        up.
        """
        self.received += len(payload)
        if self.received > WINDOW // 2:
            self.transport.write(
                frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self.received))
            )
            self.received = 0
        if self.calls.keep:
            self.answer += (
                payload[1 : len(payload) - payload[0]]
                if flags & PADDED
                else payload
            )
        if flags & END_STREAM:  # a server of gRPC ends with trailers
            self.finish("no trailers")

    def on_headers(self, kind: int, payload: bytes, flags: int) -> None:
        """Headers or trailers; the status is in the last of them."""
        if kind == HEADERS:
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            self.block = payload[5:] if flags & PRIORITY else payload
            self.ends = flags & END_STREAM
        else:
            self.block += payload
        if not flags & END_HEADERS or not self.ends:
            return
        status = self.calls.known.get(self.block)
        if status is None:
            status = status_of(self.block) or "none"
            if len(self.calls.known) < 1000:
                self.calls.known[self.block] = status
        self.finish(status)

    def on_other(
        self, kind: int, flags: int, stream: int, payload: bytes
    ) -> None:
        """Settings, pings, windows and ends."""
        if kind == WINDOW_UPDATE:
            step = int.from_bytes(payload, "big")
            if stream == 0:
                self.window += step
            elif stream == self.stream:
                self.stream_window += step
            self.send_more()
        elif kind == PING and not flags & ACK:
            self.transport.write(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS and not flags & ACK:
            self.on_settings(payload)
        elif kind == RST_STREAM and stream == self.stream:
            self.finish(f"reset {int.from_bytes(payload, 'big')}")
        elif kind == GOAWAY:
            self.transport.close()

    def on_settings(self, payload: bytes) -> None:
        """The server's limits; its first ones start the calls."""
        before = self.initial
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW:
                self.initial = value
            elif name == MAX_FRAME:
                self.max_frame = min(value, 1 << 20)
        self.stream_window += self.initial - before
        self.transport.write(frame(SETTINGS, ACK, 0))
        if not self.started:
            self.send()

    def finish(self, status: str) -> None:
        """A call has its answer: note it and go on."""
        now, calls = time.perf_counter(), self.calls
        calls.note(self.started, now, status, good="0")
        if calls.keep:
            calls.answers.append(self.answer[5:])
            self.answer = b""
        self.stream += 2
        # refused before it was sent whole: what is left must not go into the next stream
        if self.unsent:
            self.unsent = b""
        if now < calls.until:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self.calls.until:
            self.calls.note(0, 0, "connection lost", good="0")
        if not self.done.done():
            self.done.set_result(None)


def calls_of(
    address: str, message: bytes, metadata: dict[str, str], method: str = METHOD
) -> Calls:
    """Calls of one message to a method."""
    request = struct.pack(">BI", 0, len(message)) + message
    headers = header_block(address, method, metadata)
    head = frame(HEADERS, END_HEADERS, 0, headers)
    data = frame(DATA, END_STREAM, 0, request)
    return Calls(
        request, headers=headers, frames=(head[:5], headers, data[:5], request)
    )


async def drive(
    address: str, calls: Calls, connections: int, seconds: float, warmup: float
) -> Calls:
    """Keep `connections` calls in flight for a time."""
    host, _, port = address.rpartition(":")
    await calls.run(
        lambda done: Connection(calls, done),
        host,
        int(port),
        connections,
        seconds,
        warmup,
    )
    return calls


def call_once(address: str, message: bytes, metadata: dict[str, str]) -> bytes:
    """The answer to one call; raises `RuntimeError` with the status of a failed one."""
    calls = calls_of(address, message, metadata)
    calls.keep = True
    uvloop.run(drive(address, calls, 1, 0, 0))
    if calls.failed or not calls.answers:
        raise RuntimeError(
            f"the gRPC call failed: {calls.statuses or 'the connection was closed'}"
        )
    return calls.answers[0]


def main() -> None:
    """Drive one server and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="HOST:PORT")
    parser.add_argument(
        "--body", required=True, help="file with one serialised message"
    )
    parser.add_argument(
        "--metadata", action="append", default=[], help="NAME:VALUE"
    )
    parser.add_argument("--method", default=METHOD)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--warmup", type=float, default=1)
    told = parser.parse_args()
    metadata = dict(one.partition(":")[::2] for one in told.metadata)
    with open(told.body, "rb") as file:
        calls = calls_of(told.address, file.read(), metadata, told.method)
    uvloop.run(
        drive(told.address, calls, told.connections, told.seconds, told.warmup)
    )
    print(json.dumps(summary(calls, told.seconds)))


if __name__ == "__main__":
    main()
