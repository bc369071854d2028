"""The application: deny by default, errors in the caller's shape, a status for each."""

import asyncio
import base64

import pytest

from modelmill.errors import Overloaded
from modelmill.protocols.app import App
from modelmill.protocols.base import Endpoint
from modelmill.serve.wire import Answer
from modelmill.settings import Limits
from modelmill.wire.budget import body_budget
from tests.helpers.gateways import InMemoryApi, a_route

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
    return [
        Answer(call.id, data=b'[{"label":"dark","score":1.0}]')
        for call in calls
    ]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    api = InMemoryApi(body_bytes=4096)
    worker = api.worker(tmp_path_factory.mktemp("app") / "w", echo)
    api.update(
        a_route("spots", sockets=[worker.path]),
        a_route(
            "words",
            kind="text",
            task="text-classification",
            sockets=[worker.path],
        ),
        a_route("loading", ready=False),
        a_route("secret", project="other"),
    )
    yield api
    api.runner.run(worker.stop())
    api.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "BREW"])
def test_without_a_key_all_errors_look_alike(api, method, path):
    reply = api.ask(method, path, key=None)
    assert (reply.status, reply.headers[b"content-type"]) == (
        401,
        b"application/json",
    )
    assert "Authorization: Bearer" in reply.error
    scheme = (
        b"Basic"
        if path.startswith(("/api", "/docs", "/openapi"))
        else b"Bearer"
    )
    assert reply.headers[b"www-authenticate"].startswith(scheme)


def test_without_a_key_the_body_is_not_read(api):
    def fail():
        raise AssertionError("it was read")

    assert (
        api.ask("POST", "/models/spots", [fail, b"x"], key=None).status == 401
    )


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
def test_a_key_may_come_as_bearer_or_basic(api, header, status, path):
    reply = api.ask("GET", path, headers={"authorization": header}, key=None)
    if status == 200 and path.startswith("/api"):
        status = 204
    elif header.startswith("Basic "):
        status = 401
        assert "Authorization: Bearer KEY" in reply.error
    assert reply.status == status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/models/spots/unload"),
        ("POST", "/v2/models/spots/infer"),
        ("POST", "/models/spots"),
        ("GET", "/v1/models"),
        ("POST", "/api/v1/jobs"),
        ("DELETE", "/api/v1/models/spots"),
    ],
)
def test_a_password_changes_nothing_and_calls_no_model(api, method, path):
    reply = api.ask(
        method, path, b"{}", {"authorization": basic("me:admin-key")}, key=None
    )
    assert reply.status == 401
    assert "Authorization: Bearer KEY" in reply.error


@pytest.mark.parametrize("path", ["/v2", "/api/jobs", "/docs"])
@pytest.mark.parametrize("header", ["Bearer admin-key", basic("me:admin-key")])
def test_a_page_of_another_site_gets_nothing(api, path, header):
    assert (
        api.ask("GET", "/v2").status == 200
    )  # the header is known from now on
    headers = {"authorization": header, "sec-fetch-site": "cross-site"}
    reply = api.ask("GET", path, headers=headers, key=None)
    assert reply.status in (401, 403)
    if not (header.startswith("Basic") and path == "/v2"):
        assert (reply.status, "another site" in reply.error) == (403, True)
    headers["sec-fetch-site"] = "same-origin"
    assert api.ask("GET", "/v2", headers=headers, key=None).status != 403


def test_two_keys_are_none(api):
    for first, second in (("wrong", "admin-key"), ("admin-key", "wrong")):
        headers = {
            "Authorization": f"Bearer {first}",
            "authorization": f"Bearer {second}",
        }
        for path in ("/v2", "/api/jobs", "/livez", "/nothing"):
            reply = api.ask("GET", path, headers=headers, key=None)
            assert (reply.status, "2" in reply.error) == (400, True), path


def test_paths_are_remembered_for_callers_with_a_key_alone(api, monkeypatch):
    api.app._known.clear()
    for number in range(3):
        assert api.ask("GET", f"/models/x{number}", key=None).status == 401
    assert not api.app._known
    assert api.ask("GET", f"/models/{'x' * 300}").status == 404
    assert not api.app._known
    monkeypatch.setattr("modelmill.protocols.app.KNOWN_PATHS", 2)
    for name in ("a", "b", "a", "c"):
        api.ask("GET", f"/models/{name}")
    assert list(api.app._known) == [("GET", "/models/a"), ("GET", "/models/c")]


