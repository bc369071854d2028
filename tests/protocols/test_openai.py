"""/v1 for OpenAI's clients: the models, and every error in their shape."""

import msgspec
import openai
import pytest

from modelmill.errors import BY_CODE
from modelmill.protocols import openai as protocol
from modelmill.protocols.base import STATUS
from tests.helpers.gateways import InMemoryApi, LiveApi, a_route

NAMES = ["asleep", "loading", "spots", "unloaded", "words"]


async def never(calls):
    return None


async def some(worker):
    return [
        a_route("spots", sockets=[worker.path], created=1_790_000_000),
        a_route("words", kind="text", task="text-classification"),
        a_route("asleep", asleep=True),
        a_route("loading", ready=False),
        a_route("unloaded", loaded=False),
        a_route("secret", project="other"),
    ]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    api = InMemoryApi()
    worker = api.worker(tmp_path_factory.mktemp("openai") / "w", never)
    api.update(*api.runner.run(some(worker)))
    yield api
    api.runner.run(worker.stop())
    api.close()


def refused(reply, status, kind, code):
    assert reply.status == status, reply
    error = reply.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (kind, code)
    assert error["message"]
    assert len(error["message"]) < 500
    return error


def test_the_list_of_models_is_for_both_readers(api):
    document = api.ask("GET", "/v1/models").json
    assert document["object"] == "list"
    assert (
        document["models"] == [row["id"] for row in document["data"]] == NAMES
    )
    assert document["data"][2] == {
        "id": "spots",
        "object": "model",
        "created": 1_790_000_000,
        "owned_by": "default",
    }
    assert api.ask("GET", "/v1/models", key="other-key").json["models"] == [
        "secret"
    ]


def test_a_model_is_described_for_both_readers(api):
    api.ask("GET", "/v1/models")
    assert api.ask("GET", "/v1/models/spots").json == {
        "id": "spots",
        "object": "model",
        "created": 1_790_000_000,
        "owned_by": "default",
        "name": "spots",
        "ready": True,
    }


@pytest.mark.parametrize(
    ("name", "ready"),
    [
        ("words", False),
        ("loading", False),
        ("unloaded", False),
        ("asleep", True),
    ],
)
def test_a_model_says_whether_it_would_answer(api, name, ready):
    assert api.ask("GET", f"/v1/models/{name}").json["ready"] is ready


@pytest.mark.parametrize(
    "name",
    [
        "absent",
        "org/absent",
        "org/a/b",
        "spots/",
        "secret",
        "../secret",
        "é",
        "a b",
    ],
)
def test_a_model_that_does_not_exist_is_said_so(api, name):
    error = refused(
        api.ask("GET", f"/v1/models/{name}"),
        404,
        "not_found_error",
        "model_not_found",
    )
    assert f"unknown model '{name}'" in error["message"]
    assert error["param"] == "model"


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v1/", "/v1/models/", "/v1//models", "/v1/threads", "/v1/MODELS"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_that_does_not_exist_says_what_is_served(api, method, path):
    error = refused(
        api.ask(method, path, b"{}"), 404, "not_found_error", "unknown_url"
    )
    assert path in error["message"]
    assert "GET /v1/models, GET /v1/models/{id}" in error["message"]


def test_a_path_beside_is_not_of_this_protocol(api):
    for path in ("/v1x", "/v10/models", "/"):
        assert isinstance(api.ask("POST", path).json["error"], str)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/spots"])
def test_a_wrong_verb_gets_an_error_that_names_the_right_one(api, method, path):
    reply = api.ask(method, path)
    refused(reply, 405, "invalid_request_error", "method_not_supported")
    assert reply.headers[b"allow"] == b"GET, HEAD"


@pytest.mark.parametrize("key", [None, "wrong"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/models",
        "/v1/models/spots",
        "/v1/nothing",
        "/v1/models/spots:predict",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_without_a_key_everything_is_the_same_error(api, method, path, key):
    refused(
        api.ask(method, path, key=key),
        401,
        "authentication_error",
        "invalid_api_key",
    )


def test_every_code_has_a_type_of_openai():
    kinds = set()
    for code, kind in BY_CODE.items():
        error = msgspec.json.decode(protocol.error(kind("why")))["error"]
        kinds.add(error["type"])
        assert error["type"].endswith("_error")
        assert (error["type"] == "server_error") == (STATUS[code] >= 500)
    assert {
        "authentication_error",
        "permission_error",
        "not_found_error",
        "rate_limit_error",
    } <= kinds


def test_a_failure_of_ours_has_the_shape_too(api, monkeypatch):
    monkeypatch.setattr(api.gateway, "routes", None)
    error = refused(
        api.ask("GET", "/v1/models"), 500, "server_error", "internal"
    )
    assert "log" in error["message"]


# ---- with OpenAI's own client, over HTTP


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")

    async def routes(live):
        return await some(await live.worker(folder / "w", never))

    api = LiveApi(routes)
    yield api
    api.close()


@pytest.fixture
def client(live):
    with openai.OpenAI(
        base_url=f"{live.url}/v1", api_key="user-key", max_retries=0, timeout=20
    ) as client:
        yield client


def test_the_client_lists_and_retrieves(client):
    assert [model.id for model in client.models.list()] == NAMES
    model = client.models.retrieve("spots")
    assert (model.id, model.object, model.created, model.owned_by) == (
        "spots",
        "model",
        1_790_000_000,
        "default",
    )


def test_the_client_understands_errors(client):
    for name in ("no-such-model", "org/no-such-model"):
        with pytest.raises(
            openai.NotFoundError, match=f"unknown model '{name}'"
        ) as caught:
            client.models.retrieve(name)
        assert (caught.value.type, caught.value.code, caught.value.param) == (
            "not_found_error",
            "model_not_found",
            "model",
        )
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(
        openai.NotFoundError, match="below /v1 there is: GET /v1/models"
    ):
        client.moderations.create(model="spots", input="hello")
    with pytest.raises(
        openai.BadRequestError,
        match="'spots' does not support text generation: its task is image-classification",
    ):
        client.chat.completions.create(
            model="spots", messages=[{"role": "user", "content": "hello"}]
        )


def test_the_client_sees_the_name_of_its_request(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.with_options(
            default_headers={"X-Request-Id": "req-7"}
        ).models.retrieve("absent")
    assert caught.value.request_id == "req-7"
