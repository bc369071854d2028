"""HTTP/2 for gRPC, as those see it who speak it badly: nothing they do disturbs others or ends the
server.
"""

import asyncio
import os
import random
import socket
import struct
import threading
from contextlib import suppress
from itertools import pairwise

import grpc
import hpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.protocols.v2.grpc import server as grpc_server
from modelmill.protocols.v2.grpc.call import read_head
from modelmill.protocols.v2.grpc.messages import message
from modelmill.types import TensorSpec
from modelmill.wire.http2 import connection as http2
from modelmill.wire.http2.hpack import HeaderReader, literal
from tests.helpers.gateways import a_route
from tests.helpers.grpc_api import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    KEY,
    PING,
    PREFACE,
    PRIORITY,
    PUSH,
    RST,
    SERVICE,
    SETTINGS,
    WINDOW,
    Client,
    GrpcApi,
    Raw,
    a_request,
    fields,
    framed,
    prefixed,
    raw,
    stub,
)
from tests.helpers.workers import until
from tests.protocols.v2.test_grpc import HELD, mirror

PROTOCOL = 1
FLOW_CONTROL = 3
FRAME_SIZE = 6
COMPRESSION = 9
CALM = 11
INFER = f"/{SERVICE}/ModelInfer"
LIVE = message("inference.ServerLiveResponse")(live=True).SerializeToString()


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    api = GrpcApi(body_bytes=24 << 20)
    worker = api.worker(tmp_path_factory.mktemp("http2") / "w", mirror)
    inputs, outputs = (
        [TensorSpec(name=n, datatype="UINT8", shape=[-1, -1])]
        for n in ("x", "x_out")
    )
    api.update(
        a_route("m", inputs=inputs, outputs=outputs, sockets=[worker.path])
    )
    yield api
    api.close()


@pytest.fixture(autouse=True)
def bystander(api):
    """An ordinary client, before and after whatever a test does."""
    client = Client(api.address)
    assert client.call("ServerLive").live
    yield client
    assert client.call("ServerLive").live
    assert (
        client.call("ModelInfer", request(b"12")).raw_output_contents[0]
        == b"12"
    )
    client.close()


def request(data):
    return a_request("m", ("x", "UINT8", np.frombuffer(data, np.uint8)[None]))


def fine(answer):
    said, body = answer
    assert (said["grpc-status"], body) == ("0", prefixed(LIVE)), said
    return True


# ---- what must work


def test_a_call_may_come_in_any_pieces(api):
    with raw(api.server.port, greet=False) as client:
        block = client.encoder.encode(fields(INFER, **KEY))
        body = prefixed(request(b"abc" * 100).SerializeToString())
        parts = [
            framed(HEADERS, 0, 1, block[:10]),
            framed(CONTINUATION, 0, 1, block[10:20]),
        ]
        parts += [
            framed(CONTINUATION, 4, 1, block[20:]),
            framed(DATA, 0, 1, body[:3]),
        ]
        parts += [
            framed(DATA, 8, 1, b"\x05" + body[3:9] + bytes(5)),
            framed(DATA, 0, 1, body[9:]),
            framed(DATA, 1, 1),
        ]
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        whole = PREFACE + framed(SETTINGS, 0, 0) + b"".join(parts)
        for at in range(len(whole)):
            client.send(whole[at : at + 1])
        said, answer = client.answer(1)
        assert said["grpc-status"] == "0"
        assert b"abc" * 100 in answer


def test_priorities_padding_unknown_frames_and_settings_are_put_up_with(api):
    with raw(api.server.port) as client:
        block = client.encoder.encode(fields())
        client.send(
            framed(PRIORITY, 0, 1, struct.pack(">IB", 0, 9))
            + framed(42, 255, 9, b"?")
        )
        client.send(
            framed(SETTINGS, 0, 0, struct.pack(">HI", 0x99, 7))
            + framed(PING, 0, 0, b"12345678")
        )
        client.send(
            framed(
                HEADERS,
                4 | 8 | 32,
                1,
                b"\x04" + struct.pack(">IB", 0, 9) + block + bytes(4),
            )
        )
        client.send(
            framed(DATA, 1 | 8, 1, b"\x03" + prefixed(b"") + bytes(3))
            + framed(GOAWAY, 0, 0, bytes(8))
        )
        assert fine(client.answer(1))


