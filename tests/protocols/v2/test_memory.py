"""System shared memory of v2: off by default; regions are their owner's, and nothing outside them
is touched.
"""

import json
import os
import secrets
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.gateways import InMemoryApi
from tests.helpers.v2 import (
    a_mirror,
    infer,
    mirror,
    outputs_of,
    refused,
    tensor,
)

REGIONS = "/v2/systemsharedmemory"


@pytest.fixture
def api(tmp_path):
    api = InMemoryApi(body_bytes=4096)
    worker = api.worker(tmp_path / "w", mirror)
    there = {"sockets": [worker.path]}
    api.update(
        a_mirror("m", ("x", "FP32", [-1]), **there),
        a_mirror("texts", ("x", "BYTES", [-1]), **there),
    )
    api.gateway.shared_memory = True
    yield api
    api.ask("POST", f"{REGIONS}/unregister")
    api.ask("POST", f"{REGIONS}/unregister", key="user-key")
    api.runner.run(worker.stop())
    api.close()


@pytest.fixture
def memory():
    """Makes objects of shared memory: bytes to a key."""
    made = []

    def make(content):
        path = Path("/dev/shm") / f"modelmill-test-{secrets.token_hex(8)}"
        path.write_bytes(content)
        made.append(path)
        return f"/{path.name}"

    yield make
    for path in made:
        path.unlink(missing_ok=True)


def register(api, name, key, byte_size, offset=0, caller="admin-key"):
    body = json.dumps(
        {"key": key, "offset": offset, "byte_size": byte_size}
    ).encode()
    return api.ask(
        "POST", f"{REGIONS}/region/{name}/register", body, key=caller
    )


def regions(api, **how):
    return api.ask("GET", f"{REGIONS}/status", **how).json


def there(region, byte_size, offset=None):
    where = {
        "shared_memory_region": region,
        "shared_memory_byte_size": byte_size,
    }
    return (
        where if offset is None else {**where, "shared_memory_offset": offset}
    )


def wants(region, byte_size, offset=None, **rest):
    return [
        {
            "name": "x_out",
            "parameters": {**there(region, byte_size, offset), **rest},
        }
    ]


NUMBERS = np.array([1, 2, 3, 4, 5, 6], np.float32)


def test_shared_memory_is_off_by_default(memory):
    api = InMemoryApi()
    api.update(a_mirror("m", ("x", "FP32", [-1])))
    reply = register(api, "in", memory(bytes(8)), 8)
    assert reply.status == 403
    assert "shared_memory" in reply.error
    assert regions(api) == []
    assert api.ask("POST", f"{REGIONS}/unregister").status == 200
    reply = infer(api, "m", tensor(shape=[2], parameters=there("in", 8)))
    assert reply.status == 403
    api.close()


def test_tensors_are_read_and_left_in_shared_memory(api, memory):
    source, target = memory(NUMBERS.tobytes()), memory(bytes(64))
    assert register(api, "in", source, 24).status == 200
    assert register(api, "out", target, 32, offset=16).status == 200
    entry = tensor(shape=[2], parameters=there("in", 8, 4))
    reply = infer(api, "m", entry, outputs=wants("out", 8, 8))
    assert reply.json["outputs"] == [
        {
            "name": "x_out",
            "datatype": "FP32",
            "shape": [2],
            "parameters": {
                "shared_memory_region": "out",
                "shared_memory_offset": 8,
                "shared_memory_byte_size": 8,
            },
        }
    ]
    left = Path(f"/dev/shm{target}").read_bytes()
    assert left == bytes(24) + NUMBERS[1:3].tobytes() + bytes(32)
    assert outputs_of(infer(api, "m", entry)) == [
        ("x_out", "FP32", [2], [2.0, 3.0])
    ]
    assert (
        infer(api, "m", tensor([7], [1]), outputs=wants("out", 8)).status == 200
    )
    assert (
        Path(f"/dev/shm{target}").read_bytes()[16:20] == np.float32(7).tobytes()
    )


