"""What v2 tells of models: metadata, configuration, statistics, index; loading; trace and log
settings.
"""

import json
import logging

import pytest

from modelmill.errors import NotFound
from modelmill.serve.meter import Histogram, Series
from modelmill.types import TensorSpec
from tests.helpers.gateways import InMemoryApi, a_route
from tests.helpers.v2 import a_mirror, infer, mirror, refused, tensor


@pytest.fixture
def api(tmp_path):
    api = InMemoryApi()
    worker = api.worker(tmp_path / "w", mirror)
    there = {"sockets": [worker.path], "kind": "tensor", "task": ""}
    spec = ("x", "FP32", [-1, 2])
    api.update(
        a_mirror(
            "m",
            spec,
            batch=16,
            max_wait=0.005,
            others=[a_mirror("m", spec, version=3)],
            version=2,
            **there,
        ),
        a_mirror(
            "shadowed",
            spec,
            others=[a_mirror("shadowed", spec, version=4, shadow=True)],
            **there,
        ),
        a_mirror("texts", ("x", "BYTES", [2, -1]), engine="openvino", **there),
        a_route("fresh", ready=False, inputs=[], outputs=[]),
        a_route("broken", ready=False, error="a golden answer differs"),
        a_route("put-away", ready=False, loaded=False),
        a_route("asleep", asleep=True),
        a_route("secret", project="other"),
    )
    yield api
    api.runner.run(worker.stop())
    api.close()


# ---- metadata and configuration


def test_every_version_that_answers_is_named(api):
    assert api.ask("GET", "/v2/models/m").json["versions"] == ["2", "3"]
    assert api.ask("GET", "/v2/models/shadowed").json["versions"] == ["1"]


def test_the_platform_is_that_of_the_engine(api):
    assert api.ask("GET", "/v2/models/m").json["platform"] == "onnxruntime_onnx"
    assert api.ask("GET", "/v2/models/texts").json["platform"] == "openvino"


@pytest.mark.parametrize("path", ["", "/config"])
def test_what_is_not_known_yet_is_said(api, path):
    reply = api.ask("GET", f"/v2/models/fresh{path}")
    assert (reply.status, reply.error) == (503, "'fresh' is loading")
    assert reply.headers[b"retry-after"] == b"1"


def test_a_configuration_speaks_tritons_names(api):
    config = api.ask("GET", "/v2/models/m/config").json
    assert (config["name"], config["platform"], config["backend"]) == (
        "m",
        "onnxruntime_onnx",
        "onnxruntime",
    )
    assert config["max_batch_size"] == api.gateway.limits.batch
    assert config["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [2]}
    ]
    assert config["output"] == [
        {
            "name": "x_out",
            "data_type": "TYPE_FP32",
            "dims": [2],
            "label_filename": "",
        }
    ]
    assert config["version_policy"] == {"specific": {"versions": [2, 3]}}
    assert config["dynamic_batching"] == {
        "preferred_batch_size": [16],
        "max_queue_delay_microseconds": 5000,
    }
    assert config["parameters"]["model"] == {"string_value": "m"}
    assert api.ask("GET", "/v2/models/m/versions/2/config").json["name"] == "m"


def test_a_model_without_a_batch_axis_has_no_batch_size(api):
    config = api.ask("GET", "/v2/models/texts/config").json
    assert config["max_batch_size"] == 0
    assert config["input"] == [
        {"name": "x", "data_type": "TYPE_STRING", "dims": [2, -1]}
    ]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/config",
        "/stats",
        "/trace/setting",
        "/versions/7",
        "/versions/7/config",
    ],
)
def test_what_does_not_exist_is_404(api, path):
    assert api.ask("GET", f"/v2/models/nothing{path}").status == 404
    assert api.ask("GET", f"/v2/models/secret{path}").status == 404


# ---- statistics


def test_statistics_are_in_nanoseconds(api):
    counted = Series(
        success=3,
        failure=1,
        rows=5,
        batches=2,
        success_seconds=0.25,
        failure_seconds=0.5,
        queue=Histogram([3], 0.125),
        decode_seconds=1e-6,
        run_seconds=2.0,
        encode_seconds=1e-9,
        last=1_700_000_000.5,
    )
    api.gateway.statistics = lambda route: counted
    (row, other) = api.ask("GET", "/v2/models/m/stats").json["model_stats"]
    assert [row["version"], other["version"]] == ["2", "3"]
    assert row["last_inference"] == 1_700_000_000_500
    assert (row["inference_count"], row["execution_count"]) == (5, 2)
    assert row["inference_stats"] == {
        "success": {"count": 3, "ns": 250_000_000},
        "fail": {"count": 1, "ns": 500_000_000},
        "queue": {"count": 3, "ns": 125_000_000},
        "compute_input": {"count": 3, "ns": 1000},
        "compute_infer": {"count": 3, "ns": 2_000_000_000},
        "compute_output": {"count": 3, "ns": 1},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    }
    assert [
        one["version"]
        for one in api.ask("GET", "/v2/models/m/versions/2/stats").json[
            "model_stats"
        ]
    ] == ["2"]