def test_headers_mean_the_same_however_often_they_are_sent(api):
    with raw(api.server.port) as client:
        for number in range(1, 400, 2):
            if (
                number % 40 == 1
            ):  # the table of the encoder changes, and with it what an index means
                client.call(number, x=str(number))
            else:
                client.call(
                    number,
                    path=INFER if number % 8 == 3 else f"/{SERVICE}/ServerLive",
                )
            said, _ = client.answer(number)
            assert said["grpc-status"] == (
                "16" if number % 40 != 1 and number % 8 == 3 else "0"
            )


@pytest.mark.parametrize("window", [0, 1, 100, 16_384])
def test_an_answer_waits_for_the_windows_of_its_client(api, window):
    data = os.urandom(100_000)
    with raw(api.server.port) as client:
        client.send(framed(SETTINGS, 0, 0, struct.pack(">HI", 4, window)))
        client.call(1, request(data).SerializeToString(), INFER, **KEY)
        client.call(3)
        got = b""
        granted = 0
        other = b""
        for kind, flags, stream, payload in client.frames():
            assert kind != DATA or len(payload) <= 16_384
            got += payload if (kind, stream) == (DATA, 1) else b""
            other += payload if (kind, stream) == (DATA, 3) else b""
            if kind == HEADERS and stream == 1 and flags & 1:
                break
            if (
                len(got) >= window + granted
                and (not window or len(got) > 0 or True)
                and kind in (DATA, HEADERS)
            ):
                granted += 30_000
                client.send(
                    framed(WINDOW, 0, 1, struct.pack(">I", 30_000))
                    + framed(WINDOW, 0, 3, struct.pack(">I", 99))
                )
                client.send(framed(WINDOW, 0, 0, struct.pack(">I", 30_000)))
        assert data in got


def test_a_smaller_window_takes_back_what_was_granted(api):
    with raw(api.server.port) as client:
        client.call(
            1, request(bytes(200_000)).SerializeToString(), INFER, **KEY
        )
        seen = 0
        for kind, _, _, payload in client.frames():
            seen += len(payload) if kind == DATA else 0
            if seen == 65_535:
                break
        client.send(framed(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
        client.send(
            framed(WINDOW, 0, 0, struct.pack(">I", 1 << 20))
            + framed(WINDOW, 0, 1, struct.pack(">I", 70_000))
        )
        for kind, _, _, payload in client.frames():
            seen += len(payload) if kind == DATA else 0
            if seen == 70_000:
                break
        client.send(framed(WINDOW, 0, 1, struct.pack(">I", 1 << 20)))
        said, _ = client.answer(1)
        assert said["grpc-status"] == "0"


def test_a_header_table_of_size_zero_is_acknowledged_once(api):
    with raw(api.server.port) as client:
        client.decoder.max_allowed_table_size = 0
        client.send(framed(SETTINGS, 0, 0, struct.pack(">HI", 1, 0)))
        for number in (1, 3):
            client.call(number)
            assert fine(client.answer(number))


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({":method": "GET"}, "405"),
        ({"content-type": "text/html"}, "415"),
        ({"content-type": "application/json"}, "415"),
    ],
)
def test_what_is_http_but_no_grpc_gets_an_answer_of_http(api, change, status):
    with raw(api.server.port) as client:
        headers = {**dict(fields()), **change}
        client.send(
            framed(HEADERS, 5, 1, client.encoder.encode(list(headers.items())))
        )
        assert client.answer(1)[0] == {":status": status}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "exactly one message"),
        (b"\x00\x00", "ended within a message"),
        (b"\x00\x00\x00\x00\x05abc", "ended within a message"),
        (prefixed(b"") * 2, "exactly one message"),
        (b"\x02\x00\x00\x00\x00", "begins with 0 or 1"),
        (prefixed(b"abc", 1), "grpc-encoding does not say how"),
        (b"\x00\xff\xff\xff\xff", "at most"),
    ],
)
def test_a_body_that_is_not_one_message_is_refused(api, body, says):
    with raw(api.server.port) as client:
        client.call(1, None)
        client.send(framed(DATA, 1, 1, body))
        said, _ = client.answer(1)
        assert said["grpc-status"] in ("3", "8")
        assert says in said["grpc-message"].replace("%20", " ")


