"""Open Inference Protocol v2 over gRPC: the same as over HTTP, with `ModelStreamInfer`, health and
reflection.

gRPC is spoken by our own small HTTP/2 server (docs/decisions/0013). It is imported when `serve` is
called, not before.
"""

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from modelmill.serve.gateway import Gateway
from modelmill.wire.budget import BodyBudget, body_budget

if TYPE_CHECKING:
    from modelmill.protocols.v2.grpc.server import Address, GrpcServer, Tls

    Where = socket.socket | Address | Sequence[Address]


async def serve(
    gateway: Gateway,
    where: "Where",
    tls: "Tls | None" = None,
    budget: BodyBudget | None = None,
) -> "GrpcServer":
    """Listen at (host, port) or several of them, or on a bound socket; with `tls` (certificate,
    key) encrypted.

    Messages are received within `budget`. A port may be shared by several processes. The server has
    a `port` and `stop(grace)`. Raises `InvalidInput` for files that are no certificate, `OSError`
    for an address that can't be had.
    """
    from modelmill.protocols.v2.grpc.server import GrpcServer, tls_context
    from modelmill.protocols.v2.grpc.service import methods

    context = tls_context(tls) if tls is not None else None
    server = GrpcServer(
        gateway,
        methods(gateway.public_reflection),
        budget or body_budget(gateway.limits),
    )
    try:
        for one in _each(where):
            await server.listen(one, context)
    except OSError:
        await server.stop(0)
        raise
    return server


def _each(where: "Where") -> "Sequence[socket.socket | Address]":
    """One place or several, as several."""
    if isinstance(where, socket.socket):
        return [where]
    host, port = where[0], where[-1]
    return (
        [(host, port)]
        if isinstance(host, str) and isinstance(port, int)
        else cast("Sequence[Address]", where)
    )
