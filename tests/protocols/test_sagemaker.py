"""SageMaker: /ping for anybody, /invocations for the deployment that a header, a setting or its
being alone names.
"""

import base64
import json

import numpy as np
import pytest

from modelmill.protocols.app import App
from modelmill.types import TensorSpec
from tests.helpers.bundles import picture_bundle
from tests.helpers.gateways import InMemoryApi, a_route, nobody
from tests.helpers.pictures import png
from tests.helpers.workers import answering_with

PICTURE = png(np.full((2, 2), 204))
B64 = base64.b64encode(PICTURE).decode()
JSON = {"content-type": "application/json"}
TARGET = "X-Amzn-SageMaker-Target-Model"


@pytest.fixture(scope="module")
def worker_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sagemaker")
    return answering_with(picture_bundle(folder / "bundle"))


@pytest.fixture
def api(worker_of, tmp_path):
    api = InMemoryApi()
    worker = api.worker(tmp_path / "w", worker_of)
    api.worker_path = worker.path
    api.update(a_route("spots", sockets=[worker.path]))
    yield api
    api.runner.run(worker.stop())
    api.close()


def several(api):
    spec = [TensorSpec(name="image", datatype="UINT8", shape=[-1, -1, -1, 1])]
    api.update(
        a_route("spots", sockets=[api.worker_path]),
        a_route(
            "pixels",
            kind="tensor",
            task="",
            inputs=spec,
            sockets=[api.worker_path],
        ),
        a_route("loading", ready=False),
        a_route("secret", project="other"),
    )


def ask(api, body, headers=None, **options):
    return api.ask("POST", "/invocations", body, headers, **options)


def test_ping_needs_no_key_and_says_whether_to_send_requests(api):
    assert api.ask("GET", "/ping", key=None).status == 200
    api.gateway.draining = True
    assert api.ask("GET", "/ping", key=None).status == 503


@pytest.mark.parametrize("key", [None, "wrong"])
def test_invocations_need_a_key(api, key):
    reply = ask(api, PICTURE, key=key)
    assert reply.status == 401
    assert isinstance(reply.json["error"], str)


@pytest.mark.parametrize(
    "kind", ["image/png", "application/x-image", "application/octet-stream", ""]
)
def test_a_picture_as_bytes_goes_the_way_of_hugging_face(api, kind):
    reply = ask(api, PICTURE, {"content-type": kind})
    assert [entry["label"] for entry in reply.json] == ["bright", "dark"]


def test_json_with_inputs_goes_the_way_of_hugging_face(api):
    reply = ask(
        api,
        json.dumps({"inputs": B64, "parameters": {"top_k": 1}}).encode(),
        JSON,
    )
    assert [entry["label"] for entry in reply.json] == ["bright"]


def test_json_with_instances_goes_the_way_of_kserve(api):
    reply = ask(
        api, json.dumps({"instances": [B64, {"b64": B64}]}).encode(), JSON
    )
    assert [rows[0]["label"] for rows in reply.json["predictions"]] == [
        "bright",
        "bright",
    ]


def test_tensors_go_the_way_of_kserve(api):
    several(api)
    for body, answer in (
        ({"instances": [[[[204]]]]}, "predictions"),
        ({"inputs": {"image": [[[[204]]]]}}, "outputs"),
    ):
        reply = ask(api, json.dumps(body).encode(), {TARGET: "pixels", **JSON})
        assert reply.json[answer][0] == pytest.approx([0.2, 0.8], abs=0.01)
    assert ask(api, PICTURE, {TARGET: "pixels"}).status == 400


def test_among_several_one_is_to_be_named(api):
    several(api)
    reply = ask(api, PICTURE)
    assert reply.status == 400
    assert reply.error == (
        "several models are deployed: name one of loading, pixels, spots in "
        "X-Amzn-SageMaker-Target-Model"
    )
    assert ask(api, PICTURE, {TARGET: "spots"}).status == 200
    assert ask(api, PICTURE, {TARGET: "absent"}).status == 404
    assert ask(api, PICTURE, {TARGET: "secret"}).status == 404
    assert ask(api, PICTURE, {TARGET: "loading"}).status == 503


def test_a_setting_names_the_one_that_is_meant(api):
    several(api)
    api.app = App(api.gateway, nobody, "spots")
    assert ask(api, PICTURE).status == 200
    assert ask(api, PICTURE, {TARGET: "loading"}).status == 503


def test_nothing_deployed_is_said_so(api):
    api.update()
    reply = ask(api, PICTURE)
    assert (reply.status, reply.error) == (404, "nothing is deployed yet")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"{", JSON),
        (b"[]", JSON),
        (b'{"instances": 5}', JSON),
        (b'{"data": 5}', JSON),
        (b"\xff", JSON),
    ],
)
def test_what_can_not_be_read_is_refused(api, body, headers):
    reply = ask(api, body, headers)
    assert reply.status == 400
    assert isinstance(reply.json["error"], str)


def test_a_version_can_be_pinned(api):
    for body in (PICTURE, json.dumps({"instances": [B64]}).encode()):
        assert ask(api, body, {"x-modelmill-version": "1"}).status == 200
        assert ask(api, body, {"x-modelmill-version": "7"}).status == 404


def test_get_is_not_taken(api):
    reply = api.ask("GET", "/invocations")
    assert (reply.status, reply.headers[b"allow"]) == (405, b"POST")