@pytest.mark.parametrize("encoding", ["br", "snappy", "x" * 500])
def test_an_encoding_that_is_not_known_is_refused_with_those_that_are(
    api, encoding
):
    with raw(api.server.port) as client:
        client.call(1, b"", grpc_encoding=encoding)
        said, _ = client.answer(1)
        assert (said["grpc-status"], said["grpc-accept-encoding"]) == (
            "12",
            "identity,deflate,gzip",
        )


@pytest.mark.parametrize(
    "timeout", ["", "1", "S", "1s", "-1S", "123456789S", "1.5S", "1S "]
)
def test_a_deadline_that_is_none_makes_no_call(api, timeout):
    with raw(api.server.port) as client:
        client.call(1, b"", grpc_timeout=timeout)
        said, _ = client.answer(1)
        assert (
            said.get("reset") == "1" if timeout else said["grpc-status"] == "0"
        )


@pytest.mark.parametrize(
    "timeout",
    ["99999999H", "1H", "60M", "9S", "9000m", "9000000u", "90000000n"],
)
def test_a_deadline_may_have_any_unit(api, timeout):
    with raw(api.server.port) as client:
        client.call(1, b"", grpc_timeout=timeout)
        assert fine(client.answer(1))


def test_a_call_whose_message_never_comes_meets_its_deadline(api):
    with raw(api.server.port) as client:
        client.call(1, None, INFER, grpc_timeout="50m", **KEY)
        said, _ = client.answer(1)
        assert said["grpc-status"] == "4"


def test_a_refused_call_is_answered_before_its_message_has_come(api):
    with raw(api.server.port) as client:
        client.call(1, None, INFER)
        said, _ = client.answer(1)
        assert said["grpc-status"] == "16"
        client.send(
            framed(DATA, 0, 1, bytes(1000)) + framed(DATA, 1, 1, bytes(1000))
        )
        client.call(3)
        assert fine(client.answer(3))


# ---- what must be refused