def test_statistics_of_all_models_are_those_of_the_project(api):
    names = [
        one["name"]
        for one in api.ask("GET", "/v2/models/stats").json["model_stats"]
    ]
    assert set(names) == {
        "m",
        "shadowed",
        "texts",
        "fresh",
        "broken",
        "put-away",
        "asleep",
    }
    assert names.count("m") == 2
    mine = api.ask("GET", "/v2/models/stats", key="other-key").json[
        "model_stats"
    ]
    assert [one["name"] for one in mine] == ["secret"]


# ---- the repository


def test_the_repository_index_has_the_state_of_every_version(api):
    infer(api, "m", tensor([1, 2]))
    rows = {
        (row["name"], row["version"]): row
        for row in api.ask("POST", "/v2/repository/index").json
    }
    assert rows["m", "2"]["state"] == "READY"
    assert rows["fresh", "1"]["state"] == "LOADING"
    assert rows["asleep", "1"]["state"] == "READY"
    assert (rows["broken", "1"]["state"], rows["broken", "1"]["reason"]) == (
        "UNAVAILABLE",
        "a golden answer differs",
    )
    assert (
        rows["put-away", "1"]["state"],
        rows["put-away", "1"]["reason"],
    ) == (
        "UNAVAILABLE",
        "unloaded",
    )
    assert ("secret", "1") not in rows
    ready = api.ask("POST", "/v2/repository/index", b'{"ready": true}').json
    assert {row["state"] for row in ready} == {"READY"}
    assert {row["name"] for row in ready} >= {"m", "asleep"}


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"ready": 1}', b'{"ready": "yes"}', b"\xff"]
)
def test_an_index_of_what_nobody_knows_is_refused(api, body):
    refused(api.ask("POST", "/v2/repository/index", body))


@pytest.mark.parametrize(
    ("name", "status"), [("asleep", 200), ("put-away", 400), ("broken", 400)]
)
def test_what_would_answer_is_ready(api, name, status):
    assert api.ask("GET", f"/v2/models/{name}/ready").status == status


def test_loading_and_unloading_wait_until_it_is_so():
    done = []

    async def operate(gateway, caller, name, loaded):
        if name == "nothing":
            raise NotFound("no such model")
        done.append((caller.project, name, loaded))

    api = InMemoryApi(operate)
    api.update(a_route("m"))
    for body in (b"", b"{}", b'{"parameters": {}}'):
        reply = api.ask("POST", "/v2/repository/models/m/load", body)
        assert (reply.status, reply.body) == (200, b"")
    reply = api.ask(
        "POST",
        "/v2/repository/models/m/unload",
        b'{"parameters": {"unload_dependents": false}}',
    )
    assert (reply.status, reply.body) == (200, b"")
    assert done == [("default", "m", True)] * 3 + [("default", "m", False)]
    assert api.ask("POST", "/v2/repository/models/nothing/load").status == 404
    refused(
        api.ask(
            "POST",
            "/v2/repository/models/m/load",
            b'{"parameters": {"config": "{}"}}',
        ),
        "configuration",
    )
    api.close()


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_loading_is_for_admins(api, verb):
    reply = api.ask("POST", f"/v2/repository/models/m/{verb}", key="user-key")
    assert (reply.status, reply.error) == (403, "this needs an admin key")
    assert api.ask("POST", f"/v2/repository/models/m/{verb}").status == 503
    assert (
        api.ask("POST", f"/v2/repository/models/nothing/{verb}").status == 404
    )


# ---- trace settings


def put(api, path, document, **how):
    return api.ask("POST", path, json.dumps(document).encode(), **how)


