"""The admin API with everything that its own description allows, and much that it does not, over a
real socket.
"""

import asyncio
import base64
import contextlib
import hashlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import uvicorn
import uvloop
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from modelmill.control.api import make_api
from modelmill.control.api_base import Control
from modelmill.control.db import project_id
from modelmill.control.keys import ensure_admin_key
from modelmill.control.vector_index import NewItem
from modelmill.gateway_process import embedder_of
from modelmill.node import Stores
from modelmill.protocols.app import App
from modelmill.protocols.base import STATUS
from modelmill.serve.gateway import Gateway
from modelmill.settings import read_settings
from modelmill.wire.http1.server import guarded
from tests.helpers.bundles import plain_bundle
from tests.helpers.text_bundles import vector_signature

schemathesis = pytest.importorskip("schemathesis")
schemathesis.serializer.alias("application/zip", "application/octet-stream")

schemathesis.checks.load_all_checks()
CONFORMANCE = schemathesis.checks.CHECKS.get_one("response_schema_conformance")
MEANT = (501, 503, 504)
SETTINGS = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
LONG = settings(SETTINGS, max_examples=1_000, derandomize=False)


class Admin:
    """The gateway over a real database with a data set, a model and an alias; nothing runs jobs or
    workers.
    """

    def __init__(self, home: Path) -> None:
        self.settings = read_settings(
            home=home, limits={"upload_bytes": 1 << 16}
        )
        self.stores = stores = Stores(self.settings)
        stores.database.migrate()
        key = ensure_admin_key(stores.database, home).read_text().strip()
        self.headers = {"Authorization": f"Bearer {key}"}
        self._seed(home)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = "http://{}:{}".format(*self.listener.getsockname())
        limits = self.settings.limits
        self.gateway = Gateway(limits)
        control = Control(
            stores.database,
            stores.datasets,
            stores.registry,
            stores.jobs,
            stores.deployments,
            stores.artifacts,
            limits.upload_bytes,
            limits.free_bytes,
            stores.indexes,
            embedder_of(self.gateway),
        )
        app: Any = App(
            self.gateway,
            make_api(control, lambda error: STATUS.get(error.code, 500)),
        )
        self.server = uvicorn.Server(
            uvicorn.Config(
                app, http=guarded(limits), lifespan="off", log_config=None
            )
        )
        self.thread = threading.Thread(target=lambda: uvloop.run(self._serve()))
        self.thread.start()
        self.client = httpx2.Client(timeout=30)
        while not (self.server.started and self.gateway.ready):
            time.sleep(0.01)

    def _seed(self, home: Path) -> None:
        stores = self.stores
        with stores.database.session() as session:
            project = project_id(session)
        upload = home / "spots.zip"
        upload.write_bytes(b"an archive")
        row, _ = stores.datasets.add(
            project, "spots", "image-classification", "", {}, False, upload
        )
        report = {
            "classes": {"dark": 9, "bright": 9},
            "splits": {"train": 6, "val": 6, "test": 6},
            "items": 18,
        }
        stores.datasets.finish(
            row.id,
            {
                "format": "imagefolder",
                "report": report,
                "index_digest": "0" * 64,
            },
        )
        stores.registry.add(
            project, "spots", plain_bundle(home / "bundle"), None
        )
        stores.registry.alias(project, "spots:1", "best")
        version = stores.registry.add(
            project,
            "vectors",
            plain_bundle(home / "vectors", **vector_signature()),
            None,
        )
        _, index = stores.indexes.get(
            project, stores.indexes.create(project, "spots", version).name
        )
        index.add(
            [
                NewItem([1, 0, 0, 0], "dark", '{"shelf": 3}'),
                NewItem([0, 1, 0, 0], "bright"),
            ]
        )

    async def _serve(self) -> None:
        following = asyncio.create_task(
            self.gateway.follow(self.stores.deployments.snapshot, lambda: True)
        )
        await self.server.serve(sockets=[self.listener])
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following

    def stop(self) -> None:
        """End the server."""
        self.client.close()
        self.server.should_exit = True
        self.thread.join()
        self.stores.database.close()


@pytest.fixture(scope="module")
def admin(tmp_path_factory) -> Iterator[Admin]:
    running = Admin(tmp_path_factory.mktemp("admin"))
    yield running
    running.stop()


EXISTING = {
    "name": ["spots", "new"],
    "model": ["spots", "spots:1", "spots@best", "vectors"],
    "reference": ["spots", "spots:1", "spots@best"],
    "data": ["spots"],
    "task": ["image-classification", "text-classification"],
    "recipe": ["", "cnn"],
    "format": ["", "imagefolder", "csv"],
    "split": ["test", "val"],
    "alias": ["best"],
    "number": [1, 2],
}


