"""Every protocol over HTTP: complete routes, errors as JSON, and nothing public but health."""

import inspect
import socket
from urllib.parse import quote, urlsplit

import msgspec
import pytest

from modelmill import plugins
from modelmill.errors import BY_CODE
from modelmill.protocols.app import App, http_protocols
from modelmill.protocols.base import STATUS
from modelmill.serve.gateway import Gateway
from modelmill.settings import Limits
from tests.helpers.gateways import InMemoryApi, LiveApi, a_route, nobody

PROTOCOLS = http_protocols()
ROUTES = [
    (name, route)
    for name, protocol in PROTOCOLS.items()
    for route in protocol.ROUTES
]
PUBLIC = {
    "/",
    "/livez",
    "/readyz",
    "/healthz",
    "/ping",
    "/v2/health/live",
    "/v2/health/ready",
}
ADMIN = [
    "/api/v1/jobs",
    "/api/v1/keys",
    "/api",
    "/api/",
    "/docs",
    "/docs/assets/x.js",
    "/openapi.json",
    "/redoc",
]
VERBS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "BREW",
    "get",
    "",
]


def said(case):
    return (
        f"{case[0]} {case[1].method} {case[1].pattern}"
        if isinstance(case, tuple)
        else None
    )


def path_of(route):
    return route.pattern.replace("{", "").replace("}", "")


@pytest.fixture(scope="module")
def api():
    api = InMemoryApi()
    # What the patterns' names stand for
    api.update(a_route("model"), a_route("name"), a_route("id"))
    yield api
    api.close()


def test_there_are_protocols():
    assert (
        {"v2", "huggingface", "openai", "kserve-v1", "sagemaker", "system"}
        <= PROTOCOLS.keys()
        <= set(plugins.names("protocols"))
    )
    assert App(Gateway(Limits()), nobody).protocols.keys() == PROTOCOLS.keys()


@pytest.mark.parametrize("case", ROUTES, ids=said)
def test_every_route_is_complete(case):
    _, route = case
    assert inspect.iscoroutinefunction(route.handler)
    assert list(inspect.signature(route.handler).parameters) == ["request"]
    assert route.method in {"GET", "POST", "PUT", "PATCH", "DELETE"}
    assert route.handler.__doc__


def test_only_health_is_public():
    assert {route.pattern for _, route in ROUTES if route.public} <= PUBLIC
    assert all(route.method == "GET" for _, route in ROUTES if route.public)


def test_no_two_routes_answer_the_same_request():
    seen = [(route.method, path_of(route)) for _, route in ROUTES]
    assert len(set(seen)) == len(seen)
    for _, route in ROUTES:
        others = [
            r
            for _, r in ROUTES
            if r is not route
            and r.method == route.method
            and r.match(path_of(route))
        ]
        assert others == []


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_error_is_json_with_its_message(name, code):
    body = PROTOCOLS[name].error(
        BY_CODE[code]('why: "ü" <b> \ud800'.encode("utf-8", "replace").decode())
    )
    assert "why" in str(msgspec.json.decode(body))
    assert 400 <= STATUS[code] < 600


@pytest.mark.parametrize(
    "case", [case for case in ROUTES if not case[1].public], ids=said
)
@pytest.mark.parametrize("key", [None, "wrong"])
def test_no_route_but_health_answers_without_a_key(case, key, api):
    _, route = case
    reply = api.ask(route.method, path_of(route), b"{}", key=key)
    assert reply.status == 401
    assert b"www-authenticate" in reply.headers
    assert "key" in str(reply.json)


@pytest.mark.parametrize(
    "case", [case for case in ROUTES if case[1].public], ids=said
)
def test_health_answers_anybody(case, api):
    reply = api.ask("GET", case[1].pattern, key=None)
    assert reply.status == 200
    assert reply.json


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in ROUTES
        if "{region}" not in case[1].pattern and "{" in case[1].pattern
    ],
    ids=said,
)
def test_a_model_that_does_not_exist_is_no_failure_of_ours(case, api):
    _, route = case
    path = route.pattern.replace("{", "no-").replace("}", "")
    assert api.ask(route.method, path, b"{}").status in (400, 404)


@pytest.mark.parametrize(
    "case", [case for case in ROUTES if case[1].method == "GET"], ids=said
)
def test_head_works_wherever_get_does(case, api):
    get, head = (api.ask(verb, path_of(case[1])) for verb in ("GET", "HEAD"))
    assert (head.status, head.body) == (get.status, b"")
    if case[1].pattern != "/metrics":  # which changes from one to the next
        assert head.headers == get.headers


# ---- every route, and every disguise of it, without a key