def test_texts_are_left_with_their_lengths(api, memory):
    target = memory(bytes(16))
    register(api, "out", target, 16)
    assert (
        infer(
            api, "texts", tensor(["ab"], [1], "BYTES"), outputs=wants("out", 16)
        ).status
        == 200
    )
    assert Path(f"/dev/shm{target}").read_bytes()[:6] == b"\x02\0\0\0ab"


def test_regions_are_listed_and_let_go(api, memory):
    key = memory(bytes(64))
    register(api, "a", key, 16, offset=8)
    register(api, "b", key, 64)
    described = {"name": "a", "key": key, "offset": 8, "byte_size": 16}
    assert regions(api) == [
        described,
        {"name": "b", "key": key, "offset": 0, "byte_size": 64},
    ]
    assert api.ask("GET", f"{REGIONS}/region/a/status").json == [described]
    reply = register(api, "a", key, 8)
    assert reply.status == 409
    assert "already" in reply.error
    assert api.ask("POST", f"{REGIONS}/region/a/unregister").status == 200
    assert api.ask("POST", f"{REGIONS}/region/a/unregister").status == 200
    assert api.ask("GET", f"{REGIONS}/region/a/status").status == 404
    assert register(api, "a", key, 8).status == 200
    assert api.ask("POST", f"{REGIONS}/unregister").status == 200
    assert regions(api) == []


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_no_descriptor_leaks(api, memory):
    infer(api, "m", tensor([1], [1]))
    key, before = memory(bytes(64)), open_files()
    for number in range(20):
        register(api, f"r{number}", key, 64)
        register(api, f"r{number}", key, 64)
        register(api, f"s{number}", key, 65)
    assert open_files() == before + 20
    api.ask("POST", f"{REGIONS}/unregister")
    assert open_files() == before


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "x",
        "/a/b",
        "/../etc/passwd",
        "/..",
        "/.",
        "//x",
        "/x\0",
        "/ä",
        "/" + "x" * 251,
        "/x\n",
        "/a b",
        "/*",
        "/sem.x",
    ],
)
def test_a_key_that_is_no_name_of_shared_memory_is_refused(api, key):
    refused(register(api, "in", key, 8), "key")


def test_what_is_not_there_is_not_found(api):
    assert register(api, "in", "/modelmill-test-absent", 8).status == 404


def test_a_link_is_not_followed(api, memory, tmp_path):
    outside = tmp_path / "secret"
    outside.write_bytes(bytes(64))
    link = Path("/dev/shm") / f"modelmill-test-{secrets.token_hex(8)}"
    link.symlink_to(outside)
    try:
        assert register(api, "in", f"/{link.name}", 8).status == 403
    finally:
        link.unlink()


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: os.mkfifo(path)]
)
def test_only_a_file_is_taken(api, make):
    path = Path("/dev/shm") / f"modelmill-test-{secrets.token_hex(8)}"
    make(path)
    try:
        assert register(api, "in", f"/{path.name}", 8).status == 403
    finally:
        subprocess.run(["rm", "-r", str(path)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_memory_of_another_user_is_refused(api, memory):
    key = memory(bytes(8))
    os.chown(f"/dev/shm{key}", 12345, -1)
    reply = register(api, "in", key, 8)
    assert reply.status == 403
    assert "belong" in reply.error


@pytest.mark.parametrize(
    ("byte_size", "offset"),
    [
        (65, 0),
        (64, 1),
        (1, 64),
        (2**62, 0),
        (1, 2**62),
        (2**200, 0),
        (0, 0),
        (-1, 0),
        (8, -1),
        (1.5, 0),
        ("8", 0),
        (None, 0),
    ],
)
def test_a_region_lies_within_its_memory(api, memory, byte_size, offset):
    refused(register(api, "in", memory(bytes(64)), byte_size, offset))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"{",
        b'{"key": 5, "byte_size": 8}',
        b'{"byte_size": 8}',
        b"\xff",
    ],
)
def test_a_registration_that_lacks_something_is_refused(api, body):
    refused(api.ask("POST", f"{REGIONS}/region/in/register", body))


@pytest.mark.parametrize("name", ["x" * 300, "a\x00b", "a\nb", "\x1b[31m"])
def test_a_region_has_a_printable_name(api, memory, name):
    refused(register(api, name, memory(bytes(8)), 8), "name")


