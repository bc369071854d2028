"""Requests whose very head is known take a short way, on which nothing may be different: a real
server, raw sockets.
"""

import asyncio
import json
import socket
import threading

import msgspec
import numpy as np
import pytest

from modelmill.serve.wire import Answer, Tensor
from modelmill.types import TensorSpec
from modelmill.wire.http1 import server
from tests.helpers.gateways import InMemoryApi, LiveApi, a_route

SPEC = [TensorSpec(name="x", datatype="FP32", shape=[-1, 2])]


class Model:
    """Doubles its input; waits for `go` while it is told to hold."""

    def __init__(self):
        self.go = threading.Event()
        self.go.set()
        self.seen = 0
        self.failing = False

    async def answer(self, calls):
        self.seen += len(calls)
        if self.failing:
            return [
                Answer(call.id, code="model_failed", message="it broke")
                for call in calls
            ]
        while not self.go.is_set():
            await asyncio.sleep(0.005)
        return [
            Answer(call.id, tensors=[self.doubled(call.tensors[0])])
            for call in calls
        ]

    def wait_for(self, count):
        """Until so many calls have arrived."""
        while self.seen < count:
            threading.Event().wait(0.01)

    @staticmethod
    def doubled(tensor):
        values = np.frombuffer(tensor.data, np.float32) * 2
        return Tensor("x", "FP32", tensor.shape, values.tobytes())


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def taken(monkeypatch):
    """How many requests took the short way."""
    count = []
    real = server.GuardedProtocol._take_fast_path

    def shortcut(self, data):
        took = real(self, data)
        count.extend([1] * took)
        return took

    monkeypatch.setattr(server.GuardedProtocol, "_take_fast_path", shortcut)
    return count


@pytest.fixture
def api(model, tmp_path):
    async def routes(api):
        api.path, api.other = str(tmp_path / "w"), str(tmp_path / "other")
        await api.worker(tmp_path / "w", model.answer)
        await api.worker(tmp_path / "other", model.answer)
        return [route_of(api)]

    api = LiveApi(routes)
    yield api
    api.close()


def route_of(api, **changed):
    plain = {
        "task": "",
        "kind": "tensor",
        "inputs": SPEC,
        "outputs": SPEC,
        "sockets": [api.path],
    }
    return a_route("double", **(plain | changed))


@pytest.fixture
def client(api):
    host, port = api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        yield Client(link)


class Client:
    """One connection, byte by byte."""

    def __init__(self, link):
        self.link, self.file = link, link.makefile("rb")

    def send(self, *values, body=None, key="user-key", extra=""):
        self.link.sendall(request(*values, body=body, key=key, extra=extra))

    def receive(self):
        status = int(self.file.readline().split()[1])
        headers = {}
        while line := self.file.readline().strip():
            name, _, value = line.partition(b":")
            headers[name.lower().decode()] = value.strip().decode()
        return status, headers, self.file.read(int(headers["content-length"]))

    def ask(self, *values, **options):
        self.send(*values, **options)
        return self.receive()