def existing(part: Any) -> Any:
    """The description with only what exists among the values it allows, or hardly any request would
    find something.
    """
    if isinstance(part, list):
        return [existing(one) for one in part]
    if not isinstance(part, dict):
        return part
    made = {
        key: value if key.endswith("View") else existing(value)
        for key, value in part.items()
    }
    if part.get("in") in ("path", "query") and part["name"] in EXISTING:
        made["schema"] = {"enum": EXISTING[part["name"]]}
    properties = made.get("properties", {})
    for name in properties.keys() & EXISTING.keys():
        properties[name] = {"enum": EXISTING[name]}
    return made


def run(admin: Admin, how: settings) -> list[str]:
    """Every operation that the API describes, with what exists, and with data after its description
    and against it.
    """
    document = httpx2.get(
        f"{admin.url}/openapi.json", headers=admin.headers
    ).json()
    for operations in document["paths"].values():
        for operation in operations.values():
            operation.pop("security")  # every request here brings the key
    plain, good = (
        schemathesis.openapi.from_dict(one)
        for one in (document, existing(document))
    )
    modes = [(good, schemathesis.GenerationMode.POSITIVE)] + [
        (plain, mode) for mode in schemathesis.GenerationMode
    ]
    labels = sorted(document["paths"].items())
    calls = [
        (path, method.upper())
        for path, operations in labels
        for method in operations
    ]
    for path, method in sorted(
        calls, key=lambda call: call[1] == "DELETE"
    ):  # or soon nothing exists

        @how
        @given(
            case=st.one_of(
                schema[path][method].as_strategy(generation_mode=mode)
                for schema, mode in modes
            )
        )
        def try_it(case: Any) -> None:
            answer = case.call(base_url=admin.url, headers=admin.headers)
            assert answer.status_code < 500 or answer.status_code in MEANT, (
                case.as_curl_command(),
                answer.text,
            )
            case.validate_response(answer, checks=[CONFORMANCE])

        try_it()
    return [f"{method} {path}" for path, method in calls]


def test_whatever_the_description_allows_or_forbids_is_answered_or_refused(
    admin,
):
    assert len(run(admin, SETTINGS)) > 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whatever_the_description_allows_or_forbids_for_long(admin):
    run(admin, LONG)


NAMES = [
    "spots",
    "spots:1",
    "spots@best",
    "spots:99999999999999999999",
    "spots:-1",
    "1",
    "0",
    "9007199254740993",
    "x",
]
odd = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(
        [
            "%00",
            "%ff",
            "..%2f..%2fetc%2fpasswd",
            "%F0%9F%99%82",
            "a" * 5_000,
            "%ED%A0%80",
            "+1",
            "1e3",
            "%0a",
        ]
    ),
    st.text(max_size=10).map(
        lambda text: (
            httpx2.QueryParams({"": text})
            .__str__()
            .lstrip("=")
            .replace("+", "%20")
        )
    ),
)
BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"\\ud800"',
    b"\xff\xfe",
    b"PK\x05\x06" + bytes(18),
    b"[" * 20_000,
    b'{"name": "a", "task": "image-classification", "data": "spots", "settings": {"seed": 1e400}}',
    b'{"name": "a", "task": "image-classification", "data": "spots", "settings": {"seed": 99999999999999999999999}}',
    b'{"name": "a", "task": "image-classification", "data": "spots", "settings": {"seed": NaN}}',
    b'{"name": "a", "task": "image-classification", "data": "spots", "settings": {"\\u0000": "\\ud83d"}}',
    b'{"name": "a", "task": "image-classification", "data": "spots", "recipe": "\\u0000"}',
    b'{"name": "a", "task": "../x", "data": "spots"}',
    b'{"model": "spots:1", "alias": "a\\u0000b"}',
    b'{"model": "spots:1", "alias": "best", "alias": "\\ud800"}',
    b'{"model": "spots", "data": "spots", "split": "\\u0000"}',
    b'{"model": "spots", "data": "\\ud800", "split": "test"}',
    b'{"model": "spots", "replicas": 1e999}',
    b'{"model": "spots", "replicas": 64, "name": "\\u202e"}',
    b'{"model": "spots:18446744073709551616"}',
]
QUERIES = [
    "",
    "name=a&task=image-classification",
    "name=a%00&task=image-classification",
    "name=a&task=image-classification&format=..%2Fx",
    "name=a&task=image-classification&format=csv&option=%00=1",
    "name=b&task=text-classification&format=csv&option=text=%ff&option=text",
    "name=spots&task=image-classification&strict=maybe",
    "name=%ED%A0%80&task=%ED%A0%80",
    "offset=9007199254740992",
    "offset=-1",
    "offset=99999999999999999999999999",
    "task=%00",
    "task=text-classification&task=image-classification",
    "&&==%",
]
TYPES = [
    "application/json",
    "text/plain",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "application/zip",
    "\xff",
]


