"""Requests to reference models, in threads: what a test sends at once, and what came back for
each.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx2

from tests.platform.conftest import Platform, until
from tests.reference.plugin import SIGNATURES

THREADS = 64


class Caller:
    """One user with one key; `soon` sends from a thread, `now` waits for the answer."""

    def __init__(self, platform: Platform, key: str = "") -> None:
        self.platform = platform
        headers = {"Authorization": f"Bearer {key or platform.client.key}"}
        limits = httpx2.Limits(
            max_connections=THREADS, max_keepalive_connections=THREADS
        )
        self._http = httpx2.Client(
            base_url=platform.url, headers=headers, timeout=60, limits=limits
        )
        self._threads = ThreadPoolExecutor(THREADS)

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._http.close()

    def now(self, name: str, *column: float, **more: Any) -> httpx2.Response:
        """Ask a model of the test engine for a column of values; `kind` is the model's when `name`
        is not.
        """
        headers = more.pop("headers", {})
        path = f"/v2/models/{name}" + (
            f"/versions/{more.pop('version')}" if "version" in more else ""
        )
        return self._http.post(
            f"{path}/infer", json=body(name, column, **more), headers=headers
        )

    def soon(
        self, name: str, *column: float, **more: Any
    ) -> "Future[httpx2.Response]":
        """The same, from a thread."""
        return self._threads.submit(self.now, name, *column, **more)

    def add(
        self, name: str, one: float, other: float, **more: Any
    ) -> httpx2.Response:
        """Ask an addsub model."""
        inputs = [
            {"name": "a", "shape": [1, 1], "datatype": "FP32", "data": [one]},
            {"name": "b", "shape": [1, 1], "datatype": "FP32", "data": [other]},
        ]
        path = f"/v2/models/{name}" + (
            f"/versions/{more['version']}" if "version" in more else ""
        )
        return self._http.post(
            f"{path}/infer",
            json={"inputs": inputs},
            headers=more.get("headers", {}),
        )

    def post(self, path: str) -> httpx2.Response:
        """A request without a body."""
        return self._http.post(path)

    def pending(self, name: str) -> int:
        """How many requests of a deployment wait or are being answered."""
        return int(self.metric("modelmill_pending_requests", name))

    def metric(self, metric: str, name: str) -> float:
        """The sum of a metric's series of one deployment."""
        lines = self._http.get("/metrics").text.splitlines()
        mine = [
            line
            for line in lines
            if line.startswith(metric + "{") and f'deployment="{name}"' in line
        ]
        return sum(float(line.rpartition(" ")[2]) for line in mine)


def body(
    name: str,
    column: tuple[float, ...],
    kind: str = "",
    id: str = "",
    **parameters: Any,
) -> dict[str, Any]:
    """The JSON of a v2 request for one column."""
    (given, datatype), _ = SIGNATURES[kind or name]
    tensor = {
        "name": given,
        "shape": [len(column), 1],
        "datatype": datatype,
        "data": list(column),
    }
    return {"id": id, "parameters": parameters, "inputs": [tensor]}


def answer(response: httpx2.Response, output: str) -> list[float]:
    """One output of a successful answer."""
    assert response.status_code == 200, response.text
    found: list[float] = next(
        one["data"]
        for one in response.json()["outputs"]
        if one["name"] == output
    )
    return found


def deploy(
    platform: Platform, model: str, *, wait: bool = True, **fields: Any
) -> dict[str, Any]:
    """What `modelmill deploy` sends, with any field; waits until the deployment answers."""
    row: dict[str, Any] = platform.client._call(
        "POST", "/api/v1/deployments", json={"model": model, **fields}
    )
    if wait:
        until(lambda: settled(platform, row["name"]))
    return row


def settled(platform: Platform, name: str) -> bool:
    """Whether a deployment answers with its wanted version, on as many workers as are wanted."""
    row = platform.client.deployment(name)
    return platform.client._is_routed(row) and row["ready_replicas"] >= min(
        row["replicas"], 1
    )


def workers(platform: Platform, name: str) -> list[int]:
    """The process numbers of a deployment's workers."""
    title = f"modelmill: worker {name}"
    found = platform.children(title)
    exact = []
    for process in found:
        with suppress(Exception):
            if " ".join(process.cmdline()).strip() == title:
                exact.append(process.pid)
    return exact


def statuses(
    answers: Mapping[Any, "Future[httpx2.Response]"],
) -> dict[Any, int]:
    """The status of every answer, waiting for all."""
    return {key: future.result().status_code for key, future in answers.items()}
