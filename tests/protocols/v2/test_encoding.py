"""Compressed bodies of v2: gzip and deflate both ways, within the limits of what is not
compressed.
"""

import gzip
import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.wire.encoding import preferred
from tests.helpers.gateways import InMemoryApi, Reply
from tests.helpers.v2 import (
    HEADER,
    a_mirror,
    mirror,
    outputs_of,
    refused,
    tensor,
)

LIMIT = 1 << 18
PACK = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "identity": bytes,
    "": bytes,
    "X-GZIP": gzip.compress,
}


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    api = InMemoryApi(body_bytes=LIMIT)
    worker = api.worker(tmp_path_factory.mktemp("v2") / "w", mirror)
    api.update(a_mirror("m", ("x", "FP32", [-1]), sockets=[worker.path]))
    yield api
    api.runner.run(worker.stop())
    api.close()


def body_of(count, output_binary):
    raw = np.arange(count, dtype=np.float32).tobytes()
    entry = tensor(shape=[count], parameters={"binary_data_size": len(raw)})
    head = json.dumps(
        {"inputs": [entry], "parameters": {"binary_data_output": output_binary}}
    ).encode()
    return head, raw


def ask(api, body, **headers):
    return api.ask(
        "POST",
        "/v2/models/m/infer",
        body,
        {name.replace("_", "-"): v for name, v in headers.items()},
    )


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("count", [1, 20_000])
def test_the_header_length_is_that_of_what_was_compressed(api, name, count):
    head, raw = body_of(count, True)
    reply = ask(
        api,
        PACK[name](head + raw),
        content_encoding=name,
        **{HEADER: str(len(head))},
    )
    assert outputs_of(reply) == [("x_out", "FP32", [count], raw)]


@pytest.mark.parametrize("name", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [3, 300, 30_000])
def test_an_answer_is_compressed_when_that_is_wanted_and_worth_it(
    api, name, binary, count
):
    head, raw = body_of(count, binary)
    plain = ask(api, head + raw, **{HEADER: str(len(head))})
    reply = ask(
        api, head + raw, accept_encoding=name, **{HEADER: str(len(head))}
    )
    if len(plain.body) < 1024:
        assert reply == plain
        return
    assert reply.headers[b"content-encoding"] == name.encode()
    assert len(reply.body) < len(plain.body)
    body = (
        gzip.decompress(reply.body)
        if name == "gzip"
        else zlib.decompress(reply.body)
    )
    assert body == plain.body
    assert outputs_of(Reply(200, reply.headers, body)) == outputs_of(plain)
    assert reply.headers.get(HEADER.encode()) == plain.headers.get(
        HEADER.encode()
    )


def test_an_answer_that_does_not_shrink_goes_as_it_is(api):
    raw = np.random.default_rng(0).integers(0, 256, 4000, np.uint8).tobytes()
    entry = tensor(shape=[1000], parameters={"binary_data_size": len(raw)})
    head = json.dumps(
        {"inputs": [entry], "parameters": {"binary_data_output": True}}
    ).encode()
    reply = ask(
        api, head + raw, accept_encoding="gzip", **{HEADER: str(len(head))}
    )
    assert b"content-encoding" not in reply.headers
    assert outputs_of(reply)[0][3] == raw


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", ""),
        ("br", ""),
        ("identity", ""),
        ("gzip", "gzip"),
        ("GZip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("deflate, gzip;q=0.5", "deflate"),
        ("gzip;q=0.2, deflate;q=0.7", "deflate"),
        ("gzip;q=0", ""),
        ("gzip;q=0, deflate", "deflate"),
        ("*", "gzip"),
        ("*;q=0", ""),
        ("gzip;q=0,*", "deflate"),
        ("identity, gzip;q=0.5", ""),
        ("identity;q=0.5, gzip;q=0.8", "gzip"),
        ("br;q=1.0, *;q=0.1", "gzip"),
        ("gzip;q=nonsense", ""),
        ("gzip;q=nan", ""),
        ("gzip;q=7", ""),
        ("gzip; q=0.5 ; x=1", "gzip"),
        (";;,,=", ""),
        ("é", ""),
        ("x" * 9000, ""),
    ],
)
def test_the_client_chooses_the_encoding(accepted, chosen):
    assert preferred(accepted.encode("latin-1")) == chosen


@given(st.binary(max_size=60))
def test_no_wish_is_too_strange(accepted):
    assert preferred(accepted) in ("", "gzip", "deflate")


@pytest.mark.parametrize("name", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [LIMIT + 1, 50 * LIMIT, 2000 * LIMIT])
def test_a_bomb_is_refused_as_it_unfolds(api, name, size):
    stream = zlib.compressobj(9, wbits={"gzip": 31, "deflate": 15}[name])
    parts = [
        stream.compress(bytes(min(1 << 20, size - at)))
        for at in range(0, size, 1 << 20)
    ]
    body = b"".join([*parts, stream.flush()])
    if len(body) > LIMIT:
        body = body[:LIMIT]
    reply = ask(api, body, content_encoding=name)
    assert reply.status == 413
    assert f"{LIMIT:,}" in reply.error


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gzip", b""),
        ("gzip", b"{}"),
        ("deflate", b"{}"),
        ("gzip", zlib.compress(b"{}")),
        ("deflate", gzip.compress(b"{}", mtime=0)),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-3]),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-8] + b"12345678"),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"more"),
        ("gzip", gzip.compress(b"{}", mtime=0) * 2),
        ("deflate", zlib.compress(b"{}")[:-1]),
        ("br", b"{}"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0)),
        ("é", b"{}"),
    ],
)
def test_a_body_that_is_not_what_it_says_is_refused(api, name, body):
    refused(ask(api, body, content_encoding=name))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["gzip", "deflate"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))),
)
def test_a_damaged_stream_is_never_our_failure(api, name, changes):
    head, raw = body_of(50, True)
    body = bytearray(PACK[name](head + raw))
    for place, value in changes:
        body[int(place * len(body))] = value
    reply = ask(
        api, bytes(body), content_encoding=name, **{HEADER: str(len(head))}
    )
    assert reply.status in (200, 400, 413), reply.body
