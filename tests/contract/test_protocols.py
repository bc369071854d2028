"""Every protocol over HTTP: complete routes, errors as JSON, and nothing public but health."""

import inspect

import msgspec
import pytest

from modelmill import plugins
from modelmill.errors import BY_CODE
from modelmill.protocols._app import App, http_protocols
from modelmill.protocols.base import STATUS
from modelmill.serve.gateway import Gateway
from modelmill.settings import Limits
from tests.making import Door, nobody

PROTOCOLS = http_protocols()
ROUTES = [(name, route) for name, protocol in PROTOCOLS.items() for route in protocol.ROUTES]
PUBLIC = {"/", "/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"}


def said(case):
    return f"{case[0]} {case[1].method} {case[1].pattern}" if isinstance(case, tuple) else None


def path_of(route):
    return route.pattern.replace("{", "").replace("}", "")


@pytest.fixture(scope="module")
def door():
    door = Door()
    door.update()
    yield door
    door.close()


def test_there_are_protocols():
    assert {"v2-http", "huggingface", "system"} <= PROTOCOLS.keys() <= set(plugins.names("protocols"))
    assert App(Gateway(Limits()), nobody).protocols.keys() == PROTOCOLS.keys()


@pytest.mark.parametrize("case", ROUTES, ids=said)
def test_every_route_is_complete(case):
    _, route = case
    assert inspect.iscoroutinefunction(route.handler)
    assert list(inspect.signature(route.handler).parameters) == ["gateway", "caller", "request", "names"]
    assert route.method in {"GET", "POST", "PUT", "PATCH", "DELETE"}
    assert route.handler.__doc__


def test_only_health_is_public():
    assert {route.pattern for _, route in ROUTES if route.public} <= PUBLIC
    assert all(route.method == "GET" for _, route in ROUTES if route.public)


def test_no_two_routes_answer_the_same_request():
    seen = [(route.method, path_of(route)) for _, route in ROUTES]
    assert len(set(seen)) == len(seen)
    for _, route in ROUTES:
        others = [r for _, r in ROUTES if r is not route and r.method == route.method and r.match(path_of(route))]
        assert others == []


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_error_is_json_with_its_message(name, code):
    body = PROTOCOLS[name].error(BY_CODE[code]('why: "ü" <b> \ud800'.encode("utf-8", "replace").decode()))
    assert "why" in str(msgspec.json.decode(body))
    assert 400 <= STATUS[code] < 600


@pytest.mark.parametrize("case", [case for case in ROUTES if not case[1].public], ids=said)
@pytest.mark.parametrize("key", [None, "wrong"])
def test_no_route_but_health_answers_without_a_key(case, key, door):
    _, route = case
    reply = door.ask(route.method, path_of(route), b"{}", key=key)
    assert reply.status == 401
    assert b"www-authenticate" in reply.headers
    assert "key" in str(reply.json)


@pytest.mark.parametrize("case", [case for case in ROUTES if case[1].public], ids=said)
def test_health_answers_anybody(case, door):
    reply = door.ask("GET", case[1].pattern, key=None)
    assert reply.status == 200
    assert reply.json


@pytest.mark.parametrize(
    "case", [case for case in ROUTES if "{region}" not in case[1].pattern and "{" in case[1].pattern], ids=said
)
def test_a_model_that_does_not_exist_is_no_failure_of_ours(case, door):
    _, route = case
    assert door.ask(route.method, path_of(route), b"{}").status in (400, 404)
