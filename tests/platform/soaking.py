"""The load of the soak, a process of its own: users who ask, check every answer, and never hurry.

`python -m tests.platform.soaking SPEC REPORT`: both are JSON files; see `Spec` and `Report`.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np

from tests.reference.graphs import COLOURS, picture

PAUSE_SECONDS = 0.02
GRPC_FILES = "modelmill.protocols.v2.grpc.proto"


class Spec(msgspec.Struct):
    """What the load is told: the addresses ('' without gRPC), three keys, and for how long."""

    url: str
    grpc: str
    keys: list[str]
    seconds: float


class Report(msgspec.Struct):
    """What came of it: answers by user, ids of counted rows, and what went wrong.

    `broken` holds the moments (seconds since 1970) at which a connection broke and its request was
    sent again.
    """

    answered: dict[str, int] = {}
    asked: dict[str, int] = {}
    counted: list[int] = []
    broken: list[float] = []
    wrong: list[str] = []
    seconds: list[float] = []


class Broken(Exception):
    """The connection broke before the answer came."""


Ask = Callable[[int], Awaitable[str]]
"""Send request number N; returns what is wrong with the answer ('' for nothing). Raises
`Broken`.
"""


class Http:
    """The users who speak HTTP, each kind a method; one client for all, one key for each."""

    def __init__(self, url: str) -> None:
        self._client = httpx2.AsyncClient(base_url=url, timeout=60)
        self._pictures = {colour: picture(colour) for colour in COLOURS}

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _post(
        self, path: str, key: str, content: bytes, **headers: str
    ) -> httpx2.Response:
        try:
            return await self._client.post(
                path,
                content=content,
                headers={"Authorization": f"Bearer {key}", **headers},
            )
        except httpx2.TransportError as error:
            raise Broken from error

    async def json(self, key: str, number: int) -> str:
        """addsub, JSON both ways."""
        one, other = values(number)
        inputs = [
            {
                "name": name,
                "shape": [1, 4],
                "datatype": "FP32",
                "data": row.ravel().tolist(),
            }
            for name, row in (("a", one), ("b", other))
        ]
        response = await self._post(
            "/v2/models/marked/infer",
            key,
            msgspec.json.encode({"id": str(number), "inputs": inputs}),
        )
        if response.status_code != 200:
            return f"{response.status_code} {response.text}"
        document = response.json()
        found = {
            out["name"]: np.array(out["data"], np.float32).reshape(out["shape"])
            for out in document["outputs"]
        }
        return judge(number, document["id"], document["model_version"], found)

    async def binary(self, key: str, number: int) -> str:
        """addsub, binary tensors both ways."""
        rows = values(number)
        inputs = [
            {
                "name": name,
                "shape": [1, 4],
                "datatype": "FP32",
                "parameters": {"binary_data_size": row.nbytes},
            }
            for name, row in zip("ab", rows, strict=True)
        ]
        head = msgspec.json.encode(
            {
                "id": str(number),
                "parameters": {"binary_data_output": True},
                "inputs": inputs,
            }
        )
        content = head + b"".join(row.tobytes() for row in rows)
        response = await self._post(
            "/v2/models/marked/infer",
            key,
            content,
            **{"Inference-Header-Content-Length": str(len(head))},
        )
        if response.status_code != 200:
            return f"{response.status_code} {response.text}"
        size = int(response.headers["Inference-Header-Content-Length"])
        document = msgspec.json.decode(response.content[:size])
        found, at = {}, size
        for out in document["outputs"]:
            end = at + out["parameters"]["binary_data_size"]
            found[out["name"]] = np.frombuffer(
                response.content[at:end], np.float32
            ).reshape(out["shape"])
            at = end
        return judge(number, document["id"], document["model_version"], found)

    async def pictures(self, key: str, number: int) -> str:
        """An image classifier, as Hugging Face clients ask."""
        colour = COLOURS[number % len(COLOURS)]
        response = await self._post(
            "/models/colours", key, self._pictures[colour]
        )
        if response.status_code != 200:
            return f"{response.status_code} {response.text}"
        return (
            ""
            if response.json()[0]["label"] == colour
            else f"{colour} was called {response.text}"
        )

    async def counts(self, key: str, number: int) -> str:
        """The model that writes down what it runs."""
        tensor = {
            "name": "id",
            "shape": [1, 1],
            "datatype": "INT64",
            "data": [number],
        }
        response = await self._post(
            "/v2/models/counts/infer",
            key,
            msgspec.json.encode({"id": str(number), "inputs": [tensor]}),
        )
        if response.status_code != 200:
            return f"{response.status_code} {response.text}"
        document = response.json()
        found = {out["name"]: out["data"] for out in document["outputs"]}
        good = document["id"] == str(number) and found == {
            "id": [number],
            "answer": [3 * number + 1],
        }
        return "" if good else f"{number} was answered {response.text}"


class Grpc:
    """The user who speaks gRPC; its messages are made from the service's own descriptors."""

    def __init__(self, address: str) -> None:
        from importlib.resources import files

        import grpc.aio
        from google.protobuf import (
            descriptor_pb2,
            descriptor_pool,
            message_factory,
        )

        described = descriptor_pb2.FileDescriptorSet.FromString(
            (files(GRPC_FILES) / "descriptors.binpb").read_bytes()
        )
        pool = descriptor_pool.DescriptorPool()
        for file in described.file:
            pool.Add(file)
        find = pool.FindMessageTypeByName
        self._request: Any = message_factory.GetMessageClass(
            find("inference.ModelInferRequest")
        )
        response: Any = message_factory.GetMessageClass(
            find("inference.ModelInferResponse")
        )
        self._error = grpc.aio.AioRpcError
        self._lost = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
        soon = [
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
        ]
        self._channel = grpc.aio.insecure_channel(address, options=soon)
        self._infer = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=self._request.SerializeToString,
            response_deserializer=response.FromString,
        )

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def infer(self, key: str, number: int) -> str:
        """addsub, raw contents both ways."""
        request = self._request(model_name="marked", id=str(number))
        for name, row in zip("ab", values(number), strict=True):
            request.inputs.add(name=name, datatype="FP32", shape=row.shape)
            request.raw_input_contents.append(row.tobytes())
        try:
            answer = await self._infer(
                request,
                timeout=60,
                metadata=(("authorization", f"Bearer {key}"),),
            )
        except self._error as error:
            text = f"{error.code()} {error.details()}"
            if (
                error.code() in self._lost
                and not error.trailing_metadata()
                and not error.initial_metadata()
            ):
                raise Broken(
                    text
                ) from error  # no server said so: the connection itself broke
            return text
        found = {
            out.name: np.frombuffer(raw, np.float32).reshape(out.shape)
            for out, raw in zip(
                answer.outputs, answer.raw_output_contents, strict=True
            )
        }
        return judge(number, answer.id, answer.model_version, found)


