"""The application: deny by default, errors in the caller's shape, a status for each."""

import base64

import pytest

from modelmill.protocols._app import App
from modelmill.protocols.base import Route
from modelmill.serve.wire import Answer
from tests.making import Door, a_route

PATHS = [
    "/v2",
    "/metrics",
    "/models/spots",
    "/nothing",
    "/api/jobs",
    "/docs",
    "/openapi.json",
    "/v2/models/x/infer",
]


async def echo(calls):
    return [Answer(call.id, data=b'[{"label":"dark","score":1.0}]') for call in calls]


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    door = Door(body_bytes=4096)
    worker = door.worker(tmp_path_factory.mktemp("app") / "w", echo)
    door.update(
        a_route("spots", sockets=[worker.path]),
        a_route(
            "words", kind="text", task="text-classification", sockets=[worker.path]
        ),
        a_route("loading", ready=False),
        a_route("secret", project="other"),
    )
    yield door
    door.runner.run(worker.stop())
    door.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "BREW"])
def test_without_a_key_nothing_is_told_apart(door, method, path):
    reply = door.ask(method, path, key=None)
    assert (reply.status, reply.headers[b"content-type"]) == (401, b"application/json")
    assert "Authorization: Bearer" in reply.error
    assert reply.headers[b"www-authenticate"].startswith(b"Basic")


def test_without_a_key_the_body_is_not_read(door):
    def fail():
        raise AssertionError("it was read")

    assert door.ask("POST", "/models/spots", [fail, b"x"], key=None).status == 401


def basic(text):
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer admin-key", 200),
        ("bearer admin-key", 200),
        ("Bearer   admin-key ", 200),
        (basic("anybody:admin-key"), 200),
        (basic(":admin-key"), 200),
        ("Bearer", 401),
        ("Bearer wrong", 401),
        ("admin-key", 401),
        (basic("admin-key"), 401),
        ("Basic !!!", 401),
        ("Basic ", 401),
        ("Basic é", 401),
        ("Bearer é", 401),
        ("Token admin-key", 401),
        ("", 401),
    ],
)
@pytest.mark.parametrize("path", ["/v2", "/api/anything"])
def test_a_key_may_come_as_bearer_or_basic(door, header, status, path):
    reply = door.ask("GET", path, headers={"authorization": header}, key=None)
    if status == 200 and path.startswith("/api"):
        status = 204
    assert reply.status == status


def test_the_admin_api_is_for_admins(door):
    assert door.ask("GET", "/api/jobs").status == 204
    reply = door.ask("GET", "/api/jobs", key="user-key")
    assert (reply.status, reply.error) == (403, "this needs an admin key")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/spots/infer", "POST"),
        ("POST", "/v2", "GET"),
        ("DELETE", "/models/spots", "GET or POST"),
    ],
)
def test_a_wrong_verb_is_told_the_right_one(door, method, path, allowed):
    reply = door.ask(method, path)
    assert reply.status == 405
    assert reply.error == f"{path} takes {allowed}"
    verbs = {*allowed.split(" or "), *(["HEAD"] if "GET" in allowed else [])}
    assert reply.headers[b"allow"].decode() == ", ".join(sorted(verbs))


@pytest.mark.parametrize(
    ("given", "echoed"),
    [("abc-1", b"abc-1"), ("x" * 129, None), ("\x7f", None), ("é", None)],
)
@pytest.mark.parametrize("path", ["/livez", "/v1/nothing", "/models/spots"])
def test_the_name_of_a_request_comes_back(door, path, given, echoed):
    reply = door.ask("GET", path, headers={"x-request-id": given.encode("latin-1")})
    assert reply.headers.get(b"x-request-id") == echoed


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "",
        "/v2/",
        "/models/",
        "/models/a/b",
        "/" + "x" * 9000,
        "/\ufffd",
        "//",
    ],
)
def test_an_unknown_path_is_not_found(door, path):
    reply = door.ask("GET", path)
    assert reply.status == 404
    assert len(reply.error) < 400


