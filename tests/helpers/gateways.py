"""A gateway with the HTTP application: in memory, or on a real port."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from modelmill.protocols.app import App
from modelmill.serve.gateway import Gateway, Operator
from modelmill.settings import Limits
from modelmill.types import (
    KeyInfo,
    ServedVersion,
    Snapshot,
    TensorSpec,
)
from modelmill.wire.http1.server import guarded
from tests.helpers.workers import Answering, FakeWorker, until


def a_route(
    name: str = "spots", project: str = "default", **changed: Any
) -> ServedVersion:
    """A deployment that is ready."""
    values = {
        "deployment": name,
        "project": project,
        "model": name,
        "version": 1,
        "task": "image-classification",
        "kind": "image",
        "ready": True,
        "inputs": [
            TensorSpec(name="image", datatype="UINT8", shape=[-1, 2, 2, 1])
        ],
        "outputs": [TensorSpec(name="scores", datatype="FP32", shape=[-1, 2])],
        "sockets": [],
    }
    return ServedVersion(**(values | changed))


def a_snapshot(
    *routes: ServedVersion, keys: Mapping[str, tuple[str, ...]] = {}
) -> Snapshot:
    """Served versions, and keys as `{key: (project, role)}`, or with their name as a third."""
    from modelmill.control.keys import digest_of

    known = [
        KeyInfo(digest=digest_of(key), project=p, role=r, name="".join(name))
        for key, (p, r, *name) in keys.items()
    ]
    return Snapshot(
        revision=(1, 1),
        routes={
            f"{route.project}/{route.deployment}": route for route in routes
        },
        keys={info.digest: info for info in known},
    )


class Reply(NamedTuple):
    """What came back over HTTP."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> str:
        """The line for people, in whichever shape it came."""
        error = self.json["error"]
        return str(error["message"] if isinstance(error, dict) else error)


async def nobody(scope: Any, receive: Any, send: Any) -> None:
    """An admin application that answers 204."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class InMemoryApi:
    """The application, driven as an ASGI server would, from synchronous tests."""

    KEYS: Mapping[str, tuple[str, str]] = {
        "admin-key": ("default", "admin"),
        "user-key": ("default", "user"),
        "other-key": ("other", "user"),
    }

    def __init__(self, operator: Operator | None = None, **limits: Any) -> None:
        self.runner = asyncio.Runner()
        self.gateway = Gateway(Limits(**limits), operator=operator)
        self.app = App(self.gateway, nobody)

    def update(self, *routes: ServedVersion) -> None:
        """Serve these deployments."""

        async def change() -> None:
            self.gateway.update(a_snapshot(*routes, keys=self.KEYS))

        self.runner.run(change())

    def worker(self, path: Path, answering: Answering) -> FakeWorker:
        """A worker that the gateway can reach."""
        return self.runner.run(FakeWorker(path, answering).start())

    def close(self) -> None:
        """Let go of everything."""
        self.runner.close()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | list[Any] = b"",
        headers: Mapping[str, str | bytes] | None = None,
        key: str | None = "admin-key",
    ) -> Reply:
        """One request; a list is a body in parts, in which a function is called when its turn
        comes.
        """
        return self.runner.run(
            self._ask(method, path, body, dict(headers or {}), key)
        )

    async def _ask(
        self,
        method: str,
        path: str,
        body: Any,
        headers: dict[str, Any],
        key: str | None,
    ) -> Reply:
        if key is not None:
            headers.setdefault("authorization", f"Bearer {key}")
        parts = list(body) if isinstance(body, list) else [body]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            while parts and callable(parts[0]):
                parts.pop(0)()
            if not parts:
                return {"type": "http.disconnect"}
            part = parts.pop(0)
            return {
                "type": "http.request",
                "body": part,
                "more_body": bool(parts),
            }

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [
                (
                    name.lower().encode(),
                    value
                    if isinstance(value, bytes)
                    else value.encode("latin-1"),
                )
                for name, value in headers.items()
            ],
        }
        await self.app(scope, receive, send)
        if not sent:
            return Reply(0, {}, b"")
        return Reply(
            sent[0]["status"],
            dict(sent[0]["headers"]),
            b"".join(m.get("body", b"") for m in sent[1:]),
        )


class LiveApi:
    """The application on a real HTTP server, in a thread, for clients that others wrote."""

    def __init__(
        self, routes: Callable[["LiveApi"], Awaitable[list[ServedVersion]]]
    ) -> None:
        """`routes` starts workers, in the server's loop, and returns the deployments."""
        import socket
        import threading

        import uvicorn

        # Named TCP, so that asyncio sends what is short at once.
        self._socket = socket.socket(
            socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
        )
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(128)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.gateway = Gateway(Limits(timeout_seconds=20))
        app: Any = App(self.gateway, nobody)
        http = guarded(self.gateway.limits)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=http,
                lifespan="off",
                log_config=None,
                timeout_graceful_shutdown=5,
            )
        )
        self._routes, self._workers = routes, list[FakeWorker]()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), daemon=True
        )
        self._thread.start()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.gateway.update(
            a_snapshot(*await self._routes(self), keys=InMemoryApi.KEYS)
        )
        await self._server.serve(sockets=[self._socket])
        self.gateway.update(a_snapshot())  # lets go of the workers
        for worker in self._workers:
            await worker.stop()
            await until(lambda worker=worker: not worker.open)

    def change(
        self,
        *routes: ServedVersion,
        keys: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Let the gateway serve other routes, or know other keys."""

        async def update() -> None:
            self.gateway.update(
                a_snapshot(
                    *routes, keys=InMemoryApi.KEYS if keys is None else keys
                )
            )

        asyncio.run_coroutine_threadsafe(update(), self._loop).result(10)

    async def worker(self, path: Path, answering: Answering) -> FakeWorker:
        """A worker that the gateway can reach, until the end."""
        self._workers.append(await FakeWorker(path, answering).start())
        return self._workers[-1]

    def close(self) -> None:
        """End the server."""
        self._server.should_exit = True
        self._thread.join(10)
