"""The Hugging Face API: shapes of its tasks, its client, waiting for models, and what it
refuses.
"""

import asyncio
import base64
import gzip
import zlib

import msgspec
import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from modelmill.serve.wire import Answer
from modelmill.types import TensorSpec
from tests.helpers.bundles import mask_bundle, picture_bundle
from tests.helpers.gateways import InMemoryApi, LiveApi, a_route
from tests.helpers.pictures import png
from tests.helpers.text_bundles import text_bundle
from tests.helpers.workers import answering_with

PICTURE = base64.b64encode(b"picture").decode()
JSON = {"content-type": "application/json"}
SCORES = [{"label": "dark", "score": 1.0}]


class Seen:
    """A worker that notes what it gets, answers like a classifier, and refuses what says so."""

    def __init__(self):
        self.calls = []

    async def __call__(self, calls):
        self.calls += calls
        return [
            Answer(call.id, code="invalid_input", message="unreadable")
            if call.data == b"bad"
            else Answer(call.id, data=msgspec.json.encode(SCORES))
            for call in calls
        ]


@pytest.fixture(scope="module")
def seen():
    return Seen()


@pytest.fixture(scope="module")
def api(tmp_path_factory, seen):
    api = InMemoryApi(body_bytes=1 << 20)
    worker = api.worker(tmp_path_factory.mktemp("hf") / "w", seen)
    api.update(
        a_route("spots", sockets=[worker.path], labels=["dark", "bright"]),
        a_route(
            "words",
            kind="text",
            task="text-classification",
            sockets=[worker.path],
        ),
        a_route("loading", ready=False),
        a_route("broken", ready=False, error="the golden set differs"),
        a_route("numbers", kind="tensor", task="", sockets=[worker.path]),
    )
    yield api
    api.runner.run(worker.stop())
    api.close()


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"\x89PNG bytes", {}),
        (b"\x89PNG bytes", {"content-type": "image/png"}),
        (msgspec.json.encode({"inputs": PICTURE}), JSON),
        (
            msgspec.json.encode({"inputs": PICTURE}),
            {"content-type": "Application/JSON; charset=utf-8"},
        ),
        (
            msgspec.json.encode(
                {
                    "inputs": f"data:image/png;base64,{PICTURE}",
                    "parameters": {"top_k": 1},
                }
            ),
            {},
        ),
        (
            msgspec.json.encode(
                {"inputs": PICTURE, "parameters": None, "options": None}
            ),
            JSON,
        ),
        (
            msgspec.json.encode(
                {
                    "inputs": PICTURE,
                    "options": {"use_cache": False, "wait_for_model": True},
                }
            ),
            JSON,
        ),
    ],
)
def test_a_picture_comes_as_bytes_or_base64(api, body, headers):
    reply = api.ask("POST", "/models/spots", body, headers)
    assert (reply.status, reply.json) == (200, SCORES)


def test_a_list_of_pictures_is_answered_one_list_each(api):
    reply = api.ask(
        "POST",
        "/models/spots",
        msgspec.json.encode({"inputs": [PICTURE] * 3}),
        JSON,
    )
    assert (reply.status, reply.json) == (200, [SCORES] * 3)


@pytest.mark.parametrize(
    ("body", "headers", "answers"),
    [
        (b'{"inputs": "fine"}', JSON, 1),
        (b'{"inputs": ["fine", "dull"]}', JSON, 2),
        (b'{"inputs": ["fine"]}', JSON, 1),
        (b"fine", {"content-type": "text/plain"}, 1),
        (msgspec.json.encode({"inputs": ["x"] * 128}), JSON, 128),
    ],
)
def test_texts_are_answered_one_list_each(api, body, headers, answers):
    reply = api.ask("POST", "/models/words", body, headers)
    assert (reply.status, reply.json) == (200, [SCORES] * answers)


