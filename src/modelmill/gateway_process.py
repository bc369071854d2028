"""The gateway process: serves all protocols and the admin API on the sockets that it inherits."""

import asyncio
import gc
import logging
import resource
import shutil
import socket
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import uvicorn
import uvloop

from modelmill.cluster.child import Report
from modelmill.control.api import make_api
from modelmill.control.api_base import Control, Embed
from modelmill.control.db import project_id
from modelmill.errors import MillError, Unavailable
from modelmill.protocols.app import App
from modelmill.protocols.base import STATUS
from modelmill.protocols.v2.grpc import serve as serve_grpc
from modelmill.protocols.v2.grpc.server import GrpcServer
from modelmill.serve.gateway import Gateway, Operator
from modelmill.serve.gossip import Gossip
from modelmill.serve.tracing import Tracing
from modelmill.settings import Settings
from modelmill.stores import Stores, run_folder
from modelmill.types import GatewaySpec, KeyInfo, ServedVersion
from modelmill.wire.budget import body_budget
from modelmill.wire.http1.server import guarded

LOAD_SECONDS = 60.0
INFORMED_SECONDS = 5.0
POLL_SECONDS = 0.01
GARBAGE = 20_000
"""Objects allocated before the garbage collector runs (its generation 0 threshold)."""


def main(spec: bytes, report: Report) -> int:
    """Entry of the gateway process."""
    gateway_spec = msgspec.json.decode(spec, type=GatewaySpec)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    settings = Settings.model_validate(gateway_spec.settings)
    _allow_files(settings.limits.connections + 1024)
    uvloop.run(_serve(settings, gateway_spec, report))
    return 0


