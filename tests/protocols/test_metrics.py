"""What `/metrics` tells, and to whom, over a real HTTP server."""

import httpx2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelmill.serve.wire import Answer
from tests.helpers.bundles import picture_bundle
from tests.helpers.gateways import LiveApi, a_route
from tests.helpers.pictures import png
from tests.helpers.workers import answering_with

KEYS = {
    "admin-key": ("default", "admin", "boss"),
    "shop-key": ("default", "user", "shop"),
    "desk-key": ("default", "user", "desk"),
    "their-key": ("other", "user", "shop"),
}


async def echo(calls):
    return [
        Answer(call.id, data=b'[{"label":"dark","score":1.0}]')
        for call in calls
    ]


@pytest.fixture
def live(tmp_path):
    async def routes(api):
        worker = await api.worker(tmp_path / "w", echo)
        return [
            a_route(name, project=project, sockets=[worker.path])
            for name, project in (
                ("spots", "default"),
                ("stripes", "default"),
                ("spots", "other"),
            )
        ]

    api = LiveApi(routes)
    ask(api, "GET", "/livez", "")
    api.there = list(api.gateway._snapshot.routes.values())
    api.change(*api.there, keys=KEYS)
    yield api
    api.close()


def ask(live, method, path, key, **more):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = httpx2.request(method, live.url + path, headers=headers, **more)
    assert answer.status_code == 200, answer.text
    return answer


def predict(live, key, name="spots", times=1):
    for _ in range(times):
        ask(live, "POST", f"/models/{name}", key, content=b"x")


def found(live, key):
    """`[(sample, labels, value)]`, as a Prometheus server with this key reads them."""
    text = ask(live, "GET", "/metrics", key).text
    samples = [
        (one.name, one.labels, one.value)
        for family in text_string_to_metric_families(text)
        for one in family.samples
    ]
    names = [(name, frozenset(labels.items())) for name, labels, _ in samples]
    assert len(set(names)) == len(names), "a series is told twice"
    return samples


def usage(live, key):
    return {
        (labels["project"], labels["key"], labels["deployment"]): value
        for name, labels, value in found(live, key)
        if name == "modelmill_usage_total"
    }


def requests(live, key):
    return {
        (labels["project"], labels["deployment"]): value
        for name, labels, value in found(live, key)
        if name == "modelmill_requests_total"
    }


def test_equal_names_in_two_projects_are_counted_apart(live):
    predict(live, "shop-key", times=2)
    predict(live, "their-key", times=3)
    assert usage(live, "admin-key") == {
        ("default", "shop", "spots"): 2,
        ("other", "shop", "spots"): 3,
    }
    assert requests(live, "admin-key") == {
        ("default", "spots"): 2,
        ("other", "spots"): 3,
    }


def test_every_series_names_its_project(live):
    predict(live, "shop-key")
    predict(live, "their-key")
    samples = found(live, "admin-key")
    assert {labels.get("project") for _, labels, _ in samples} == {
        "default",
        "other",
    }


def test_a_user_key_reads_its_own_project_and_its_own_usage(live):
    predict(live, "shop-key", times=2)
    predict(live, "desk-key", "stripes")
    predict(live, "admin-key")
    predict(live, "their-key", times=3)
    assert usage(live, "shop-key") == {("default", "shop", "spots"): 2}
    assert usage(live, "desk-key") == {("default", "desk", "stripes"): 1}
    assert usage(live, "their-key") == {("other", "shop", "spots"): 3}
    assert requests(live, "desk-key") == {
        ("default", "spots"): 3,
        ("default", "stripes"): 1,
    }
    assert {labels["project"] for _, labels, _ in found(live, "their-key")} == {
        "other"
    }
    text = ask(live, "GET", "/metrics", "shop-key").text
    assert "boss" not in text
    assert "desk" not in text
    assert 'project="other"' not in text


def test_an_admin_key_reads_everything(live):
    predict(live, "shop-key")
    predict(live, "desk-key", "stripes")
    predict(live, "their-key")
    assert usage(live, "admin-key").keys() == {
        ("default", "shop", "spots"),
        ("default", "desk", "stripes"),
        ("other", "shop", "spots"),
    }


def test_undeploying_ends_the_use_of_that_project_alone(live):
    predict(live, "shop-key")
    predict(live, "shop-key", "stripes")
    predict(live, "their-key", times=3)
    live.change(
        *(one for one in live.there if one.project != "other"), keys=KEYS
    )
    assert usage(live, "admin-key") == {
        ("default", "shop", "spots"): 1,
        ("default", "shop", "stripes"): 1,
    }
    live.change(*live.there, keys=KEYS)
    predict(live, "their-key")
    live.change(
        *(
            one
            for one in live.there
            if (one.project, one.deployment) != ("default", "spots")
        ),
        keys=KEYS,
    )
    assert usage(live, "admin-key") == {
        ("default", "shop", "stripes"): 1,
        ("other", "shop", "spots"): 1,
    }


def test_usage_of_a_key_is_given_by_unit(tmp_path):
    async def routes(api):
        worker = await api.worker(
            tmp_path / "w", answering_with(picture_bundle(tmp_path / "b"))
        )
        return [a_route("spots", sockets=[worker.path])]

    api = LiveApi(routes)
    try:
        ask(api, "GET", "/livez", "")
        api.change(*api.gateway._snapshot.routes.values(), keys=KEYS)
        picture = png(np.full((2, 2), 51))
        for _ in range(3):
            ask(api, "POST", "/models/spots", "shop-key", content=picture)
        units = {
            (labels["key"], labels["unit"]): value
            for name, labels, value in found(api, "shop-key")
            if name == "modelmill_usage_units_total"
        }
        assert units.keys() == {("shop", "pixels"), ("shop", "compute_seconds")}
        assert units["shop", "pixels"] == 12
        assert units["shop", "compute_seconds"] > 0
    finally:
        api.close()