def test_the_texts_of_one_request_wait_together(api, seen, tmp_path):
    """All are in the queue at once: the second batch holds what came while the first was being
    answered.
    """
    sizes = []

    async def slow(calls):
        sizes.append(len(calls))
        await asyncio.sleep(0.05)
        return await seen(calls)

    worker = api.worker(tmp_path / "w", slow)
    kept = api.gateway._snapshot
    api.update(
        a_route(
            "slow",
            kind="text",
            task="text-classification",
            sockets=[worker.path],
        )
    )
    api.ask(
        "POST",
        "/models/slow",
        msgspec.json.encode({"inputs": ["x"] * 40}),
        JSON,
    )
    api.gateway.update(kept)
    api.runner.run(worker.stop())
    assert sum(sizes) == 40
    assert len(sizes) < 10


def test_parameters_and_the_name_of_the_request_go_with_every_input(api, seen):
    seen.calls.clear()
    body = {
        "inputs": ["a", "b"],
        "parameters": {"top_k": 2, "function_to_apply": "softmax"},
    }
    assert (
        api.ask("POST", "/models/words", msgspec.json.encode(body), JSON).status
        == 200
    )
    assert [call.parameters for call in seen.calls] == [body["parameters"]] * 2
    assert [call.data for call in seen.calls] == [b"a", b"b"]


def test_the_input_that_is_refused_is_named(api):
    reply = api.ask(
        "POST", "/models/words", b'{"inputs": ["fine", "bad", "fine"]}', JSON
    )
    assert (reply.status, reply.json) == (400, {"error": "input 1: unreadable"})
    assert (
        api.ask("POST", "/models/words", b'{"inputs": "bad"}', JSON).error
        == "unreadable"
    )


@pytest.mark.parametrize(
    ("name", "body", "headers"),
    [
        ("spots", b"", {}),
        ("words", b"", {}),
        ("words", b"fine", {}),
        ("words", b"[]", JSON),
        ("words", b"{}", JSON),
        ("words", b"{", JSON),
        ("words", b"\xff", JSON),
        ("words", b'{"inputs": "\xff"}', JSON),
        ("words", b'{"inputs": []}', JSON),
        ("words", b'{"inputs": 5}', JSON),
        ("words", b'{"inputs": [5]}', JSON),
        ("words", b'{"inputs": [["x"]]}', JSON),
        ("words", b'{"inputs": null}', JSON),
        ("words", b'{"inputs": {"b64": "eA=="}}', JSON),
        ("words", b'{"inputs": "x", "parameters": [1]}', JSON),
        ("words", b'{"inputs": "x", "options": [1]}', JSON),
        ("words", b'{"inputs": "x", "options": {"wait_for_model": 1}}', JSON),
        ("words", b'{"inputs": ' + b"[" * 2000 + b"]" * 2000 + b"}", JSON),
        ("words", msgspec.json.encode({"inputs": ["x"] * 129}), JSON),
        ("words", b"x", {"content-type": "multipart/form-data; boundary=x"}),
        ("spots", b'{"inputs": "not base64!"}', JSON),
        ("spots", '{"inputs": "é"}'.encode(), JSON),
        ("spots", b"x", {"accept": "image/png"}),
        ("spots", b"x", {"accept": "text/html, image/*;q=0.5"}),
    ],
)
def test_what_the_hub_would_not_take_is_refused_in_its_shape(
    api, name, body, headers
):
    reply = api.ask("POST", f"/models/{name}", body, headers)
    assert reply.status == 400
    assert reply.json.keys() == {"error"}
    assert len(reply.error) < 300


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "application/json",
        "application/*;q=0.1",
        "text/html, */*",
        "",
        " ",
    ],
)
def test_an_accept_that_json_satisfies_is_satisfied(api, accept):
    assert (
        api.ask("POST", "/models/spots", b"x", {"accept": accept}).status == 200
    )


def test_a_model_of_tensors_says_where_to_go(api):
    reply = api.ask("POST", "/models/numbers", b"x")
    assert reply.status == 400
    assert "/v2/models/numbers/infer" in reply.error
    assert api.ask("GET", "/models/numbers").json["pipeline_tag"] is None


def test_a_deployment_describes_itself(api):
    assert (
        api.ask("GET", "/models/words").json["pipeline_tag"]
        == "text-classification"
    )
    assert api.ask("GET", "/models/spots").json["labels"] == ["dark", "bright"]
    assert (
        api.ask("GET", "/models/spots/info").json
        == api.ask("GET", "/models/spots").json
    )