def _allow_files(count: int) -> None:
    """Raise the limit of open files and sockets to `count`, or to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _serve(settings: Settings, spec: GatewaySpec, report: Report) -> None:
    stores = Stores(settings)
    gateway = _gateway(stores)
    budget = body_budget(settings.limits, settings.gateways)
    app = App(gateway, _admin(gateway, stores), settings.invocations, budget)
    server = _http_server(settings, app)
    background = _background(gateway, stores, server, report)
    await _informed(gateway)
    grpc_server = await serve_grpc(
        gateway,
        socket.socket(fileno=spec.grpc_descriptor),
        _tls(settings),
        budget,
    )
    stopping = asyncio.create_task(
        _stop_grpc(grpc_server, server, settings.drain_seconds)
    )
    await server.serve(sockets=[socket.socket(fileno=spec.descriptor)])
    await stopping
    for task in background:
        task.cancel()
    if gateway.tracing is not None:
        gateway.tracing.close()


def _gateway(stores: Stores) -> Gateway:
    settings = stores.settings
    return Gateway(
        settings.limits,
        settings.gateways,
        shared_memory=settings.shared_memory,
        public_reflection=settings.public_reflection,
        tracing=Tracing.from_settings(settings),
        operator=operator_of(stores),
    )


def _tls(settings: Settings) -> tuple[Path, Path] | None:
    """Certificate and key, where both are there."""
    if settings.certificate and settings.certificate_key:
        return settings.certificate, settings.certificate_key
    return None


def _background(
    gateway: Gateway, stores: Stores, server: uvicorn.Server, report: Report
) -> list[asyncio.Task[None]]:
    """What goes on beside the requests, until it is cancelled."""
    settings = stores.settings

    def room_left() -> bool:
        return (
            shutil.disk_usage(settings.home).free >= settings.limits.free_bytes
        )

    gossip = Gossip(gateway, run_folder(settings.home))
    return [
        asyncio.create_task(
            gateway.follow(stores.deployments.snapshot, room_left)
        ),
        asyncio.create_task(_announce(gateway, server, report)),
        asyncio.create_task(gossip.run()),
    ]


def _admin(gateway: Gateway, stores: Stores) -> Any:
    limits = stores.settings.limits
    control = Control(
        database=stores.database,
        datasets=stores.datasets,
        registry=stores.registry,
        jobs=stores.jobs,
        deployments=stores.deployments,
        artifacts=stores.artifacts,
        upload_bytes=limits.upload_bytes,
        free_bytes=limits.free_bytes,
        indexes=stores.indexes,
        embed=embedder_of(gateway),
    )
    return make_api(control, lambda error: STATUS.get(error.code, 500))


def _http_server(settings: Settings, app: App) -> uvicorn.Server:
    config = uvicorn.Config(
        cast(Any, app),
        http=guarded(settings.limits, settings.hosts),
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


async def _informed(gateway: Gateway) -> None:
    """Wait for the first routes before a connection is accepted, so that a gateway that replaces
    another refuses no request.

    Gives up after `INFORMED_SECONDS`: while the database does not answer, health still does.
    """
    deadline = time.monotonic() + INFORMED_SECONDS
    while gateway.unready == "starting" and time.monotonic() < deadline:
        await asyncio.sleep(POLL_SECONDS)


async def _announce(
    gateway: Gateway, server: uvicorn.Server, report: Report
) -> None:
    """Tell the supervisor when the gateway is ready; stop being ready as soon as it drains."""
    while not (server.started and gateway.ready):
        await asyncio.sleep(0.01)
    gc.collect()
    # Imported objects are never collected: collections look at those of requests alone.
    gc.freeze()
    gc.set_threshold(GARBAGE, 20, 100)
    report({"ready": True})
    while not server.should_exit:
        await asyncio.sleep(0.02)
    gateway.draining = True


def embedder_of(gateway: Gateway) -> Embed:
    """A function that computes an index's vectors with its model, whatever name the model is
    deployed under. It raises `Unavailable` when that version is not deployed.
    """

    async def embed(
        caller: KeyInfo, model: str, version: int, data: bytes
    ) -> list[float]:
        route = _route_to(gateway, caller, (model, version))
        answer = await gateway.predict(
            caller, route, "index", data=data, pinned=True
        )
        return msgspec.json.decode(answer.data, type=list[float])

    return embed


def _route_to(
    gateway: Gateway, caller: KeyInfo, version: tuple[str, int]
) -> ServedVersion:
    """The route to a version, to one that is ready where there are several."""
    serving = [
        route
        for main in gateway.routes(caller).values()
        for route in (main, *main.others)
        if (route.model, route.version) == version and not route.shadow
    ]
    if not serving:
        model, number = version
        raise Unavailable(
            f"the index is of {model}:{number}, which is not deployed: deploy that version first"
        )
    return max(serving, key=lambda route: route.ready)


def operator_of(stores: Stores) -> Operator:
    """A function that loads or unloads a deployment and returns when the gateway sees it done.

    It raises `MillError` when the deployment can't be served, `Unavailable` after `LOAD_SECONDS`.
    """

    async def operate(
        gateway: Gateway, caller: KeyInfo, name: str, loaded: bool
    ) -> None:
        await asyncio.to_thread(_set_loaded, stores, caller, name, loaded)
        gateway.tell_of_change()
        deadline = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < deadline:
            if _is_done(gateway, caller, name, loaded):
                return
            await asyncio.sleep(POLL_SECONDS)
        raise Unavailable(f"'{name}' is still loading", retry_after=1)

    return operate


def _set_loaded(
    stores: Stores, caller: KeyInfo, name: str, loaded: bool
) -> None:
    """Write the desired state."""
    with stores.database.session() as session:
        number = project_id(session, caller.project)
    stores.deployments.set_loaded(number, name, loaded)


def _is_done(
    gateway: Gateway, caller: KeyInfo, name: str, loaded: bool
) -> bool:
    """Whether a gateway sees a deployment as it was asked for; raises `MillError` where it
    can't be served.
    """
    route = gateway.route(caller, name)
    if not loaded:
        return not route.loaded
    if route.error:
        raise MillError(f"'{name}' can't be served: {route.error}")
    return route.ready and gateway.connected(route)
