"""Every route of every protocol with everything that could be sent to it: refused or answered,
never a crash.
"""

import json
import re
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelmill.protocols.app import http_protocols
from modelmill.serve.wire import Answer, Tensor
from modelmill.types import TensorSpec
from tests.helpers.gateways import InMemoryApi, a_route

MEANT = (501, 503, 504)
SIDE = 4
LIMIT = 1 << 16
QUICK = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)
LONG = settings(QUICK, max_examples=40_000, derandomize=False)

ROUTES = sorted(
    {
        (route.method, route.pattern)
        for one in http_protocols().values()
        for route in one.ROUTES
    }
)
NAMES = [
    "numbers",
    "spots",
    "words",
    "loading",
    "other-project",
    "nothing",
    "1",
    "..",
    "a" * 300,
]
odd = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "\x00",
            "../../etc/passwd",
            "%00",
            "\ud800",
            "{}",
            "🙂",
            "a:1",
            "a@b",
            "x" * 5_000,
            "NaN",
            "-1",
        ]
    ),
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(
        [2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**30, 1e308, 5e-324]
    ),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, odd)
documents = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(odd, inner, max_size=5)
    ),
    max_leaves=12,
)


def infer_request() -> dict[str, Any]:
    data = np.arange(SIDE).tolist()
    return {
        "id": "seven",
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": [1, SIDE],
                "data": data,
                "parameters": {},
            }
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
        "parameters": {"priority": 1, "timeout": 1_000_000},
    }


VALID = [
    infer_request(),
    {"inputs": "some text", "parameters": {"top_k": 2}},
    {"instances": [[0.0, 1.0, 2.0, 3.0]]},
    {
        "model": "words",
        "input": ["some text"],
        "messages": [{"role": "user", "content": "hello"}],
        "stream": False,
    },
]


@st.composite
def mutated(draw: Any) -> Any:
    """A valid body in which something, somewhere, is something else, is missing, or is there
    twice.
    """
    document = json.loads(json.dumps(draw(st.sampled_from(VALID))))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = document
        while True:
            keys = (
                list(place)
                if isinstance(place, dict)
                else list(range(len(place)))
            )
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if (
                isinstance(place[key], dict | list)
                and place[key]
                and draw(st.booleans())
            ):
                place = place[key]
                continue
            how = draw(st.sampled_from(["other", "gone", "twice"]))
            if how == "gone":
                del place[key]
            elif how == "twice" and isinstance(place, list):
                place.append(place[key])
            else:
                place[key] = draw(documents)
            break
    return document


@st.composite
def bodies(draw: Any) -> bytes:
    """Valid, nearly valid, JSON of any kind, JSON that is not quite JSON, or bytes."""
    kind = draw(
        st.sampled_from(
            ["valid", "mutated", "document", "cut", "bytes", "nested"]
        )
    )
    if kind == "bytes":
        return bytes(draw(st.binary(max_size=400)))
    if kind == "nested":
        return b'{"inputs":' * draw(st.integers(1, 3_000)) + b"["
    made = draw(
        st.sampled_from(VALID)
        if kind == "valid"
        else documents
        if kind == "document"
        else mutated()
    )
    text = json.dumps(made).encode("utf-8", "surrogatepass")
    if kind == "cut":
        at = draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + draw(st.binary(max_size=4))
            + text[at + draw(st.integers(0, 3)) :]
        )
    return text