BLOCK = hpack.Encoder().encode(fields())
OPEN = framed(HEADERS, 4, 1, BLOCK)
BAD = {
    "a frame too large": (
        framed(DATA, 0, 1, bytes((256 << 10) + 1)),
        FRAME_SIZE,
    ),
    "a length that never comes": (
        b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
        FRAME_SIZE,
    ),
    "data on no stream": (framed(DATA, 1, 0, b"x"), PROTOCOL),
    "data on a stream that was never opened": (
        framed(DATA, 1, 9, b"x"),
        PROTOCOL,
    ),
    "an even stream": (framed(HEADERS, 5, 2, BLOCK), PROTOCOL),
    "headers of no stream": (framed(HEADERS, 5, 0, BLOCK), PROTOCOL),
    "headers amid a stream": (OPEN + framed(HEADERS, 4, 1, b""), PROTOCOL),
    "too much padding": (OPEN + framed(DATA, 8, 1, b"\x05abc"), PROTOCOL),
    "padding alone": (OPEN + framed(DATA, 8, 1, b""), PROTOCOL),
    "headers without their priority": (
        framed(HEADERS, 4 | 32, 1, b"abc"),
        FRAME_SIZE,
    ),
    "an interrupted header block": (
        framed(HEADERS, 0, 1, BLOCK) + framed(PING, 0, 0, bytes(8)),
        PROTOCOL,
    ),
    "a continuation of nothing": (framed(CONTINUATION, 4, 1, b""), PROTOCOL),
    "a continuation elsewhere": (
        framed(HEADERS, 0, 1, BLOCK) + framed(CONTINUATION, 4, 3, b""),
        PROTOCOL,
    ),
    "continuations for ever": (
        framed(HEADERS, 0, 1, b"") + framed(CONTINUATION, 0, 1, b"") * 100,
        CALM,
    ),
    "a header flood": (
        framed(HEADERS, 0, 1, b"")
        + framed(CONTINUATION, 0, 1, bytes(9000)) * 3,
        CALM,
    ),
    "headers too large": (framed(HEADERS, 4, 1, bytes(100_000)), CALM),
    "headers that unpack too large": (
        framed(
            HEADERS, 4, 1, b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000 + b"\xbe" * 9
        ),
        COMPRESSION,
    ),
    "an index of nothing": (
        framed(HEADERS, 4, 1, b"\xff\x80\x80\x01"),
        COMPRESSION,
    ),
    "headers cut short": (framed(HEADERS, 4, 1, b"\x00\x05ab"), COMPRESSION),
    "headers of no code": (
        framed(HEADERS, 4, 1, b"\x00\x84\xff\xff\xff\xff\x01a"),
        COMPRESSION,
    ),
    "an endless number": (
        framed(HEADERS, 4, 1, b"\xff" + b"\xff" * 50),
        COMPRESSION,
    ),
    "a table too large": (
        framed(HEADERS, 4, 1, b"\x3f\xff\xff\x03"),
        COMPRESSION,
    ),
    "a push": (framed(PUSH, 4, 1, bytes(4)), PROTOCOL),
    "settings on a stream": (framed(SETTINGS, 0, 1), FRAME_SIZE),
    "settings cut short": (framed(SETTINGS, 0, 0, bytes(5)), FRAME_SIZE),
    "settings in an acknowledgement": (
        framed(SETTINGS, 1, 0, bytes(6)),
        FRAME_SIZE,
    ),
    "a window beyond bounds": (
        framed(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)),
        FLOW_CONTROL,
    ),
    "a frame size beyond bounds": (
        framed(SETTINGS, 0, 0, struct.pack(">HI", 5, 100)),
        PROTOCOL,
    ),
    "push neither on nor off": (
        framed(SETTINGS, 0, 0, struct.pack(">HI", 2, 2)),
        PROTOCOL,
    ),
    "a ping cut short": (framed(PING, 0, 0, bytes(7)), FRAME_SIZE),
    "a ping on a stream": (framed(PING, 0, 1, bytes(8)), FRAME_SIZE),
    "a priority cut short": (framed(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE),
    "a reset cut short": (OPEN + framed(RST, 0, 1, bytes(3)), FRAME_SIZE),
    "a reset of nothing": (framed(RST, 0, 1, bytes(4)), PROTOCOL),
    "a window update cut short": (framed(WINDOW, 0, 0, bytes(3)), FRAME_SIZE),
    "a window update of 0": (framed(WINDOW, 0, 0, bytes(4)), PROTOCOL),
    "a window update beyond bounds": (
        framed(WINDOW, 0, 0, struct.pack(">I", (1 << 31) - 1)),
        FLOW_CONTROL,
    ),
    "a window update of nothing": (
        framed(WINDOW, 0, 7, struct.pack(">I", 1)),
        PROTOCOL,
    ),
    "a settings flood": (framed(SETTINGS, 0, 0) * 5000, CALM),
    "a ping flood": (framed(PING, 0, 0, bytes(8)) * 30_000, CALM),
    "a flood of empty data": (OPEN + framed(DATA, 0, 1) * 40_000, CALM),
    "a flood of unknown frames": (framed(77, 0, 0) * 40_000, CALM),
}


@pytest.mark.parametrize("name", BAD)
def test_a_client_that_breaks_the_protocol_gets_an_error_and_is_disconnected(
    api, name
):
    data, code = BAD[name]
    with raw(api.server.port) as client:
        threading.Thread(target=_send, args=(client, data)).start()
        assert client.goaway() == code


