"""A gateway behind a gRPC server in a thread of its own, and ways to call it: a published client, and frames
made by hand.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import hpack
import numpy as np

from modelmill.protocols.v2.grpc import serve
from modelmill.protocols.v2.grpc.messages import message, pool
from modelmill.serve.gateway import Gateway, Operator
from modelmill.settings import Limits
from modelmill.types import ServedVersion
from tests.helpers.gateways import InMemoryApi, a_snapshot
from tests.helpers.workers import Answering, FakeWorker, until

SERVICE = "inference.GRPCInferenceService"
KEY = {"authorization": "Bearer admin-key"}
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class GrpcApi:
    """A gateway with a gRPC server, driven from synchronous tests."""

    def __init__(
        self, tls: Any = None, operator: Operator | None = None, **limits: Any
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._workers: list[FakeWorker] = []
        self.gateway = Gateway(Limits(**limits), operator=operator)
        self.update()
        self.server = self.run(serve(self.gateway, ("127.0.0.1", 0), tls))
        self.address = f"127.0.0.1:{self.server.port}"

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def update(self, *routes: ServedVersion) -> None:
        """Serve these deployments."""

        async def change() -> None:
            self.gateway.update(a_snapshot(*routes, keys=InMemoryApi.KEYS))

        self.run(change())

    def worker(self, path: Path, answering: Answering) -> FakeWorker:
        """A worker that the gateway can reach."""
        self._workers.append(self.run(FakeWorker(path, answering).start()))
        return self._workers[-1]

    def close(self) -> None:
        """Stop everything."""

        async def end() -> None:
            await self.server.stop(0)
            # Sockets are closed in a later turn of the loop, which has to come
            await until(lambda: not self.server._connections)
            self.gateway.update(a_snapshot())
            for worker in self._workers:
                await worker.stop()
            await until(
                lambda: not any(worker.open for worker in self._workers)
            )
            await until(lambda: len(asyncio.all_tasks()) == 1)

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def method(path: str) -> Any:
    """The descriptor of a method by its path."""
    service, _, name = path[1:].partition("/")
    return pool().FindServiceByName(service).methods_by_name[name]


def stub(channel: Any, path: str) -> Any:
    """A method of a channel (sync or aio) that speaks our messages."""
    described = method(path)
    kind = {
        (False, False): "unary_unary",
        (False, True): "unary_stream",
        (True, True): "stream_stream",
    }
    make = getattr(
        channel, kind[described.client_streaming, described.server_streaming]
    )
    return make(
        path,
        request_serializer=lambda one: one.SerializeToString(),
        response_deserializer=message(
            described.output_type.full_name
        ).FromString,
    )


class Client:
    """A synchronous grpc client of the inference service."""

    def __init__(
        self, address: str, key: str | None = "admin-key", **options: Any
    ) -> None:
        self.channel = grpc.insecure_channel(address, OPTIONS, **options)
        self.metadata = (
            [("authorization", f"Bearer {key}")] if key is not None else []
        )

    def call(self, name: str, request: Any = None, **options: Any) -> Any:
        """Call a method of the inference service with fields of its request, or with a request."""
        path = f"/{SERVICE}/{name}"
        fields = request if isinstance(request, Mapping) else {}
        if request is None or isinstance(request, Mapping):
            request = message(method(path).input_type.full_name)(**fields)
        options = {"timeout": 20, "metadata": self.metadata, **options}
        return stub(self.channel, path)(request, **options)

    def refusal(self, name: str, request: Any = None, **options: Any) -> Any:
        """The error of a call that fails."""
        try:
            answer = self.call(name, request, **options)
        except grpc.RpcError as error:
            return error
        raise AssertionError(f"{name} answered {answer}")

    def close(self) -> None:
        """Disconnect."""
        self.channel.close()


def a_request(
    model: str, *inputs: tuple[str, str, Any], raw: bool = True, **fields: Any
) -> Any:
    """A ModelInferRequest with inputs (name, datatype, array), raw little-endian."""
    request = message("inference.ModelInferRequest")(model_name=model, **fields)
    for name, datatype, array in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=np.shape(array))
        if raw:
            request.raw_input_contents.append(np.asarray(array).tobytes())
    return request


# ---- frames by hand

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
(
    DATA,
    HEADERS,
    PRIORITY,
    RST,
    SETTINGS,
    PUSH,
    PING,
    GOAWAY,
    WINDOW,
    CONTINUATION,
) = range(10)


def framed(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    )


def prefixed(body: bytes, flag: int = 0) -> bytes:
    """One gRPC message."""
    return struct.pack(">BI", flag, len(body)) + body


def fields(
    path: str = f"/{SERVICE}/ServerLive", **more: str
) -> list[tuple[str, str]]:
    """The headers of a call; `_` in a name stands for `-`."""
    named = {name.replace("_", "-"): value for name, value in more.items()}
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        *{
            "content-type": "application/grpc",
            "te": "trailers",
            **named,
        }.items(),
    ]


class Raw:
    """A client that sends frames made by hand."""

    def __init__(self, port: int, greet: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.buffer = b""
        if greet:
            self.send(PREFACE + framed(SETTINGS, 0, 0))

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.socket.sendall(data)

    def call(
        self,
        number: int,
        body: bytes | None = b"",
        path: str = f"/{SERVICE}/ServerLive",
        **more: str,
    ) -> None:
        """A whole unary call, or (body None) only its headers."""
        block = self.encoder.encode(fields(path, **more))
        self.send(framed(HEADERS, 4, number, block))
        if body is not None:
            self.send(framed(DATA, 1, number, prefixed(body)))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """What the server sends (kind, flags, stream, payload) until it closes."""
        while True:
            while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(
                self.buffer[:3], "big"
            ):
                try:
                    more = self.socket.recv(1 << 16)
                except ConnectionError:
                    return
                if not more:
                    return
                self.buffer += more
            end = 9 + int.from_bytes(self.buffer[:3], "big")
            head = self.buffer[:9]
            payload = self.buffer[9:end]
            self.buffer = self.buffer[end:]
            yield head[3], head[4], int.from_bytes(head[5:9], "big"), payload

    def answer(self, number: int) -> tuple[dict[str, str], bytes]:
        """Headers and trailers of a call as one, and its body."""
        said: dict[str, str] = {}
        body = b""
        for kind, flags, stream, payload in self.frames():
            if kind == HEADERS:
                got = dict(self.decoder.decode(payload))
                if stream == number:
                    said |= got
            if kind == DATA and stream == number:
                body += payload
            if kind == RST and stream == number:
                return {
                    **said,
                    "reset": str(int.from_bytes(payload, "big")),
                }, body
            if stream == number and flags & 1 and kind in (DATA, HEADERS):
                return said, body
        raise AssertionError("the server closed the connection")

    def goaway(self) -> int:
        """The code with which the server ends the connection; -1 when it only closes it."""
        code = -1
        for kind, _, _, payload in self.frames():
            if kind == GOAWAY:
                code = int.from_bytes(payload[4:8], "big")
        return code

    def close(self) -> None:
        """Disconnect."""
        self.socket.close()


@contextmanager
def raw(port: int, greet: bool = True) -> Iterator[Raw]:
    """A raw client that is closed at the end."""
    client = Raw(port, greet)
    try:
        yield client
    finally:
        client.close()