def disguises(path):
    """The path, and what a server or a proxy might take for it."""
    first, _, rest = path[1:].partition("/")
    return {
        path,
        f"{path}/",
        f"{path}//",
        f"/{path}",
        f"//{path}",
        path.replace("/", "//"),
        f"/.{path}",
        f"{path}/.",
        f"/..{path}",
        f"{path}/..",
        f"/x/..{path}",
        f"/livez/..{path}",
        f"/livez{path}",
        f"/ping;{path}",
        f"{path}/livez",
        f"{path}?x=/livez",
        f"{path}#/livez",
        path.upper(),
        path.title(),
        f"{path} ",
        f" {path}",
        f"{path}\x00",
        f"{path}\x00/livez",
        f"{path};a=b",
        f"{path}.json",
        path.replace("/", "\\"),
        path[1:],
        f"/{first}",
        f"/{first}/./{rest}",
        f"/{first}/x/../{rest}",
        quote(path, safe=""),
        path.replace("/", "%2F"),
        "".join(f"%{ord(c):02x}" for c in path),
        f"/%2e%2e{path}",
        f"{path}/%2e%2e",
        f"{path}%00",
        f"{path}%20",
        path.replace("e", "\uff45"),
    }


def every_path():
    known = {path_of(route) for _, route in ROUTES} | set(ADMIN)
    return sorted(set().union(*map(disguises, known)))


def is_health(method, path):
    return method in ("GET", "HEAD") and path in PUBLIC


def test_no_disguise_of_any_route_answers_without_a_key(api):
    answered = set()
    for path in every_path():
        for verb in VERBS:
            reply = api.ask(verb, path, b"{}", key=None)
            if reply.status != 401:
                answered.add((verb, path, reply.status))
    assert answered == {
        (verb, path, 200) for path in PUBLIC for verb in ("GET", "HEAD")
    }


@pytest.mark.parametrize(
    "header",
    [
        ("authorization", "Bearer"),
        ("authorization", "Bearer undefined"),
        ("authorization", "Bearer admin-key,"),
        ("x-api-key", "admin-key"),
        ("api-key", "admin-key"),
        ("cookie", "key=admin-key"),
        ("x-http-method-override", "GET"),
        ("x-original-url", "/livez"),
        ("x-rewrite-url", "/livez"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-prefix", "/livez"),
        ("forwarded", "for=127.0.0.1"),
        ("upgrade", "websocket"),
        ("origin", "http://localhost"),
        ("host", "localhost"),
        ("content-length", "-1"),
    ],
)
def test_no_header_stands_for_a_key(api, header):
    for path in sorted(
        {path_of(route) for _, route in ROUTES if not route.public} | set(ADMIN)
    ):
        for verb in ("GET", "POST"):
            assert (
                api.ask(verb, path, b"{}", dict([header]), key=None).status
                == 401
            )


@pytest.fixture(scope="module")
def live():
    async def routes(live):
        return [a_route("model"), a_route("name"), a_route("id")]

    api = LiveApi(routes)
    yield api
    api.close()


def status_of(file, line, host):
    """The status of a request whose first line goes over the wire as it is; None when the server
    hung up.
    """
    file.write(
        f"{line} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode()
    )
    file.flush()
    head = file.readline().split()
    if not head:
        return None
    length = 0
    while (header := file.readline().strip()) and header:
        if header.lower().startswith(b"content-length:"):
            length = int(header.partition(b":")[2])
    if not line.startswith("HEAD"):
        file.read(length)
    return int(head[1])


def test_no_disguise_answers_over_the_wire_either(live):
    """As bytes on a socket: what is percent-encoded is decoded by the server before anything looks
    at it.
    """
    place = urlsplit(live.url)
    paths = {
        "".join(c if " " < c < "\x7f" else quote(c) for c in path)
        for path in every_path()
    } - {""}
    paths |= {
        f"http://{place.netloc}{path}"
        for path in ("/metrics", "/v2", "/api/v1/jobs")
    }
    answered = set()
    link = None
    file = None
    for path in sorted(paths):
        for verb in ("GET", "HEAD", "POST"):
            if file is None:
                link = socket.create_connection(
                    (place.hostname, place.port), 10
                )
                file = link.makefile("rwb")
            status = status_of(file, f"{verb} {path}", place.netloc)
            if status in (None, 400):  # not HTTP to the server: it hangs up
                file.close()
                link.close()
                file = None
            elif status != 401:
                answered.add((verb, path))
    if file is not None:
        file.close()
        link.close()
    assert all(is_health(verb, bare(path)) for verb, path in answered)
    assert {("GET", path) for path in PUBLIC} <= answered


def bare(path):
    """The path of health as the server sees it."""
    from urllib.parse import unquote

    return unquote(path.partition("?")[0].partition("#")[0])