def request(*values, body=None, key="user-key", extra=""):
    if body is None:
        tensor = {
            "name": "x",
            "shape": [1, 2],
            "datatype": "FP32",
            "data": list(values),
        }
        body = json.dumps({"inputs": [tensor]}).encode()
    head = (
        "POST /v2/models/double/infer HTTP/1.1\r\nHost: here\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


def binary(*values):
    """A body in binary form, and its header."""
    tensor = {
        "name": "x",
        "shape": [1, 2],
        "datatype": "FP32",
        "parameters": {"binary_data_size": 8},
    }
    head = msgspec.json.encode(
        {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    )
    extra = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return {
        "body": head + np.array(values, np.float32).tobytes(),
        "extra": extra,
    }


def values_of(reply):
    status, headers, body = reply
    assert status == 200, body
    if size := headers.get("inference-header-content-length"):
        return np.frombuffer(body[int(size) :], np.float32).tolist()
    return json.loads(body)["outputs"][0]["data"]


def test_each_request_gets_its_own_answer(client, taken):
    for number in range(5):
        assert values_of(client.ask(number, 1)) == [2 * number, 2]
    for number in range(5):
        assert values_of(client.ask(**binary(number, 3))) == [2 * number, 6]
    assert len(taken) == 8  # the first of each kind teaches the way


def test_what_is_wrong_with_a_body_is_said_there_too(client, taken):
    client.ask(1, 2)
    status, _, body = client.ask(
        body=request(1, 2)
        .partition(b"\r\n\r\n")[2]
        .replace(b"[1, 2]", b"[1; 2]")
    )
    assert status == 400
    assert "error" in json.loads(body)
    assert values_of(client.ask(4, 2)) == [8, 4]
    assert len(taken) == 2


def test_a_key_that_was_withdrawn_opens_nothing(client, api, taken):
    assert values_of(client.ask(1, 2)) == values_of(client.ask(1, 2))
    api.change(route_of(api), keys={"admin-key": ("default", "admin")})
    assert client.ask(1, 2)[0] == 401
    api.change(route_of(api), keys=InMemoryApi.KEYS)
    assert values_of(client.ask(1, 2)) == [2, 4]
    assert len(taken) == 1


def test_a_deployment_that_has_gone_is_not_found(client, api):
    client.ask(1, 2)
    client.ask(1, 2)
    api.change()
    assert client.ask(1, 2)[0] == 404


def test_a_new_version_answers_as_itself(client, api):
    client.ask(**binary(1, 2))
    assert b'"model_version":"1"' in client.ask(**binary(1, 2))[2]
    api.change(route_of(api, version=2, sockets=[api.other]))
    assert b'"model_version":"2"' in client.ask(**binary(1, 2))[2]


def test_a_failing_model_is_an_error_in_the_protocols_shape(
    client, model, taken
):
    client.ask(1, 2)
    model.failing = True
    status, _, body = client.ask(1, 2)
    assert (status, json.loads(body)) == (500, {"error": "it broke"})
    assert len(taken) == 1


@pytest.fixture
def draws(api, client, monkeypatch):
    """Numbers drawn for a canary with half of the requests: for the main version, for the canary,
    and so on.
    """
    drawn = []

    def draw():
        drawn.append(0.25 if len(drawn) % 2 else 0.75)
        return drawn[-1]

    client.link.sendall(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n")
    assert client.receive()[0] == 200  # the server has begun
    canary = route_of(api, version=2, weight=0.5, sockets=[api.other])
    api.change(route_of(api, others=[canary]))
    monkeypatch.setattr("modelmill.serve.gateway.random.random", draw)
    return drawn


@pytest.mark.parametrize("options", [{}, binary(1, 2)], ids=["json", "binary"])
def test_a_request_draws_its_version_once(client, taken, draws, options):
    for number in range(1, 6):
        body = client.ask(1, 2, **options)[2]
        assert len(draws) == number
        version = 1 if number % 2 else 2
        assert b'"model_version":"%d"' % version in body
    assert len(taken) == 4


def test_a_request_that_leaves_the_short_way_draws_its_version_once(
    client, taken, draws
):
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    for name in ("unknown", "timeout", "timeout", "unknown", "unknown"):
        document = {"inputs": [tensor], "parameters": {name: 9_000_000}}
        assert values_of(client.ask(body=msgspec.json.encode(document))) == [
            2,
            4,
        ]
    assert (len(taken), len(draws)) == (2, 5)


def test_pipelined_requests_wait_for_their_turn(client, model, taken):
    client.ask(0, 0)
    model.go.clear()
    client.send(1, 0)
    model.wait_for(2)
    client.link.sendall(request(2, 0) + request(3, 0))
    model.go.set()
    assert [values_of(client.receive())[0] for _ in range(3)] == [2, 4, 6]
    assert values_of(client.ask(4, 0)) == [8, 0]
    assert len(taken) == 2  # those that came meanwhile were parsed


def test_a_request_in_pieces_goes_the_usual_way(client, taken):
    client.ask(1, 2)
    whole = request(5, 6)
    for at in range(0, len(whole), 40):
        client.link.sendall(whole[at : at + 40])
        threading.Event().wait(0.01)
    assert values_of(client.receive()) == [10, 12]
    assert taken == []


def test_a_client_that_wants_to_close_is_closed(client, taken):
    for _ in range(2):
        client.ask(1, 2)
    assert values_of(client.ask(1, 2, extra="Connection: close\r\n")) == [2, 4]
    assert client.file.read() == b""
    assert len(taken) == 1


def test_a_client_that_closes_its_side_gets_its_answer(client, model):
    client.ask(1, 2)
    model.go.clear()
    client.send(3, 4)
    model.wait_for(2)
    client.link.shutdown(socket.SHUT_WR)
    model.go.set()
    assert values_of(client.receive()) == [6, 8]
    assert client.file.read() == b""


def test_a_client_that_leaves_is_forgotten(client, api, model):
    client.ask(1, 2)
    model.go.clear()
    client.send(3, 4)
    model.wait_for(2)
    client.file.close()
    client.link.close()
    model.go.set()
    host, port = api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        assert values_of(Client(link).ask(5, 6)) == [10, 12]


def test_stopping_answers_what_is_under_way(client, api, model):
    client.ask(1, 2)
    model.go.clear()
    client.send(3, 4)
    model.wait_for(2)
    api._server.should_exit = True
    threading.Event().wait(0.3)
    model.go.set()
    assert values_of(client.receive()) == [6, 8]
    assert client.file.read() == b""


def test_all_are_counted(client, api):
    for _ in range(6):
        client.ask(1, 2)
    series = api.gateway.statistics(route_of(api))
    assert (series.success, series.failure, series.rows) == (6, 0, 6)


@pytest.mark.parametrize("kind", ["a body of its own", "empty lines before"])
def test_nobody_can_teach_a_head_without_a_key(client, taken, kind):
    """What is learnt is the head of a request that came whole: never bytes that a caller has made
    up.
    """
    forged = request(1, 2).replace(b"Authorization: Bearer user-key\r\n", b"")
    if kind == "a body of its own":
        whole = request(
            body=b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}   \r\n\r\n'
        )
        head, _, body = whole.partition(b"\r\n\r\n")
        client.link.sendall(head + b"\r\n\r\n")
        threading.Event().wait(0.1)
        client.link.sendall(body)
        forged = body
    else:
        client.link.sendall(b"\r\n\r\n" + request(1, 2))
        forged = b"\r\n\r\n" + request(1, 2).partition(b"\r\n\r\n")[2]
    assert values_of(client.receive()) == [2, 4]
    client.link.sendall(forged)
    assert client.receive()[0] in (400, 401)
    assert taken == []


def test_a_long_answer_is_not_written_by_the_connection(client, taken, model):
    def long(tensor):
        return Tensor("x", "FP32", [30_000, 2], bytes(240_000))

    model.doubled = long
    for _ in range(3):
        status, _, body = client.ask(1, 2)
        assert status == 200
        assert len(json.loads(body)["outputs"][0]["data"]) == 60_000
    assert taken == []