def test_few_and_short_headers_are_remembered(api, monkeypatch):
    gateway = api.gateway
    gateway._callers.clear()
    long = "Bearer" + " " * 600 + "admin-key"
    assert (
        api.ask("GET", "/v2", headers={"authorization": long}, key=None).status
        == 200
    )
    header = {"authorization": basic("me:admin-key")}
    assert api.ask("GET", "/api/jobs", headers=header, key=None).status == 204
    gateway.remember(header["authorization"].encode(), None)
    assert not gateway._callers
    monkeypatch.setattr("modelmill.serve.gateway.KNOWN_HEADERS", 2)
    for key in ("admin-key", "user-key", "other-key"):
        assert api.ask("GET", "/v2", key=key).status == 200
    assert list(gateway._callers) == [b"Bearer user-key", b"Bearer other-key"]


def test_the_admin_api_is_for_admins(api):
    assert api.ask("GET", "/api/jobs").status == 204
    reply = api.ask("GET", "/api/jobs", key="user-key")
    assert (reply.status, reply.error) == (403, "this needs an admin key")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/spots/infer", "POST"),
        ("POST", "/v2", "GET"),
        ("DELETE", "/models/spots", "GET or POST"),
    ],
)
def test_a_wrong_verb_gets_an_error_that_names_the_right_one(
    api, method, path, allowed
):
    reply = api.ask(method, path)
    assert reply.status == 405
    assert reply.error == f"{path} takes {allowed}"
    verbs = {*allowed.split(" or "), *(["HEAD"] if "GET" in allowed else [])}
    assert reply.headers[b"allow"].decode() == ", ".join(sorted(verbs))


@pytest.mark.parametrize(
    ("given", "echoed"),
    [("abc-1", b"abc-1"), ("x" * 129, None), ("\x7f", None), ("é", None)],
)
@pytest.mark.parametrize("path", ["/livez", "/v1/nothing", "/models/spots"])
def test_the_name_of_a_request_comes_back(api, path, given, echoed):
    reply = api.ask(
        "GET", path, headers={"x-request-id": given.encode("latin-1")}
    )
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
def test_an_unknown_path_is_not_found(api, path):
    reply = api.ask("GET", path)
    assert reply.status == 404
    assert len(reply.error) < 400


def test_head_is_get_without_a_body(api):
    head = api.ask("HEAD", "/livez", key=None)
    get = api.ask("GET", "/livez", key=None)
    assert (head.status, head.body, head.headers) == (200, b"", get.headers)


@pytest.mark.parametrize(
    "headers", [{}, {"content-length": "5000"}, {"content-length": "nonsense"}]
)
def test_a_body_is_refused_as_soon_as_it_is_too_large(api, headers):
    def fail():
        raise AssertionError("it was read to the end")

    reply = api.ask(
        "POST", "/models/spots", [b"x" * 3000, b"x" * 3000, fail, b"x"], headers
    )
    assert reply.status == 413
    assert "4,096" in reply.error


def test_bodies_are_received_within_a_budget(api, monkeypatch):
    budget = api.app.budget
    monkeypatch.setattr(budget, "total", 4000)

    def another():  # while the first 1,500 bytes of this one are held
        assert budget.held == 1500
        budget.hold("another", 1000)

    reply = api.ask(
        "POST", "/models/spots", [b"x" * 1500, another, b"x" * 600, b"x"]
    )
    assert (reply.status, reply.headers[b"retry-after"]) == (429, b"1")
    assert "large bodies" in reply.error
    assert budget.held == 1000
    with pytest.raises(Overloaded):
        budget.hold("another", 1001)
    with pytest.raises(Overloaded):
        budget.hold("a third", 3001)
    budget.hold("a third", 1999)
    budget.release("another", 1000)
    budget.release("a third", 1999)
    assert budget.held == 0
    whole = [b"x" * 900, b"x" * 900]
    assert api.ask("POST", "/models/spots", whole).status == 200
    items = "/api/v1/indexes/x/items"
    assert api.ask("POST", items, [b"x" * 1500, b"x" * 600]).status == 429
    assert api.ask("POST", items, whole).status == 204
    assert budget.held == 0


def test_a_caller_may_always_send_one_body():
    limits = Limits(body_bytes=1 << 30, receiving_bytes=1 << 20)
    body_budget(limits, gateways=64).hold("me", 1 << 30)
    assert body_budget(Limits(receiving_bytes=1 << 40)).total == 1 << 40


@pytest.mark.parametrize("path", ["/models/spots", "/api/v1/indexes/x/items"])
def test_a_body_that_takes_too_long_is_refused(path):
    api = InMemoryApi(timeout_seconds=0.05)
    api.update(a_route("spots"))
    sent = []

    async def receive():
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(b"authorization", b"Bearer admin-key")],
    }
    api.runner.run(api.app(scope, receive, send))
    api.close()
    assert sent[0]["status"] == 408
    assert b"did not arrive within 0.05 seconds" in sent[1]["body"]
    assert api.app.budget.held == 0


@pytest.mark.parametrize("length", ["²", "9" * 5000, "-1", "1e3", ""])
def test_a_strange_content_length_is_no_failure_of_ours(api, length):
    assert api.ask(
        "POST", "/models/spots", b"x", {"content-length": length}
    ).status in (200, 400, 413)


