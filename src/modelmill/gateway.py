"""The gateway process: all protocols, the admin API and the queues, put together behind the sockets
it is handed.
"""

import asyncio
import gc
import logging
import resource
import shutil
import socket
import time
from typing import Any, cast

import msgspec
import uvicorn
import uvloop

from modelmill.cluster.child import Report
from modelmill.control.api import make_api
from modelmill.control.api_base import Control, Embed
from modelmill.control.db import project_id
from modelmill.errors import MillError, Unavailable
from modelmill.protocols import v2_grpc
from modelmill.protocols._app import App
from modelmill.protocols._grpc_server import GrpcServer
from modelmill.protocols.base import STATUS
from modelmill.rooms import Rooms, run_folder
from modelmill.serve.gateway import Gateway, Operate
from modelmill.serve.gossip import Gossip
from modelmill.serve.tracing import Tracing
from modelmill.settings import Settings
from modelmill.types import GatewaySpec, KeyInfo
from modelmill.wire.http1.server import guarded

LOAD_SECONDS = 60.0
INFORMED_SECONDS = 5.0
POLL_SECONDS = 0.01
GARBAGE = 20_000
"""Objects that requests may leave behind before they are collected."""


def main(spec: bytes, report: Report) -> int:
    """Entry of the gateway process."""
    told = msgspec.json.decode(spec, type=GatewaySpec)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    settings = Settings.model_validate(told.settings)
    _allow_files(settings.limits.connections + 1024)
    uvloop.run(_serve(settings, told, report))
    return 0


def _allow_files(count: int) -> None:
    """Let this process open so many files and sockets, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _serve(settings: Settings, told: GatewaySpec, report: Report) -> None:
    rooms = Rooms(settings)
    door = Gateway(settings.limits, settings.gateways)
    door.shared_memory = settings.shared_memory
    door.public_reflection = settings.public_reflection
    door.tracing = Tracing.from_settings(settings)
    door.operate = operator_of(door, rooms)
    server = _http_server(
        settings, App(door, _admin(door, rooms), settings.invocations)
    )

    def room_left() -> bool:
        return shutil.disk_usage(settings.home).free >= settings.limits.free_bytes

    following = asyncio.create_task(door.follow(rooms.deployments.snapshot, room_left))
    watching = asyncio.create_task(_announce(door, server, report))
    gossip = asyncio.create_task(Gossip(door, run_folder(settings.home)).run())
    await _informed(door)
    certificate, key = settings.certificate, settings.certificate_key
    tls = (certificate, key) if certificate and key else None
    grpc_server = await v2_grpc.serve(
        door, socket.socket(fileno=told.grpc_descriptor), tls
    )
    stopping = asyncio.create_task(
        _stop_grpc(grpc_server, server, settings.drain_seconds)
    )
    await server.serve(sockets=[socket.socket(fileno=told.descriptor)])
    await stopping
    for task in (following, watching, gossip):
        task.cancel()
    if door.tracing is not None:
        door.tracing.close()


def _admin(door: Gateway, rooms: Rooms) -> Any:
    upload_bytes = rooms.settings.limits.upload_bytes
    parts = (
        rooms.database,
        rooms.datasets,
        rooms.registry,
        rooms.jobs,
        rooms.deployments,
        rooms.artifacts,
    )
    control = Control(*parts, upload_bytes, rooms.indexes, embedder_of(door))
    return make_api(control, lambda error: STATUS.get(error.code, 500))


def _http_server(settings: Settings, app: App) -> uvicorn.Server:
    config = uvicorn.Config(
        cast(Any, app),
        http=guarded(settings.limits),
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_seconds) or 1,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.certificate_key,
    )
    return uvicorn.Server(config)


async def _stop_grpc(
    grpc_server: GrpcServer, server: uvicorn.Server, seconds: float
) -> None:
    """Let gRPC drain as soon as HTTP begins to."""
    while not server.should_exit:
        await asyncio.sleep(0.02)
    await grpc_server.stop(seconds)


async def _informed(door: Gateway) -> None:
    """Wait for the first routes before a connection is accepted: a gateway that replaces another
    refuses nobody.

    Not for ever: while the database is stuck, health at least is answered.
    """
    patience = time.monotonic() + INFORMED_SECONDS
    while door.unready == "starting" and time.monotonic() < patience:
        await asyncio.sleep(POLL_SECONDS)


async def _announce(door: Gateway, server: uvicorn.Server, report: Report) -> None:
    """Tell the supervisor when the gateway is ready; stop being ready as soon as it drains."""
    while not (server.started and door.ready):
        await asyncio.sleep(0.01)
    gc.collect()
    # what was imported stays: collections look at what requests leave behind, and seldom
    gc.freeze()
    gc.set_threshold(GARBAGE, 20, 100)
    report({"ready": True})
    while not server.should_exit:
        await asyncio.sleep(0.02)
    door.draining = True


def embedder_of(door: Gateway) -> Embed:
    """The function by which an index asks the model that it is of, whatever name that is deployed
    under.
    """

    async def embed(
        caller: KeyInfo, model: str, version: int, data: bytes
    ) -> list[float]:
        every = (
            one
            for route in door.routes(caller).values()
            for one in (route, *route.others)
        )
        serving = [
            one
            for one in every
            if (one.model, one.version) == (model, version) and not one.shadow
        ]
        if not serving:
            raise Unavailable(
                f"the index is of {model}:{version}, which is not deployed: deploy that version "
                "first"
            )
        route = max(serving, key=lambda one: one.ready)
        answer = await door.predict(caller, route, "index", data=data, pinned=True)
        return msgspec.json.decode(answer.data, type=list[float])

    return embed


def operator_of(door: Gateway, rooms: Rooms) -> Operate:
    """The function by which a gateway loads and unloads: it returns when this gateway sees it
    done.
    """

    async def operate(caller: KeyInfo, name: str, loaded: bool) -> None:
        def write() -> None:
            with rooms.database.session() as session:
                number = project_id(session, caller.project)
            rooms.deployments.set_loaded(number, name, loaded)

        await asyncio.to_thread(write)
        door.tell_of_change()
        patience = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < patience:
            route = door.route(caller, name)
            if route.error and loaded:
                raise MillError(f"'{name}' can't be served: {route.error}")
            if (route.ready and door.connected(route)) if loaded else not route.loaded:
                return
            await asyncio.sleep(POLL_SECONDS)
        raise Unavailable(f"'{name}' is still loading", retry_after=1)

    return operate