@st.composite
def requests(draw: Any) -> tuple[str, str, bytes, dict[str, Any]]:
    """Mostly the method of the route, mostly a name that exists."""
    method, pattern = draw(st.sampled_from(ROUTES))
    if draw(st.integers(0, 9)) == 0:
        method = draw(
            st.sampled_from(
                [
                    "GET",
                    "HEAD",
                    "POST",
                    "PUT",
                    "PATCH",
                    "DELETE",
                    "OPTIONS",
                    "TRACE",
                ]
            )
        )
    name = draw(
        st.one_of(st.sampled_from(NAMES), st.sampled_from(NAMES[:3]), odd)
    )
    path = re.sub(
        r"\{version\}",
        draw(st.sampled_from(["1", "2", "x", "99999999999999999999"])),
        pattern,
    )
    body = draw(bodies())
    headers: dict[str, Any] = {}
    for header, values in {
        "content-type": [
            "application/json",
            "application/octet-stream",
            "multipart/form-data",
            "image/png",
            "\xff",
            "",
        ],
        "inference-header-content-length": [
            str(len(body)),
            "0",
            "-1",
            "1e3",
            "9" * 40,
            "x",
            str(len(body) // 2),
        ],
        "content-length": [str(len(body)), "9" * 30, "x"],
        "content-encoding": ["gzip", "deflate", "br", "identity", "gzip, gzip"],
        "accept": ["image/png", "*/*", "application/json", "\xff"],
        "accept-encoding": ["gzip", "deflate;q=0", "*"],
        "x-request-id": ["a", "\xff" * 300],
        "traceparent": ["00-" + "1" * 32 + "-" + "2" * 16 + "-01", "junk"],
    }.items():
        if draw(st.integers(0, 3)) == 0:
            headers[header] = draw(st.sampled_from(values))
    return method, re.sub(r"\{\w+\}", lambda _: name, path), body, headers


async def answering(calls: list[Any]) -> list[Answer]:
    """A worker: twice the numbers, or a label."""
    answers = []
    for call in calls:
        if call.tensors:
            data = (
                np.frombuffer(call.tensors[0].data, np.float32) * 2
            ).tobytes()
            answers.append(
                Answer(
                    call.id,
                    tensors=[Tensor("y", "FP32", call.tensors[0].shape, data)],
                )
            )
        else:
            answers.append(
                Answer(call.id, data=b'[{"label":"dark","score":1.0}]')
            )
    return answers


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    api = InMemoryApi(body_bytes=LIMIT)
    worker = api.worker(tmp_path_factory.mktemp("fuzz") / "w", answering)
    signature = {
        "inputs": [TensorSpec(name="x", datatype="FP32", shape=[-1, SIDE])],
        "outputs": [TensorSpec(name="y", datatype="FP32", shape=[-1, SIDE])],
    }
    api.update(
        a_route("numbers", sockets=[worker.path], **signature),
        a_route("spots", sockets=[worker.path]),
        a_route(
            "words",
            kind="text",
            task="text-classification",
            sockets=[worker.path],
        ),
        a_route("loading", ready=False),
        a_route("other-project", project="other"),
    )
    yield api
    api.runner.run(worker.stop())
    api.close()


def check(
    api: InMemoryApi, asked: tuple[str, str, bytes, dict[str, Any]]
) -> None:
    method, path, body, headers = asked
    reply = api.ask(
        method,
        path,
        body,
        {name: str(value).encode("latin-1") for name, value in headers.items()},
    )
    assert reply.status < 500 or reply.status in MEANT, (asked, reply)
    if reply.status >= 400 and method != "HEAD" and reply.body:
        assert reply.headers[b"content-type"].startswith(b"application/json"), (
            asked,
            reply,
        )
        assert isinstance(msgspec.json.decode(reply.body), dict), (asked, reply)
        assert len(reply.body) < 4_096, (asked, reply)


@QUICK
@given(asked=requests())
def test_whatever_is_sent_is_answered_or_refused(api, asked):
    check(api, asked)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@LONG
@given(asked=requests())
def test_whatever_is_sent_for_long_is_answered_or_refused(api, asked):
    check(api, asked)


def test_after_all_that_an_ordinary_call_is_answered(api):
    reply = api.ask(
        "POST", "/v2/models/numbers/infer", json.dumps(infer_request()).encode()
    )
    assert reply.json["outputs"][0]["data"] == [0.0, 2.0, 4.0, 6.0]