def test_a_client_that_leaves_gets_nothing(api):
    def gone(body):
        return api.ask("POST", "/models/spots", body)

    assert gone([]).status == 0


def test_what_is_not_ready_says_when_to_come_back(api):
    reply = api.ask("POST", "/models/loading", b"x")
    assert (reply.status, reply.error, reply.headers[b"retry-after"]) == (
        503,
        "'loading' is loading",
        b"1",
    )


def test_a_model_of_another_project_does_not_exist(api):
    for path in ("/models/secret", "/v2/models/secret"):
        reply = api.ask("GET", path)
        assert reply.status == 404
        assert "secret" not in reply.error.replace("'secret'", "", 1)
        assert api.ask("GET", path, key="other-key").status == 200


def test_an_internal_error_reveals_no_secrets(api):
    async def fail(request):
        raise RuntimeError("the password is swordfish")

    app = App(api.gateway, None)
    app._endpoints = [(Endpoint("GET", "/fail", fail), app.protocols["system"])]
    api.app, kept = app, api.app
    reply = api.ask("GET", "/fail")
    api.app = kept
    assert reply.status == 500
    assert b"swordfish" not in reply.body


def test_metrics_are_prometheus_text(api):
    reply = api.ask("GET", "/metrics")
    assert reply.headers[b"content-type"].startswith(
        b"text/plain; version=0.0.4"
    )
    assert b"modelmill_pending_requests" in reply.body


def test_readiness_follows_the_gateway(api):
    assert api.ask("GET", "/readyz", key=None).json == {"ready": True}
    api.gateway.draining = True
    reply = api.ask("GET", "/readyz", key=None)
    assert (reply.status, reply.json["ready"]) == (503, False)
    assert reply.json["reason"].startswith("draining")
    assert api.ask("GET", "/livez", key=None).status == 200
    api.gateway.draining, api.gateway.healthy = False, False
    assert (
        api.ask("GET", "/readyz", key=None)
        .json["reason"]
        .startswith("disk full")
    )
    assert api.ask("GET", "/ping", key=None).status == 503
    api.gateway.healthy = True
    assert api.ask("GET", "/ping", key=None).status == 200


def test_readiness_says_no_before_there_is_a_snapshot():
    fresh = InMemoryApi()
    reply = fresh.ask("GET", "/readyz", key=None)
    assert (reply.status, reply.json["reason"][:11]) == (503, "no snapshot")
    assert fresh.ask("GET", "/v1/models").status == 503
    fresh.close()


def test_starting_and_stopping_are_acknowledged(api):
    said = []

    async def play():
        heard = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

        async def receive():
            return heard.pop(0)

        async def send(message):
            said.append(message["type"])

        await api.app({"type": "lifespan"}, receive, send)

    api.runner.run(play())
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/models/twice", b'{"inputs": "x"}'),
        ("/v1/models/twice:predict", b'{"instances": ["x"]}'),
        ("/invocations", b'{"instances": ["x"]}'),
        ("/invocations", b'{"inputs": "x"}'),
    ],
)
def test_a_request_draws_its_version_once(api, monkeypatch, path, body):
    draws = []

    def draw():
        draws.append(0.25)
        return 0.25 if len(draws) == 1 else 0.75

    kept = api.gateway._snapshot
    words = {"kind": "text", "task": "text-classification"}
    sockets = kept.routes["default/words"].sockets
    canary = a_route("twice", version=2, weight=0.5, sockets=sockets, **words)
    api.update(a_route("twice", sockets=sockets, others=[canary], **words))
    api.runner.run(settled())
    monkeypatch.setattr("modelmill.serve.gateway.random.random", draw)
    meter = api.gateway.meter
    before = meter.total(("default", "twice", "twice:2")).success
    reply = api.ask("POST", path, body, {"content-type": "application/json"})
    after = meter.total(("default", "twice", "twice:2")).success
    api.update(*kept.routes.values())
    api.runner.run(settled())
    assert (reply.status, len(draws), after - before) == (200, 1, 1)


async def settled():
    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("question", b"", "JSON with inputs"),
        ("point-cloud", b"", "an input of the kind 'point-cloud'"),
        (
            "point-cloud",
            b'{"inputs": 7}',
            "an input of the kind 'point-cloud' as base64",
        ),
        (
            "point-cloud",
            b'{"inputs": "%"}',
            "base64 of an input of the kind 'point-cloud'",
        ),
    ],
)
def test_a_kind_that_a_plugin_brought_is_named(api, kind, body, said):
    kept = api.gateway._snapshot
    api.update(*kept.routes.values(), a_route("film", kind=kind, task="own"))
    reply = api.ask(
        "POST", "/models/film", body, {"content-type": "application/json"}
    )
    api.update(*kept.routes.values())
    assert (reply.status, said in reply.error) == (400, True)