@pytest.mark.parametrize(
    ("byte_size", "offset"),
    [
        (8, 57),
        (65, 0),
        (-8, 0),
        (8, -8),
        (8, 2**62),
        (2**62, 0),
        (2**62, 2**62),
        (8, 64),
    ],
)
def test_a_tensor_lies_within_its_region(api, memory, byte_size, offset):
    register(api, "r", memory(bytes(256)), 64)
    refused(
        infer(
            api,
            "m",
            tensor(shape=[2], parameters=there("r", byte_size, offset)),
        )
    )
    refused(
        infer(
            api, "m", tensor([1, 2], [2]), outputs=wants("r", byte_size, offset)
        ),
        "region 'r'",
    )


def test_a_tensor_is_as_long_as_its_shape_says(api, memory):
    register(api, "r", memory(bytes(64)), 64)
    refused(
        infer(api, "m", tensor(shape=[2], parameters=there("r", 12))),
        "8 bytes, given 12",
    )
    reply = infer(api, "m", tensor([1, 2, 3], [3]), outputs=wants("r", 8))
    refused(reply, "12 bytes", "8")


def test_data_come_once(api, memory):
    register(api, "r", memory(bytes(64)), 64)
    both = {**there("r", 8), "binary_data_size": 8}
    refused(
        infer(api, "m", tensor([1, 2], [2], parameters=there("r", 8))), "twice"
    )
    refused(
        infer(api, "m", tensor(shape=[2], parameters=both), tail=b"12345678")
    )


def test_memory_that_shrank_is_no_failure_of_ours(api, memory):
    key = memory(bytes(64))
    register(api, "r", key, 64)
    os.truncate(f"/dev/shm{key}", 4)
    refused(
        infer(api, "m", tensor(shape=[2], parameters=there("r", 8))), "shorter"
    )
    refused(
        infer(api, "m", tensor([1, 2], [2]), outputs=wants("r", 8)), "shorter"
    )
    assert os.path.getsize(f"/dev/shm{key}") == 4


def test_a_request_brings_no_more_than_a_body_may(api, memory):
    register(api, "r", memory(bytes(8192)), 8192)
    assert (
        infer(
            api, "m", tensor(shape=[1024], parameters=there("r", 4096))
        ).status
        == 200
    )
    refused(
        infer(api, "m", tensor(shape=[1025], parameters=there("r", 4100))),
        "4,096",
    )


def test_a_region_belongs_to_the_key_that_registered_it(api, memory):
    register(api, "r", memory(NUMBERS.tobytes()), 24)
    entry = tensor(shape=[2], parameters=there("r", 8))
    for key in ("user-key", "other-key"):
        assert regions(api, key=key) == []
        assert (
            api.ask("GET", f"{REGIONS}/region/r/status", key=key).status == 404
        )
        assert api.ask("POST", f"{REGIONS}/unregister", key=key).status == 200
    body = json.dumps({"inputs": [entry]}).encode()
    reply = api.ask("POST", "/v2/models/m/infer", body, key="user-key")
    assert (reply.status, "'r'" in reply.error) == (404, True)
    body = json.dumps(
        {"inputs": [tensor([1], [1])], "outputs": wants("r", 8)}
    ).encode()
    assert (
        api.ask("POST", "/v2/models/m/infer", body, key="user-key").status
        == 404
    )
    assert infer(api, "m", entry).status == 200
    assert (
        register(api, "r", memory(bytes(8)), 8, caller="user-key").status == 200
    )
    assert len(regions(api)) == len(regions(api, key="user-key")) == 1


def test_regions_are_counted(api, memory):
    key = memory(bytes(64))
    statuses = [
        register(api, f"r{number}", key, 64).status for number in range(65)
    ]
    assert statuses == [200] * 64 + [400]
    assert register(api, "more", key, 64, caller="user-key").status == 200


def test_memory_of_devices_is_not_taken(api):
    assert api.ask("GET", "/v2/cudasharedmemory/status").json == []
    assert api.ask("POST", "/v2/cudasharedmemory/unregister").status == 200
    reply = api.ask("POST", "/v2/cudasharedmemory/region/a/register", b"{}")
    assert (reply.status, "system shared memory" in reply.error) == (501, True)