def test_head_is_get_without_a_body(door):
    head, get = (
        door.ask("HEAD", "/livez", key=None),
        door.ask("GET", "/livez", key=None),
    )
    assert (head.status, head.body, head.headers) == (200, b"", get.headers)


@pytest.mark.parametrize(
    "headers", [{}, {"content-length": "5000"}, {"content-length": "nonsense"}]
)
def test_a_body_is_refused_as_soon_as_it_is_too_large(door, headers):
    def fail():
        raise AssertionError("it was read to the end")

    reply = door.ask(
        "POST", "/models/spots", [b"x" * 3000, b"x" * 3000, fail, b"x"], headers
    )
    assert reply.status == 413
    assert "4,096" in reply.error


@pytest.mark.parametrize("length", ["²", "9" * 5000, "-1", "1e3", ""])
def test_a_strange_content_length_is_no_failure_of_ours(door, length):
    assert door.ask(
        "POST", "/models/spots", b"x", {"content-length": length}
    ).status in (200, 400, 413)


def test_a_client_that_leaves_gets_nothing(door):
    def gone(body):
        return door.ask("POST", "/models/spots", body)

    assert gone([]).status == 0


def test_what_is_not_ready_says_when_to_come_back(door):
    reply = door.ask("POST", "/models/loading", b"x")
    assert (reply.status, reply.error, reply.headers[b"retry-after"]) == (
        503,
        "'loading' is loading",
        b"1",
    )


def test_a_model_of_another_project_does_not_exist(door):
    for path in ("/models/secret", "/v2/models/secret"):
        reply = door.ask("GET", path)
        assert reply.status == 404
        assert "secret" not in reply.error.replace("'secret'", "", 1)
        assert door.ask("GET", path, key="other-key").status == 200


def test_a_failure_of_ours_tells_no_secrets(door):
    async def fail(gateway, caller, request, names):
        raise RuntimeError("the password is swordfish")

    app = App(door.gateway, None)
    app._routes = [(Route("GET", "/fail", fail), app.protocols["system"])]
    door.app, kept = app, door.app
    reply = door.ask("GET", "/fail")
    door.app = kept
    assert reply.status == 500
    assert b"swordfish" not in reply.body


def test_metrics_are_prometheus_text(door):
    reply = door.ask("GET", "/metrics")
    assert reply.headers[b"content-type"].startswith(b"text/plain; version=0.0.4")
    assert b"modelmill_pending_requests" in reply.body


def test_readiness_follows_the_gateway(door):
    assert door.ask("GET", "/readyz", key=None).json == {"ready": True}
    door.gateway.draining = True
    reply = door.ask("GET", "/readyz", key=None)
    assert (reply.status, reply.json["ready"]) == (503, False)
    assert reply.json["reason"].startswith("draining")
    assert door.ask("GET", "/livez", key=None).status == 200
    door.gateway.draining, door.gateway.healthy = False, False
    assert door.ask("GET", "/readyz", key=None).json["reason"].startswith("disk full")
    assert door.ask("GET", "/ping", key=None).status == 503
    door.gateway.healthy = True
    assert door.ask("GET", "/ping", key=None).status == 200


def test_readiness_says_no_before_there_is_a_snapshot():
    fresh = Door()
    reply = fresh.ask("GET", "/readyz", key=None)
    assert (reply.status, reply.json["reason"][:11]) == (503, "no snapshot")
    assert fresh.ask("GET", "/v1/models").status == 503
    fresh.close()


def test_starting_and_stopping_are_acknowledged(door):
    said = []

    async def play():
        heard = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

        async def receive():
            return heard.pop(0)

        async def send(message):
            said.append(message["type"])

        await door.app({"type": "lifespan"}, receive, send)

    door.runner.run(play())
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