def _send(client, data):
    with suppress(OSError):
        client.send(data)


def test_resets_in_a_row_end_the_connection(api):
    with raw(api.server.port) as client:
        flood = b"".join(
            framed(HEADERS, 4, n, BLOCK) + framed(RST, 0, n, bytes(4))
            for n in range(1, 6001, 2)
        )
        threading.Thread(target=_send, args=(client, flood)).start()
        assert client.goaway() == CALM


@pytest.mark.parametrize("more", [0, (1 << 31) - 1])
def test_resets_that_a_client_provokes_end_the_connection_too(api, more):
    with raw(api.server.port) as client:
        blame = struct.pack(">I", more)
        flood = b"".join(
            framed(HEADERS, 4, n, BLOCK) + framed(WINDOW, 0, n, blame)
            for n in range(1, 6001, 2)
        )
        threading.Thread(target=_send, args=(client, flood)).start()
        assert client.goaway() == CALM


def test_more_streams_than_allowed_are_refused_and_may_be_tried_again(api):
    with raw(api.server.port) as client:
        numbers = range(1, 2 * http2.MAX_STREAMS + 3, 2)
        for number in numbers:
            client.call(number, None, INFER, **KEY)
        assert client.answer(numbers[-1])[0] == {"reset": "7"}
        client.send(framed(RST, 0, 1, bytes(4)))
        client.call(numbers[-1] + 2)
        assert fine(client.answer(numbers[-1] + 2))


def test_a_stream_over_its_window_is_throttled_and_else_reset(api):
    slow = request(b"ab")
    slow.parameters["hold"].string_param = "them"
    HELD.add("them")
    with raw(api.server.port) as client:
        client.call(1, None, f"/{SERVICE}/ModelStreamInfer", **KEY)
        client.send(framed(DATA, 0, 1, prefixed(slow.SerializeToString()) * 90))
        client.send(framed(DATA, 0, 1, prefixed(bytes(250_000))) * 5)
        assert client.answer(1)[0]["reset"] == str(FLOW_CONTROL)
    HELD.clear()


def test_messages_that_are_never_finished_hold_no_more_than_the_budget(
    api, monkeypatch
):
    monkeypatch.setattr(api.server.budget, "total", 1 << 20)
    with raw(api.server.port) as client:
        for number in (1, 3, 5):
            client.call(number, None, INFER, **KEY)
            client.send(
                framed(
                    DATA,
                    0,
                    number,
                    b"\x00" + struct.pack(">I", 20 << 20) + bytes(200_000),
                )
                + framed(DATA, 0, number, bytes(200_000))
            )
        said, _ = client.answer(5)
        assert said["grpc-status"] == "8"
        assert api.server.budget.held <= 1 << 20
    api.run(until(lambda: api.server.budget.held == 0))


@pytest.mark.parametrize(
    "headers",
    [[], [(":method", "POST")], [*fields(), (":path", "/x")], fields()[:2]],
)
def test_headers_that_make_no_request_reset_the_stream(api, headers):
    with raw(api.server.port) as client:
        client.send(framed(HEADERS, 5, 1, client.encoder.encode(headers)))
        assert client.answer(1)[0] == {"reset": "1"}


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\n\r\n",
        b"PRX",
        b"\x16\x03\x01\x02\x00\x01",
        bytes(100),
    ],
)
def test_a_client_without_http2_is_disconnected_and_http1_gets_an_error(
    api, data
):
    with raw(api.server.port, greet=False) as client:
        client.send(data)
        got = b""
        while more := client.socket.recv(1000):
            got += more
        assert (b"HTTP/1.1 400" in got and b"speaks gRPC" in got) == data[
            :1
        ].isalpha()


def test_a_client_that_greets_too_slowly_is_let_go(api, monkeypatch):
    monkeypatch.setattr(grpc_server, "GREETING_SECONDS", 0)
    with raw(api.server.port, greet=False) as client:
        client.send(PREFACE[:10])
        assert client.goaway() == -1