def values(number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Two rows that no other request sends."""
    return np.full((1, 4), number % 100_003, np.float32), np.arange(
        4, dtype=np.float32
    )[None]


def judge(number: int, echoed: str, version: str, found: dict[str, Any]) -> str:
    """What is wrong with an answer of addsub."""
    one, other = values(number)
    if echoed != str(number):
        return f"{number} got the answer of {echoed}"
    if not (
        np.array_equal(found["sum"], one + other)
        and np.array_equal(found["diff"], one - other)
    ):
        return f"{number} was answered {found}"
    mark = found["mark"].ravel().tolist()
    return (
        ""
        if mark == [float(version)]
        else f"{number}: version {version} answered as {mark}"
    )


async def user(
    name: str, ask: Ask, numbers: Iterator[int], end: float, report: Report
) -> None:
    """Ask until the end; a request whose connection broke is sent again, as clients of HTTP do."""
    while time.monotonic() < end:
        number = next(numbers)
        report.asked[name] = report.asked.get(name, 0) + 1
        started = time.monotonic()
        while (wrong := await once(ask, number, report)) is None:
            await asyncio.sleep(0.1)
        report.seconds.append(time.monotonic() - started)
        if wrong:
            report.wrong.append(f"{time.time():.2f} {name}: {wrong[:300]}")
        else:
            report.answered[name] = report.answered.get(name, 0) + 1
            if name == "counts":
                report.counted.append(number)
        await asyncio.sleep(PAUSE_SECONDS)


async def once(ask: Ask, number: int, report: Report) -> str | None:
    """One try; None when the connection broke."""
    try:
        return await ask(number)
    except Broken:
        report.broken.append(time.time())
        return None


async def load(spec: Spec) -> Report:
    """All users at once, the keys in turn."""
    http, grpc = Http(spec.url), Grpc(spec.grpc) if spec.grpc else None
    kinds: list[tuple[str, Any]] = [
        ("json", http.json),
        ("binary", http.binary),
        ("pictures", http.pictures),
    ]
    kinds = [*kinds, ("counts", http.counts)] * 2
    if grpc is not None:
        kinds += [("grpc", grpc.infer)] * 2
    numbers = itertools.count(1)
    report = Report()
    end = time.monotonic() + spec.seconds
    keys = itertools.cycle(spec.keys)
    try:
        async with asyncio.TaskGroup() as group:
            for name, method in kinds:
                key = next(keys)
                ask = lambda number, method=method, key=key: method(key, number)  # noqa: E731
                group.create_task(user(name, ask, numbers, end, report))
    finally:
        await http.close()
        if grpc is not None:
            await grpc.close()
    return report


def main() -> int:
    """Read the spec, load, leave the report."""
    spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Spec)
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(asyncio.run(load(spec))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
