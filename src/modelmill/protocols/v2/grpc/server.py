"""Listening for gRPC: sockets, TLS, the watch over slow clients, and the end."""

import asyncio
import socket
import ssl
from contextlib import suppress
from functools import partial
from pathlib import Path

from modelmill.errors import Expired, InvalidInput
from modelmill.protocols.v2.grpc.call import GrpcCall, Method, read_head
from modelmill.serve.gateway import Gateway
from modelmill.wire.budget import OVERHEAD_BYTES, BodyBudget
from modelmill.wire.http2.connection import Http2Connection
from modelmill.wire.http2.sender import CANCEL, NO_ERROR, PROTOCOL

Address = tuple[str, int]
Tls = tuple[Path | str, Path | str]
"""Certificate chain and private key, both PEM files."""

MAX_CONNECTIONS = 4096
WATCH_SECONDS = 1.0
GREETING_SECONDS = 10
STALL_SECONDS = 60
BACKLOG = 2048


class GrpcServer:
    """The connections of all clients. `methods` are the handlers by path
    (`/package.Service/Method`).
    """

    def __init__(
        self, gateway: Gateway, methods: dict[str, Method], budget: BodyBudget
    ) -> None:
        self.gateway, self.methods = gateway, methods
        self.loop = asyncio.get_running_loop()
        self.limit = gateway.limits.body_bytes + OVERHEAD_BYTES
        self.budget = budget
        self.port = 0
        self._connections: set[Http2Connection] = set()
        self._listeners: list[asyncio.Server] = []
        self._watching = self.loop.create_task(self._watch())

    async def listen(
        self, where: socket.socket | Address, tls: ssl.SSLContext | None
    ) -> None:
        """Take connections at an address or from a socket that is bound; raises `OSError`."""
        create = partial(
            self.loop.create_server, self._connect, ssl=tls, backlog=BACKLOG
        )
        if isinstance(where, socket.socket):
            listener = await create(sock=where)
        else:
            host, port = where
            listener = await create(host=host, port=port, reuse_port=bool(port))
        self._listeners.append(listener)
        self.port = self.port or listener.sockets[0].getsockname()[1]

    def _connect(self) -> asyncio.Protocol:
        if len(self._connections) >= MAX_CONNECTIONS:
            return _Refused()
        return Http2Connection(
            lambda headers: read_head(headers, self.methods),
            self._accept,
            self._connections,
        )

    def _accept(self, sender: object, number: int, head: object) -> GrpcCall:
        return GrpcCall(self, sender, number, head)  # type: ignore[arg-type]

    async def stop(self, grace: float) -> None:
        """Answer what has arrived for at most `grace` seconds, refuse the rest, and disconnect."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            for call in _calls(connection):
                call.stop()
            connection.drain()
        end = self.loop.time() + grace
        while self._connections and self.loop.time() < end:
            await asyncio.sleep(0.01)
        await self._disconnect()

    async def _disconnect(self) -> None:
        """Let go of the clients that are still there."""
        self._watching.cancel()
        for connection in list(self._connections):
            connection.fail(NO_ERROR, "the server stops")
        with suppress(asyncio.CancelledError):
            await self._watching

    async def _watch(self) -> None:
        """Nobody may hold what others need by being slow."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = self.loop.time()
            for connection in list(self._connections):
                if (
                    not connection.greeted
                    and connection.since < now - GREETING_SECONDS
                ):
                    connection.fail(PROTOCOL, "no greeting")
                else:
                    self._end_overdue(connection, now)

    def _end_overdue(self, connection: Http2Connection, now: float) -> None:
        """End the calls of clients that do not read, or whose message does not come."""
        patience = self.gateway.limits.timeout_seconds
        for stream in connection.sender.overdue(STALL_SECONDS):
            connection.reset(stream, CANCEL)
        for call in _calls(connection):
            if call.overdue(now - patience):
                call.refuse(
                    Expired(
                        f"the message did not arrive within {patience:g} seconds"
                    )
                )


def _calls(connection: Http2Connection) -> list[GrpcCall]:
    """The calls of a connection, as they are now."""
    streams = connection.streams.values()
    return [stream for stream in streams if isinstance(stream, GrpcCall)]


class _Refused(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say goodbye at once."""
        transport.close()


def tls_context(tls: Tls) -> ssl.SSLContext:
    """What the files allow to be served; raises `InvalidInput`."""
    certificate, key = tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(
            f"TLS needs a certificate and its key as PEM files; {certificate}, {key}: {error}"
        ) from error
    return context