@pytest.mark.parametrize(
    ("name", "status"), [("spots", 200), ("loading", 503), ("none", 404)]
)
def test_a_deployment_says_whether_it_answers(api, name, status):
    assert api.ask("GET", f"/models/{name}/health").status == status


@pytest.mark.parametrize(
    ("version", "status"), [("1", 200), ("2", 404), ("one", 404)]
)
def test_a_version_can_be_pinned(api, version, status):
    assert (
        api.ask(
            "POST", "/models/spots", b"x", {"x-modelmill-version": version}
        ).status
        == status
    )


# ---- 503 makes npm's client repeat for ever: only a deployment that is loading says it


def test_a_model_that_loads_is_503(api):
    reply = api.ask("POST", "/models/loading", b"x")
    assert (reply.status, reply.error, reply.headers[b"retry-after"]) == (
        503,
        "'loading' is loading",
        b"1",
    )


def test_a_model_that_will_never_load_is_not_503(api):
    reply = api.ask("POST", "/models/broken", b"x")
    assert (reply.status, reply.error) == (
        500,
        "'broken' can't be served: the golden set differs",
    )


def while_asking(api, path, body, headers, happens):
    """The reply to a request, and what happens once it waits."""

    async def both():
        asking = asyncio.create_task(
            api._ask("POST", path, body, dict(headers), "user-key")
        )
        await asyncio.sleep(0.02)
        happens()
        return await asking

    return api.runner.run(both())


def test_a_model_that_was_undeployed_meanwhile_is_404(api):
    kept = api.gateway._snapshot
    api.update(a_route("leaving"))  # no worker: what comes waits
    reply = while_asking(
        api, "/models/leaving", b"x", {}, lambda: api.gateway.update(kept)
    )
    assert (reply.status, reply.error[:24]) == (404, "unknown model 'leaving';")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"x", {"x-wait-for-model": "true"}),
        (
            msgspec.json.encode(
                {"inputs": PICTURE, "options": {"wait_for_model": True}}
            ),
            JSON,
        ),
    ],
)
def test_a_model_can_be_waited_for(api, tmp_path, seen, body, headers):
    kept = api.gateway._snapshot
    worker = api.worker(tmp_path / "w", seen)

    def arrive():
        arrived = {"default/loading": a_route("loading", sockets=[worker.path])}
        api.gateway.update(
            msgspec.structs.replace(kept, routes={**kept.routes, **arrived})
        )

    reply = while_asking(api, "/models/loading", body, headers, arrive)
    api.gateway.update(kept)
    api.runner.run(worker.stop())
    assert (reply.status, reply.json) == (200, SCORES)


def test_waiting_ends_with_the_time_a_call_may_take(tmp_path):
    api = InMemoryApi(timeout_seconds=0.1)
    api.update(a_route("loading", ready=False))
    reply = api.ask(
        "POST", "/models/loading", b"x", {"x-wait-for-model": "true"}
    )
    api.close()
    assert reply.status == 504
    assert "still loading" in reply.error


# ---- with huggingface_hub, over HTTP, and real models


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    pictures, texts = (
        picture_bundle(folder / "pictures"),
        text_bundle(folder / "texts"),
    )
    scenes = mask_bundle(folder / "scenes")

    async def routes(live):
        spots = await live.worker(folder / "p.sock", answering_with(pictures))
        words = await live.worker(folder / "t.sock", answering_with(texts))
        masks = await live.worker(folder / "m.sock", answering_with(scenes))
        ids = [TensorSpec(name="ids", datatype="INT64", shape=[-1, 4])]
        task = "text-classification"
        return [
            a_route("spots", sockets=[spots.path]),
            a_route("scenes", task="image-segmentation", sockets=[masks.path]),
            a_route(
                "words",
                kind="text",
                task=task,
                inputs=ids,
                sockets=[words.path],
            ),
        ]

    api = LiveApi(routes)
    yield api
    api.close()


def client(live, name, key="user-key", kind=InferenceClient):
    return kind(model=f"{live.url}/models/{name}", token=key, timeout=20)