def test_a_message_that_comes_too_slowly_is_refused(monkeypatch):
    monkeypatch.setattr(grpc_server, "WATCH_SECONDS", 0.02)
    slow = GrpcApi(timeout_seconds=0.1)
    with raw(slow.server.port) as client:
        client.call(1, None, INFER, **KEY)
        client.send(framed(DATA, 0, 1, b"\x00\x00\x00\xff\xff" + bytes(10)))
        said, _ = client.answer(1)
        assert said["grpc-status"] == "4"
    slow.close()


def test_an_answer_that_is_never_read_is_dropped(monkeypatch, tmp_path):
    monkeypatch.setattr(grpc_server, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(grpc_server, "STALL_SECONDS", 0.05)
    slow = GrpcApi()
    with raw(slow.server.port) as client:
        client.send(framed(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
        client.call(1)
        assert client.answer(1)[0]["reset"] == "8"
    slow.close()


def test_a_client_that_only_sends_is_let_go(api):
    with raw(api.server.port) as client:
        # Its answers are four times as long as its calls.
        block = (
            literal(b":method", b"POST")
            + literal(b":scheme", b"http")
            + literal(b":path", b"/" + b"\xff" * 199)
        )
        block += literal(b"content-type", b"application/grpc") + literal(
            b"authorization", b"Bearer admin-key"
        )
        numbers = iter(range(1, 1 << 30, 2))

        def flood():
            for _ in range(3000):
                client.send(
                    b"".join(
                        framed(HEADERS, 5, next(numbers), block)
                        for _ in range(100)
                    )
                )

        with pytest.raises(ConnectionError):
            flood()


def test_a_thousand_idle_connections_disturb_nobody(api, bystander):
    idle = [
        Raw(api.server.port, greet=number % 2 == 0) for number in range(1000)
    ]
    assert bystander.call("ServerLive").live
    assert fine((idle[998].call(1), idle[998].answer(1))[1])
    for client in idle:
        client.close()
    api.run(until(lambda: len(api.server._connections) < 10))


def test_connections_beyond_the_limit_are_closed(api, monkeypatch):
    monkeypatch.setattr(grpc_server, "MAX_CONNECTIONS", 1)
    with raw(api.server.port, greet=False) as client:
        assert client.goaway() == -1


def test_a_drained_connection_serves_what_was_under_way_and_refuses_what_comes_late(
    tmp_path,
):
    api = GrpcApi()
    with raw(api.server.port) as client:
        client.call(1, None)
        client.call(3)
        assert fine(client.answer(3))
        stopping = asyncio.run_coroutine_threadsafe(
            api.server.stop(10), api.loop
        )
        lasts = []
        for kind, flags, _, payload in client.frames():
            if kind == GOAWAY:
                lasts.append(int.from_bytes(payload[:4], "big"))
            if kind == PING and not flags:
                client.call(5)
                client.send(framed(PING, 1, 0, payload))
            if len(lasts) == 2:
                break
        assert lasts == [(1 << 31) - 1, 5]
        client.call(7)
        client.send(framed(DATA, 1, 1, prefixed(b"")))
        got = [
            stream
            for kind, flags, stream, _ in client.frames()
            if kind == HEADERS and flags & 1
        ]
        assert 1 in got
        assert 7 not in got
        stopping.result(10)
    api.close()


# ---- anything at all


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self):
        self.written, self.closed = bytearray(), False

    def write(self, data):
        self.written += data

    def close(self):
        self.closed = True

    abort = close

    def can_write_eof(self):
        return False

    def set_write_buffer_limits(self, high):
        pass

    def get_write_buffer_size(self):
        return 0

    def get_extra_info(self, name):
        return None


def conversation(api, pieces):
    """What a server answers to bytes that come in pieces, and whether it is still there."""

    async def scene():
        server = api.server
        connection = http2.Http2Connection(
            lambda h: read_head(h, server.methods), server._accept, set()
        )
        pipe = Pipe()
        connection.connection_made(pipe)
        for piece in pieces:
            connection.data_received(piece)
        for _ in range(5):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        return bytes(pipe.written)

    return api.run(scene())


VALID = (
    PREFACE
    + framed(SETTINGS, 0, 0, struct.pack(">HIHI", 4, 1 << 20, 1, 0))
    + OPEN
    + framed(DATA, 1, 1, prefixed(b""))
    + framed(
        HEADERS,
        4,
        3,
        b"".join(
            literal(n.encode(), v.encode()) for n, v in fields(INFER, **KEY)
        ),
    )
    + framed(DATA, 0, 3, prefixed(b"\x0a\x01m")[:4])
    + framed(WINDOW, 0, 3, struct.pack(">I", 100))
    + framed(DATA, 1, 3, prefixed(b"\x0a\x01m")[4:])
    + framed(PING, 0, 0, bytes(8))
    + framed(RST, 0, 3, bytes(4))
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, len(VALID) - 1), max_size=12))
def test_pieces_make_no_difference(api, cuts):
    ends = [0, *sorted(cuts), len(VALID)]
    assert conversation(
        api, [VALID[a:b] for a, b in pairwise(ends)]
    ) == conversation(api, [VALID])


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
        max_size=6,
    ),
    st.floats(0, 1),
    st.integers(1, 400),
)
def test_damaged_conversations_are_never_a_failure_of_ours(
    api, changes, kept, piece
):
    data = bytearray(VALID)
    for place, value in changes:
        data[int(place * len(data))] = value
    data = bytes(data[: round(kept * len(data))])
    conversation(
        api, [data[at : at + piece] for at in range(0, len(data), piece)]
    )
    assert api.server.budget.held == 0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 11),
            st.integers(0, 63),
            st.sampled_from([0, 1, 2, 3, 5]),
            st.binary(max_size=40),
        )
    )
)
def test_random_frames_are_never_a_failure_of_ours(api, frames):
    conversation(api, [PREFACE, OPEN, *(framed(*one) for one in frames)])
    assert api.server.budget.held == 0


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_remembered_header_blocks_mean_what_the_decoder_says(blocks):
    plain, reader = (
        hpack.Decoder(max_header_list_size=16 << 10),
        HeaderReader(dict),
    )
    encoder = hpack.Encoder()
    known = [
        encoder.encode(
            [("a", str(n % 3)), (":path", "/x"), ("b", "c" * (n % 2))]
        )
        for n in range(6)
    ]
    for block in [*known, *known, *blocks, *known]:
        try:
            expected = dict(plain.decode(block, raw=True))
        except Exception:
            return
        try:
            assert len(reader(block)) <= len(expected)
            assert all(
                expected[name] in value
                for name, value in reader._read(expected).items()
            )
        except ValueError:
            return


def test_random_bytes_from_many_clients_disturb_nobody(api, bystander):
    rng = random.Random(0)
    for number in range(200):
        with raw(api.server.port, greet=number % 3 > 0) as client:
            _send(client, rng.randbytes(rng.randrange(1, 3000)))
        if number % 20 == 0:
            assert bystander.call("ServerLive").live


def test_a_client_that_disconnects_amid_its_calls_leaves_no_state(api):
    for number in range(30):
        with raw(api.server.port) as client:
            slow = request(b"ab")
            slow.parameters["sleep"].double_param = 0.01
            client.call(1, slow.SerializeToString(), INFER, **KEY)
            client.call(3, None, f"/{SERVICE}/ModelStreamInfer", **KEY)
            client.send(
                framed(
                    DATA, 0, 3, prefixed(slow.SerializeToString())[: number + 1]
                )
            )
    api.run(
        until(
            lambda: (
                api.server.budget.held == 0
                and len(api.server._connections) <= 2
            )
        )
    )
    assert stub(grpc.insecure_channel(api.address), f"/{SERVICE}/ServerLive")