@settings(SETTINGS, max_examples=400)
@given(data=st.data())
def test_what_the_description_does_not_allow_is_refused(admin, data):
    paths = data.draw(st.sampled_from(PATHS))
    path = "/api/v1" + paths.replace("{}", data.draw(odd))
    query = data.draw(st.sampled_from(QUERIES))
    body = data.draw(st.sampled_from(BODIES))
    method = data.draw(
        st.sampled_from(
            ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
        )
    )
    content_type = data.draw(st.sampled_from(TYPES)).encode("latin-1")
    answer = admin.client.request(
        method,
        f"{admin.url}{path}?{query}",
        content=body,
        headers=[
            (b"authorization", admin.headers["Authorization"].encode()),
            (b"content-type", content_type),
        ],
    )
    assert answer.status_code < 500 or answer.status_code in MEANT, (
        method,
        path,
        query,
        body,
        answer.text,
    )
    if answer.status_code >= 400 and method != "HEAD":
        assert answer.json().keys() == {
            "error",
            "code",
        } or answer.json().keys() == {"error"}, answer.text
        assert len(answer.content) < 4_096


PATHS = [
    "/tasks",
    "/recipes",
    "/datasets",
    "/datasets/{}",
    "/kinds",
    "/train",
    "/jobs/evaluate",
    "/evaluate",
    "/jobs",
    "/jobs/{}",
    "/jobs/{}/cancel",
    "/jobs/{}/resume",
    "/jobs/{}/log",
    "/jobs/{}/events",
    "/jobs/{}/pictures/{}",
    "/models",
    "/models/{}",
    "/models/{}/files/{}",
    "/aliases",
    "/deployments",
    "/deployments/{}",
    "/{}",
]


def test_uploads_are_held_to_their_limit_and_leave_no_files(admin):
    def upload(body: Any, name: str = "big") -> httpx2.Response:
        query = {"name": name, "task": "image-classification"}
        return admin.client.post(
            f"{admin.url}/api/v1/datasets",
            params=query,
            content=body,
            headers=admin.headers,
        )

    assert upload(bytes(1 << 16)).status_code == 202
    assert upload(bytes((1 << 16) + 1), "bigger").status_code == 413
    assert (
        upload((bytes(1 << 14) for _ in range(5)), "endless").status_code == 413
    )
    assert upload(b"", "empty").status_code == 400
    assert upload(b"x", "a\x00b").status_code == 400
    with socket.create_connection(
        admin.listener.getsockname()
    ) as client:  # half an upload
        head = (
            "POST /api/v1/datasets?name=half&task=image-classification HTTP/1.1\r\nHost: "
            f"x\r\n{lines(admin)}"
        )
        client.sendall(head.encode() + b"Content-Length: 9999\r\n\r\nhalf")
        folder = admin.settings.home / "uploads"
        wait(lambda: any(folder.iterdir()))
    wait(lambda: not any(folder.iterdir()))


@pytest.mark.parametrize("declared", [True, False])
def test_an_upload_that_the_disk_has_no_room_for_is_refused(
    admin, declared, monkeypatch
):
    left = [admin.settings.limits.free_bytes + 1000]
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(free=left[0])
    )

    def upload(body: Any, name: str) -> httpx2.Response:
        return admin.client.post(
            f"{admin.url}/api/v1/models",
            params={"name": name},
            content=body if declared else iter([body]),
            headers=admin.headers,
        )

    assert upload(bytes(1000), "fits").status_code == 202
    answer = upload(bytes(1001), "large")
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
    assert "the disk has room for" in answer.json()["error"]
    assert "limits.free_bytes" in answer.json()["error"]
    left[0] = 0
    assert upload(b"x", "full").status_code == 507
    assert not any((admin.settings.home / "uploads").iterdir())


def test_a_large_upload_is_refused_before_it_is_read(admin):
    with socket.create_connection(admin.listener.getsockname()) as client:
        head = (
            "POST /api/v1/models?name=huge HTTP/1.1\r\nHost: x\r\n"
            f"{lines(admin)}Content-Length: {1 << 17}\r\n\r\n"
        )
        client.sendall(head.encode())  # and nothing of the body
        client.settimeout(20)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 413 ")


def lines(admin: Admin) -> str:
    return "".join(
        f"{name}: {value}\r\n" for name, value in admin.headers.items()
    )


def wait(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_answers_of_the_admin_api_protect_browsers(admin):
    url = (
        "/docs",
        "/docs/assets/swagger-ui.css",
        "/api/v1/datasets",
        "/docs/nothing",
    )
    page, asset, rows, missing = (
        admin.client.get(f"{admin.url}{path}", headers=admin.headers)
        for path in url
    )
    refused = admin.client.get(f"{admin.url}/api/v1/datasets")
    for reply in (page, asset, rows, missing, refused):
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert (
            "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        )
        kept = reply.headers.get("cache-control") != "no-store"
        assert kept == (reply is asset)
    assert [page.status_code, asset.status_code, refused.status_code] == [
        200,
        200,
        401,
    ]
    policy = page.headers["content-security-policy"]
    inline = page.text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}'" in policy
    assert inline
    assert "default-src 'none'" in policy
    assert 'src="/docs/assets/' in page.text  # nothing comes from elsewhere