def test_the_hub_client_classifies_pictures(live, tmp_path):
    bright = png(np.full((2, 2), 204))
    (tmp_path / "bright.png").write_bytes(bright)
    for given in (bright, str(tmp_path / "bright.png")):
        rows = client(live, "spots").image_classification(given)
        assert [row.label for row in rows] == ["bright", "dark"]
        assert rows[0].score == pytest.approx(0.8, abs=0.01)
    assert [
        row.label
        for row in client(live, "spots").image_classification(bright, top_k=1)
    ] == ["bright"]


def test_the_hub_client_segments_pictures(live):
    scene = np.full((40, 60), 20, np.uint8)
    scene[:, 30:] = 230
    rows = {
        row.label: row
        for row in client(live, "scenes").image_segmentation(png(scene))
    }
    assert rows.keys() == {"dark", "bright"}
    assert rows["bright"].mask.size == (60, 40)
    assert (
        np.asarray(rows["bright"].mask) == np.where(scene == 230, 255, 0)
    ).mean() > 0.95
    assert rows["bright"].score > 0.8
    only = client(live, "scenes").image_segmentation(
        png(np.full((40, 60), 90)), threshold=0.7
    )
    assert only == []


def test_the_hub_client_classifies_texts(live):
    rows = client(live, "words").text_classification("good film")
    assert {row.label for row in rows} == {"good", "bad"}
    assert (
        len(client(live, "words").text_classification("good film", top_k=1))
        == 1
    )


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # its own
def test_the_hub_client_sends_many_requests_at_once(live):
    dark = png(np.full((2, 2), 51))

    async def ask():
        asking = client(live, "spots", kind=AsyncInferenceClient)
        found = await asyncio.gather(
            *(asking.image_classification(dark) for _ in range(8))
        )
        await asking.close()
        return found

    assert {rows[0].label for rows in asyncio.run(ask())} == {"dark"}


@pytest.mark.parametrize(
    ("name", "key", "status", "says"),
    [
        ("absent", "user-key", 404, "unknown model 'absent'"),
        ("spots", "wrong", 401, "the key is not known"),
        ("spots", "user-key", 400, "not"),
    ],
)
def test_the_hub_client_shows_what_was_wrong(live, name, key, status, says):
    with pytest.raises(HfHubHTTPError) as caught:
        client(live, name, key).image_classification(b"not a picture")
    assert caught.value.response.status_code == status
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"top_k": 0}, {"function_to_apply": "sigmoid"}]
)
def test_the_task_checks_its_parameters(live, options):
    with pytest.raises(HfHubHTTPError, match=next(iter(options))):
        client(live, "words").text_classification("good film", **options)


@pytest.mark.parametrize(
    ("path", "before"),
    [
        ("/models/words", '"inputs": "{}"'),
        ("/v1/models/words:predict", '"instances": ["{}"]'),
        ("/invocations", '"inputs": "{}"'),
    ],
)
@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity"])
def test_a_body_may_be_packed_marked_and_hold_half_a_character(
    api, seen, path, before, coding
):
    halves = r"\ud83d \ud83d\ude00 \\ud83d \udE00"
    body = b"\xef\xbb\xbf{" + before.format(halves).encode() + b"}"
    pack = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[
        coding
    ]
    headers = {
        "content-encoding": coding,
        "x-amzn-sagemaker-target-model": "words",
    }
    reply = api.ask("POST", path, pack(body), headers)
    assert reply.status == 200, reply.body
    assert seen.calls[-1].data.decode() == "\ufffd \U0001f600 \\ud83d \ufffd"


@pytest.mark.parametrize(
    "path",
    [
        "/models/words",
        "/v1/models/words:predict",
        "/invocations",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/images/generations",
    ],
)
def test_an_unknown_coding_is_named_and_a_bomb_is_bounded(api, path):
    target = {"x-amzn-sagemaker-target-model": "words"}
    reply = api.ask("POST", path, b"x", {"content-encoding": "br", **target})
    assert (reply.status, b"'br'" in reply.body) == (415, True)
    bomb = gzip.compress(b" " * (2 << 20))
    reply = api.ask("POST", path, bomb, {"content-encoding": "gzip", **target})
    assert reply.status == 413