def test_trace_settings_are_kept_for_all_and_for_one(api):
    general, own = "/v2/trace/setting", "/v2/models/m/trace/setting"
    before = api.ask("GET", general).json
    assert before["trace_level"] == ["OFF"]
    assert api.ask("GET", own).json == before
    after = put(
        api,
        general,
        {"trace_rate": "500", "trace_level": ["TENSORS", "TIMESTAMPS"]},
    ).json
    assert after == {
        **before,
        "trace_rate": "500",
        "trace_level": ["TIMESTAMPS", "TENSORS"],
    }
    assert (
        put(
            api,
            own,
            {"trace_rate": 7, "trace_level": "OFF", "trace_count": ["-1"]},
        ).json["trace_rate"]
        == "7"
    )
    assert api.ask("GET", own).json == {
        **after,
        "trace_rate": "7",
        "trace_level": ["OFF"],
    }
    assert api.ask("GET", general).json == after
    assert put(api, own, {"trace_rate": None, "trace_level": []}).json == after
    assert (
        put(api, general, {"trace_rate": None, "trace_level": None}).json
        == before
    )


@pytest.mark.parametrize(
    "document",
    [
        {"trace_rate": "fast"},
        {"trace_rate": "-1"},
        {"trace_rate": 1.5},
        {"trace_rate": "²"},
        {"trace_rate": "9" * 5000},
        {"trace_rate": True},
        {"trace_count": "-2"},
        {"trace_count": "--1"},
        {"trace_level": ["LOUD"]},
        {"trace_level": [["OFF"]]},
        {"trace_level": 5},
        {"trace_level": {}},
        {"trace_file": "/etc/passwd"},
        {"trace_mode": "triton"},
        {"trace_speed": "1"},
        {"trace_rate": "5", "trace_speed": "1"},
    ],
)
def test_a_wrong_trace_setting_changes_nothing(api, document):
    before = api.ask("GET", "/v2/trace/setting").json
    refused(put(api, "/v2/trace/setting", document), next(reversed(document)))
    assert api.ask("GET", "/v2/trace/setting").json == before


# ---- log settings


@pytest.fixture
def level():
    log = logging.getLogger("modelmill")
    kept = log.level
    log.setLevel(logging.INFO)
    yield lambda: log.level
    log.setLevel(kept)


def test_log_settings_are_those_of_the_logger(api, level):
    now = api.ask("GET", "/v2/logging").json
    assert (
        now["log_info"],
        now["log_warning"],
        now["log_error"],
        now["log_verbose_level"],
    ) == (True, True, True, 0)
    assert put(api, "/v2/logging", {"log_verbose_level": 0}).json == now
    assert (
        put(api, "/v2/logging", {"log_verbose_level": 2}).json[
            "log_verbose_level"
        ]
        == 2
    )
    assert level() == logging.DEBUG
    put(api, "/v2/logging", {"log_verbose_level": 0, "log_info": False})
    assert level() == logging.WARNING
    assert (
        put(
            api, "/v2/logging", {"log_warning": False, "log_error": False}
        ).json["log_info"]
        is False
    )
    assert level() == logging.CRITICAL
    assert (
        put(
            api,
            "/v2/logging",
            {"log_info": True, "log_file": "", "log_format": "default"},
        ).status
        == 200
    )
    assert level() == logging.INFO


@pytest.mark.parametrize(
    "document",
    [
        {"log_verbose_level": -1},
        {"log_verbose_level": "1"},
        {"log_verbose_level": True},
        {"log_verbose_level": 2**70},
        {"log_info": 1},
        {"log_info": None},
        {"log_file": "/tmp/x"},
        {"log_format": "ISO8601"},
        {"log_loudness": 1},
        {"log_info": False, "log_loudness": 1},
    ],
)
def test_a_wrong_log_setting_changes_nothing(api, level, document):
    before = api.ask("GET", "/v2/logging").json
    refused(put(api, "/v2/logging", document), next(reversed(document)))
    assert api.ask("GET", "/v2/logging").json == before
    assert level() == logging.INFO


@pytest.mark.parametrize(
    "path", ["/v2/trace/setting", "/v2/models/m/trace/setting", "/v2/logging"]
)
def test_settings_are_read_by_all_and_changed_by_admins(api, path):
    assert api.ask("GET", path, key="user-key").status == 200
    reply = put(api, path, {}, key="user-key")
    assert (reply.status, reply.error) == (403, "this needs an admin key")
    assert put(api, path, {}).json == api.ask("GET", path).json
    refused(put(api, path, []), "JSON object")


def test_a_model_of_a_name_in_another_project_has_settings_of_its_own(api):
    assert (
        put(api, "/v2/models/secret/trace/setting", {"trace_rate": "1"}).status
        == 404
    )
    assert isinstance(a_route("x").inputs[0], TensorSpec)
