"""What strangers may do to the socket: a real server, raw sockets, and an honest client beside
them.
"""

import asyncio
import json
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psutil
import pytest
import uvicorn
import uvloop

from modelmill.settings import Limits
from modelmill.wire.http1.scope import GONE
from modelmill.wire.http1.server import guarded

PATIENCE = 20.0
POST = b"POST /echo HTTP/1.1\r\nHost: here\r\n"
GET = b"GET /echo HTTP/1.1\r\nHost: here\r\n\r\n"


class Running:
    """A server in a thread. `/echo` answers with the body, `/hold` when it is let go, `/big` with
    32 MB.
    """

    def __init__(self, hosts: Iterable[str] = (), **limits: Any) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.ended: list[str] = []
        self.held = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.address = self.listener.getsockname()
        config = uvicorn.Config(
            self.app,  # type: ignore[arg-type]
            http=guarded(Limits(**limits), hosts),
            interface="asgi3",
            proxy_headers=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=lambda: uvloop.run(self._run()))
        self.thread.start()
        until(lambda: self.server.started)

    async def _run(self) -> None:
        self.loop, self.go = asyncio.get_running_loop(), asyncio.Event()
        await self.server.serve(sockets=[self.listener])

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body, more = b"", scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ended.append(scope["path"])
                return
            body, more = body + message["body"], message["more_body"]
        if scope["path"] == "/hold":
            self.held += 1
            await self.go.wait()
            body = b"gone" if scope[GONE]() else b"held"
            self.ended.append(body.decode())
        if scope["path"] == "/big":
            body = bytes(32 << 20)
        headers = [
            (b"content-length", b"%d" % len(body)),
            (b"x-path", scope["path"].encode()),
        ]
        await send(
            {"type": "http.response.start", "status": 200, "headers": headers}
        )
        await send({"type": "http.response.body", "body": body})

    def let_go(self) -> None:
        """Answer what is held."""
        self.loop.call_soon_threadsafe(self.go.set)

    def connect(self) -> socket.socket:
        """A client of one's own making."""
        return socket.create_connection(self.address, timeout=PATIENCE)

    @property
    def open(self) -> int:
        """Connections that the server has."""
        return len(self.server.server_state.connections)

    def stop(self) -> None:
        """End it, and see that it ends."""
        self.let_go()
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the server hangs"


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Start a server with these limits."""
    with ExitStack() as stack:

        def begin(**options: Any) -> Running:
            running = Running(**options)
            stack.callback(running.stop)
            return running

        yield begin


def until(condition: Callable[[], Any]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def read_all(client: socket.socket) -> bytes:
    """Everything until the server closes its side."""
    data = b""
    with suppress(ConnectionError):
        while piece := client.recv(65536):
            data += piece
    return data


def answers(data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of each answer; those in between (100) have no body."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in lines)
        }
        size = int(headers.get("content-length", 0))
        found.append((int(first.split()[1]), headers, data[:size]))
        data = data[size:]
    return found


def ask(
    running: Running, request: bytes, *, half_close: bool = False
) -> list[tuple[int, dict[str, str], bytes]]:
    """Send bytes and read until the server closes; what it refuses to read may stay unsent."""
    with running.connect() as client:
        with suppress(ConnectionError):
            client.sendall(request)
            if half_close:
                client.shutdown(socket.SHUT_WR)
        return answers(read_all(client))


class Ordinary:
    """An ordinary client that asks one question after another on one connection."""

    def __init__(self, running: Running) -> None:
        self.client = running.connect()
        self.count = 0

    def ask(self, times: int = 1) -> None:
        """Each is answered, in time."""
        for _ in range(times):
            self.count += 1
            body = f"question {self.count}".encode()
            self.client.sendall(
                POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
            )
            data = b""
            while not data.endswith(body):
                piece = self.client.recv(65536)
                assert piece, "the ordinary client was cut off"
                data += piece
            assert data.startswith(b"HTTP/1.1 200")

    def __enter__(self) -> "Ordinary":
        self.ask()
        return self

    def __exit__(self, *_: object) -> None:
        self.ask()
        self.client.close()


def refused(
    found: list[tuple[int, dict[str, str], bytes]], status: int, says: str
) -> None:
    """One error, as JSON, and the connection is closed."""
    assert [one[0] for one in found] == [status]
    _, headers, body = found[0]
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert says in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("request_bytes", "status", "says"),
    [
        (
            b"GET / HTTP/1.1\r\nHost: here\r\nX: " + b"a" * 1_000_000,
            431,
            "65,536 bytes",
        ),
        (b"GET /" + b"a" * 1_000_000, 431, "65,536 bytes"),
        (
            b"GET / HTTP/1.1\r\nHost: here\r\n" + b"a" * 1_000_000,
            431,
            "65,536 bytes",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: here\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",
            431,
            "100 headers",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: here\r\n"
            + b"X: y\r\n" * 200_000
            + b"\r\n",
            431,
            "100 headers",
        ),
        (b"\x00\xff\xfe garbage \r\n\r\n" * 50, 400, "not HTTP/1.1"),
        (bytes.fromhex("16030102000100") + bytes(505), 400, "not HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "not HTTP/1.1"),
        (b"GET / HTTP/2.0\r\nHost: here\r\n\r\n", 505, "HTTP/2.0"),
        (b"GET /\r\n\r\n", 505, "HTTP/0.9"),
        (b"GET / HTTP/1.1\nHost: here\n\n", 400, "not HTTP/1.1"),
        (
            b"GET / HTTP/1.1\r\nHost: here\r\nX: a\r\n folded\r\n\r\n",
            400,
            "not HTTP/1.1",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: here\r\nX: a\x00b\r\n\r\n",
            400,
            "not HTTP/1.1",
        ),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "0 Host headers"),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "'a b'"),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "'a/b'"),
        (b"GET / HTTP/1.1\r\nHost: a:80:1\r\n\r\n", 400, "'a:80:1'"),
        (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, "'u@a'"),
        (b"GET / HTTP/1.1\r\nHost: <\xff>\r\n\r\n", 400, "a name and a port"),
        (
            b"GET / HTTP/1.1\r\nHost: here\r\nHost: there\r\n\r\n",
            400,
            "2 Host headers",
        ),
        (
            POST
            + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "Content-Length",
        ),
        (
            POST
            + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            400,
            "Content-Length",
        ),
        (
            POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            400,
            "Content-Length",
        ),
        (POST + b"Content-Length: 3, 4\r\n\r\nabcd", 400, "Content-Length"),
        (POST + b"Content-Length: +3\r\n\r\nabc", 400, "Content-Length"),
        (
            POST + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
            400,
            "Content-Length",
        ),
        (
            POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
            "chunked",
        ),
        (POST + b"Transfer-Encoding: gzip\r\n\r\nabc", 501, "chunked"),
        (
            POST
            + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            501,
            "chunked",
        ),
        (
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            501,
            "HTTP/1.1",
        ),
        (
            POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            400,
            "not HTTP/1.1",
        ),
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
            400,
            "chunk",
        ),
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
            400,
            "chunk",
        ),
        (
            POST
            + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: "
            + b"y" * 1_000_000,
            400,
            "framing",
        ),
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"y" * 1_000_000,
            400,
            "framing",
        ),
        (b"CONNECT there:443 HTTP/1.1\r\nHost: there\r\n\r\n", 501, "CONNECT"),
    ],
)
def test_what_is_not_a_proper_request_is_refused_in_words(
    start, request_bytes, status, says
):
    running = start()
    with Ordinary(running):
        refused(ask(running, request_bytes), status, says)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        (b"models.example.org", True),
        (b"Models.Example.org:8080", True),
        (b"[::1]:80", True),
        (b"[::1]", True),
        (b"evil.example", False),
        (b"models.example.org.evil.example", False),
        (b"", False),
        (b"[::2]", False),
    ],
)
def test_hosts_may_be_limited(start, host, allowed):
    request = (
        b"POST /echo HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % host
    )
    assert ask(start(), request)[0][0] == 200
    ((status, _, body),) = ask(
        start(hosts=["models.example.org", "[::1]"]), request
    )
    assert status == (200 if allowed else 421)
    assert allowed or b"the setting hosts" in body


def test_a_head_up_to_the_limit_is_taken(start):
    running = start()
    head = (
        b"GET /echo HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"
        + b"X: y\r\n" * 97
    )
    head += b"Y: " + b"z" * (64_000 - len(head)) + b"\r\n\r\n"
    for pieces in (head,), (head[:33_000], head[33_000:]):
        with running.connect() as client:
            for piece in pieces:
                client.sendall(piece)
            assert [one[0] for one in answers(read_all(client))] == [200]


@pytest.mark.parametrize("cut", [10, 30_000, 65_530, 65_990])
def test_a_head_a_little_above_the_limit_is_refused_however_it_comes(
    start, cut
):
    running = start()
    head = (
        b"GET /echo HTTP/1.1\r\nHost: here\r\nX: " + b"x" * 66_000 + b"\r\n\r\n"
    )
    with running.connect() as client:
        client.sendall(head[:cut])
        until(
            lambda: sum(
                connection._reads
                for connection in running.server.server_state.connections
            )
        )
        client.sendall(head[cut:])
        refused(answers(read_all(client)), 431, "65,536 bytes")


def test_headers_that_drip_are_cut_off(start):
    running = start(header_seconds=0.4)
    with Ordinary(running) as ordinary, running.connect() as client:
        client.settimeout(0.02)
        data = b""
        for byte in GET[:-2] + b"X: y\r\n" * 200:
            ordinary.ask()
            with suppress(ConnectionError):
                client.send(bytes([byte]))
            with suppress(TimeoutError):
                data += client.recv(4096)
                break
        client.settimeout(PATIENCE)
        refused(
            answers(data + read_all(client)),
            408,
            "headers were not complete within 0.4 seconds",
        )


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"Content-Length: 10\r\n\r\nabc",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc",
        POST + b"Content-Length: 10\r\n\r\n",
    ],
)
def test_a_body_that_stops_is_cut_off(start, request_bytes):
    running = start(body_seconds=0.4)
    with Ordinary(running):
        refused(
            ask(running, request_bytes),
            408,
            "no byte of the body came for 0.4 seconds",
        )
    assert running.ended == ["/echo"]


def test_a_body_that_keeps_coming_may_take_its_time(start):
    running = start(body_seconds=0.6)
    with running.connect() as client:
        client.sendall(
            POST + b"Content-Length: 12\r\nConnection: close\r\n\r\n"
        )
        for _ in range(12):
            time.sleep(0.15)
            client.sendall(b"x")
        assert [one[2] for one in answers(read_all(client))] == [b"x" * 12]


def test_an_application_that_takes_its_time_is_not_the_clients_fault(start):
    running = start(header_seconds=0.2, body_seconds=0.2, idle_seconds=0.2)
    with running.connect() as client:
        client.sendall(
            POST.replace(b"/echo", b"/hold")
            + b"Content-Length: 3\r\nConnection: close\r\n\r\nabc"
        )
        until(lambda: running.held)
        time.sleep(1)
        running.let_go()
        assert [one[2] for one in answers(read_all(client))] == [b"held"]


def test_an_idle_connection_is_closed_after_a_while(start):
    running = start(idle_seconds=0.4)
    with (
        running.connect() as silent,
        running.connect() as used,
        running.connect() as feeding,
    ):
        used.sendall(GET)
        feeding.setblocking(False)
        ends = []
        while len(ends) < 3:
            with suppress(BlockingIOError, ConnectionError):
                feeding.send(
                    b"\r\n"
                )  # line ends before a request are no request
            for client in (silent, used, feeding):
                client.settimeout(0.02)
                with suppress(TimeoutError, ConnectionError):
                    if client.recv(4096):
                        continue
                    ends.append(client)
            ends = (
                list(dict.fromkeys(ends))
                if running.open
                else [silent, used, feeding]
            )
    until(lambda: running.open == 0)


def test_a_client_that_closes_its_side_still_gets_its_answers(start):
    running = start()
    body = b"x" * 300_000
    assert [
        one[2]
        for one in ask(
            running,
            POST + b"Content-Length: 300000\r\n\r\n" + body,
            half_close=True,
        )
    ] == [body]
    pipelined = (
        POST
        + b"Content-Length: 3\r\n\r\nabc"
        + GET
        + POST
        + b"Content-Length: 9\r\n\r\nhalf"
    )
    assert [one[2] for one in ask(running, pipelined, half_close=True)] == [
        b"abc",
        b"",
    ]
    assert (
        ask(running, POST + b"Content-Length: 9\r\n\r\nhalf", half_close=True)
        == []
    )
    assert ask(running, b"GET /echo HT", half_close=True) == []


def test_a_half_closed_client_that_waits_is_not_one_that_disconnected(start):
    running = start(header_seconds=0.4)
    request = GET.replace(b"/echo", b"/hold")
    with running.connect() as waiting, running.connect() as leaving:
        waiting.sendall(request)
        leaving.sendall(request)
        until(lambda: running.held == 2)
        assert [scope[GONE]() for scope in running.scopes] == [False, False]
        waiting.shutdown(socket.SHUT_WR)
        leaving.close()
        until(
            lambda: (
                sorted(scope[GONE]() for scope in running.scopes)
                == [False, True]
            )
        )
        running.let_go()
        assert [
            (status, body) for status, _, body in answers(read_all(waiting))
        ] == [
            (100, b""),
            (200, b"held"),
        ]
    assert sorted(running.ended) == ["gone", "held"]


def test_a_client_that_breaks_off_is_known_to_be_gone_at_once(start):
    running = start()
    with running.connect() as client:
        client.sendall(GET.replace(b"/echo", b"/hold"))
        until(lambda: running.held)
        client.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    until(running.scopes[0][GONE])


def test_pipelined_requests_are_answered_in_order(start):
    running = start()
    count = 3_000
    requests = b"".join(
        POST + b"Content-Length: 5\r\n\r\n%05d" % number
        for number in range(count)
    )
    with Ordinary(running), running.connect() as client:
        sender = threading.Thread(target=client.sendall, args=(requests,))
        sender.start()
        data = b""
        while data.count(b"HTTP/1.1") < count or not data.endswith(
            b"%05d" % (count - 1)
        ):
            data += client.recv(1 << 20)
        sender.join()
    assert [int(body) for _, _, body in answers(data)] == list(range(count))


def test_only_a_few_pipelined_requests_are_held(start):
    running = start()
    with running.connect() as client:
        client.settimeout(1)
        with suppress(TimeoutError):
            client.sendall(GET.replace(b"/echo", b"/hold") + GET * 1_000_000)
        connection = next(iter(running.server.server_state.connections))
        assert len(connection.pipeline) < 1_000
        client.setblocking(True)
        client.shutdown(socket.SHUT_RDWR)
    running.let_go()
    until(lambda: running.open == 0)


def test_garbage_after_a_request_is_refused_after_its_answer(start):
    running = start()
    with running.connect() as client:
        client.sendall(
            GET.replace(b"/echo", b"/hold") + GET + b"\x00garbage\r\n\r\n"
        )
        until(lambda: running.held)
        running.let_go()
        assert [one[0] for one in answers(read_all(client))] == [200, 200, 400]


def test_a_body_is_asked_for_when_it_is_wanted(start):
    running = start()
    with running.connect() as client:
        client.sendall(
            POST
            + b"Expect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
        )
        assert client.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        assert [one[2] for one in answers(read_all(client))] == [b"abc"]
    with running.connect() as client:
        client.sendall(
            POST.replace(b"/echo", b"/early")
            + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_body_that_nobody_wants_may_come_for_a_while(start):
    running = start(body_seconds=0.4)
    early = POST.replace(b"/echo", b"/early")
    with running.connect() as client:
        client.sendall(
            early + b"Content-Length: 500000\r\n\r\n" + bytes(500_000) + GET
        )
        until(lambda: len(running.scopes) == 2)
    assert [
        one[0]
        for one in ask(running, early + b"Content-Length: 500000\r\n\r\nabc")
    ] == [200]


def test_chunks_heads_and_old_clients_are_served(start):
    running = start()
    close = b"Connection: close\r\n"
    chunked = (
        POST
        + close
        + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nhost: x\r\nX: y\r\n\r\n"
    )
    assert [one[2] for one in ask(running, chunked)] == [b"abcdefg"]
    assert [name for name, _ in running.scopes[0]["headers"]] == [
        b"host",
        b"connection",
        b"transfer-encoding",
    ]
    assert [
        one[0]
        for one in ask(
            running, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
    ] == [200]
    with running.connect() as client:
        client.sendall(
            b"HEAD /big HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
        )
        head = read_all(client)
        assert b"content-length: 33554432" in head
        assert head.endswith(b"\r\n\r\n")
    assert [one[0] for one in ask(running, b"GET / HTTP/1.0\r\n\r\n")] == [200]


def test_an_offer_to_upgrade_is_declined_and_the_request_answered(start):
    running = start()
    offer = (
        POST
        + b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEA\r\n"
    )
    whole = offer + b"Content-Length: 20000\r\n\r\n" + b"x" * 20_000
    assert [one[2] for one in ask(running, whole)] == [b"x" * 20_000]
    assert [
        one[2]
        for one in ask(
            running,
            offer + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        )
    ] == [b"abc"]
    websocket = b"GET /echo HTTP/1.1\r\nHost: here\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert [one[0] for one in ask(running, websocket)] == [200]


def test_a_thousand_idle_connections_disturb_nobody(start):
    running = start()
    with ExitStack() as stack:
        for number in range(1_000):
            client = stack.enter_context(running.connect())
            if number % 2:
                client.sendall(GET[:20])
        until(lambda: running.open == 1_000)
        with Ordinary(running) as ordinary:
            ordinary.ask(200)


def test_more_connections_than_allowed_are_sent_away_in_words(start):
    running = start(connections=5)
    with ExitStack() as stack, Ordinary(running) as ordinary:
        idle = [stack.enter_context(running.connect()) for _ in range(4)]
        until(lambda: running.open == 5)
        found = ask(running, GET)
        refused(found, 503, "5 connections are open")
        assert found[0][1]["retry-after"] == "1"
        ordinary.ask()
        idle[0].close()
        until(lambda: running.open <= 4)
        assert [
            one[0]
            for one in ask(
                running,
                GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
            )
        ] == [200]


def test_a_client_that_never_reads_is_cut_off(start):
    running = start(body_seconds=0.5)
    before = psutil.Process().memory_info().rss
    with Ordinary(running) as ordinary, running.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(GET.replace(b"/echo", b"/big") * 20)
        until(lambda: len(running.scopes) > 1)
        until(lambda: ordinary.ask() or running.open == 1)  # type: ignore[func-returns-value]
    assert psutil.Process().memory_info().rss - before < 200 << 20


def test_a_flood_of_bad_requests_leaks_nothing(start):
    running = start()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Ordinary(running) as ordinary:
        for number in range(60):
            kind = (
                b"GET / HTTP/1.1\r\nX: " + b"a" * 300_000,
                b"X: y\r\n" * 50_000,
                bytes(300_000),
            )[number % 3]
            ask(running, kind)
            ordinary.ask()
        until(lambda: running.open == 1)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100 << 10
    )  # KiB


def test_stopping_answers_what_was_accepted(start):
    running = start()
    with (
        running.connect() as client,
        running.connect() as idle,
        running.connect() as half,
    ):
        client.sendall(GET.replace(b"/echo", b"/hold") + GET)
        half.sendall(GET[:20])
        until(lambda: running.held and running.open == 3)
        running.server.should_exit = True
        assert read_all(idle) == b""
        assert read_all(half) == b""
        running.let_go()
        assert [one[0] for one in answers(read_all(client))] == [200, 200]
