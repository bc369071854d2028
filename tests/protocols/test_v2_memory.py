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

from tests.helpers.gateways import Door
from tests.protocols.v2 import a_mirror, infer, mirror, outputs_of, refused, tensor

REGIONS = "/v2/systemsharedmemory"


@pytest.fixture
def door(tmp_path):
    door = Door(body_bytes=4096)
    worker = door.worker(tmp_path / "w", mirror)
    there = {"sockets": [worker.path]}
    door.update(
        a_mirror("m", ("x", "FP32", [-1]), **there),
        a_mirror("texts", ("x", "BYTES", [-1]), **there),
    )
    door.gateway.shared_memory = True
    yield door
    door.ask("POST", f"{REGIONS}/unregister")
    door.ask("POST", f"{REGIONS}/unregister", key="user-key")
    door.runner.run(worker.stop())
    door.close()


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


def register(door, name, key, byte_size, offset=0, caller="admin-key"):
    body = json.dumps({"key": key, "offset": offset, "byte_size": byte_size}).encode()
    return door.ask("POST", f"{REGIONS}/region/{name}/register", body, key=caller)


def regions(door, **how):
    return door.ask("GET", f"{REGIONS}/status", **how).json


def there(region, byte_size, offset=None):
    where = {"shared_memory_region": region, "shared_memory_byte_size": byte_size}
    return where if offset is None else {**where, "shared_memory_offset": offset}


def wants(region, byte_size, offset=None, **rest):
    return [
        {"name": "x_out", "parameters": {**there(region, byte_size, offset), **rest}}
    ]


NUMBERS = np.array([1, 2, 3, 4, 5, 6], np.float32)


def test_shared_memory_is_off_by_default(memory):
    door = Door()
    door.update(a_mirror("m", ("x", "FP32", [-1])))
    reply = register(door, "in", memory(bytes(8)), 8)
    assert reply.status == 403
    assert "shared_memory" in reply.error
    assert regions(door) == []
    assert door.ask("POST", f"{REGIONS}/unregister").status == 200
    reply = infer(door, "m", tensor(shape=[2], parameters=there("in", 8)))
    assert reply.status == 403
    door.close()


def test_tensors_are_read_and_left_in_shared_memory(door, memory):
    source, target = memory(NUMBERS.tobytes()), memory(bytes(64))
    assert register(door, "in", source, 24).status == 200
    assert register(door, "out", target, 32, offset=16).status == 200
    entry = tensor(shape=[2], parameters=there("in", 8, 4))
    reply = infer(door, "m", entry, outputs=wants("out", 8, 8))
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
    assert outputs_of(infer(door, "m", entry)) == [("x_out", "FP32", [2], [2.0, 3.0])]
    assert infer(door, "m", tensor([7], [1]), outputs=wants("out", 8)).status == 200
    assert Path(f"/dev/shm{target}").read_bytes()[16:20] == np.float32(7).tobytes()


def test_texts_are_left_with_their_lengths(door, memory):
    target = memory(bytes(16))
    register(door, "out", target, 16)
    assert (
        infer(
            door, "texts", tensor(["ab"], [1], "BYTES"), outputs=wants("out", 16)
        ).status
        == 200
    )
    assert Path(f"/dev/shm{target}").read_bytes()[:6] == b"\x02\0\0\0ab"


def test_regions_are_listed_and_let_go(door, memory):
    key = memory(bytes(64))
    register(door, "a", key, 16, offset=8)
    register(door, "b", key, 64)
    described = {"name": "a", "key": key, "offset": 8, "byte_size": 16}
    assert regions(door) == [
        described,
        {"name": "b", "key": key, "offset": 0, "byte_size": 64},
    ]
    assert door.ask("GET", f"{REGIONS}/region/a/status").json == [described]
    reply = register(door, "a", key, 8)
    assert reply.status == 409
    assert "already" in reply.error
    assert door.ask("POST", f"{REGIONS}/region/a/unregister").status == 200
    assert door.ask("POST", f"{REGIONS}/region/a/unregister").status == 200
    assert door.ask("GET", f"{REGIONS}/region/a/status").status == 404
    assert register(door, "a", key, 8).status == 200
    assert door.ask("POST", f"{REGIONS}/unregister").status == 200
    assert regions(door) == []


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_left_behind(door, memory):
    infer(door, "m", tensor([1], [1]))
    key, before = memory(bytes(64)), open_files()
    for number in range(20):
        register(door, f"r{number}", key, 64)
        register(door, f"r{number}", key, 64)
        register(door, f"s{number}", key, 65)
    assert open_files() == before + 20
    door.ask("POST", f"{REGIONS}/unregister")
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
def test_a_key_that_is_no_name_of_shared_memory_is_refused(door, key):
    refused(register(door, "in", key, 8), "key")


def test_what_is_not_there_is_not_found(door):
    assert register(door, "in", "/modelmill-test-absent", 8).status == 404


def test_a_link_is_not_followed(door, memory, tmp_path):
    outside = tmp_path / "secret"
    outside.write_bytes(bytes(64))
    link = Path("/dev/shm") / f"modelmill-test-{secrets.token_hex(8)}"
    link.symlink_to(outside)
    try:
        assert register(door, "in", f"/{link.name}", 8).status == 403
    finally:
        link.unlink()


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: os.mkfifo(path)]
)
def test_only_a_file_is_taken(door, make):
    path = Path("/dev/shm") / f"modelmill-test-{secrets.token_hex(8)}"
    make(path)
    try:
        assert register(door, "in", f"/{path.name}", 8).status == 403
    finally:
        subprocess.run(["rm", "-r", str(path)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_memory_of_another_user_is_refused(door, memory):
    key = memory(bytes(8))
    os.chown(f"/dev/shm{key}", 12345, -1)
    reply = register(door, "in", key, 8)
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
def test_a_region_lies_within_its_memory(door, memory, byte_size, offset):
    refused(register(door, "in", memory(bytes(64)), byte_size, offset))


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
def test_a_registration_that_lacks_something_is_refused(door, body):
    refused(door.ask("POST", f"{REGIONS}/region/in/register", body))


@pytest.mark.parametrize("name", ["x" * 300, "a\x00b", "a\nb", "\x1b[31m"])
def test_a_region_has_a_printable_name(door, memory, name):
    refused(register(door, name, memory(bytes(8)), 8), "name")


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
def test_a_tensor_lies_within_its_region(door, memory, byte_size, offset):
    register(door, "r", memory(bytes(256)), 64)
    refused(
        infer(door, "m", tensor(shape=[2], parameters=there("r", byte_size, offset)))
    )
    refused(
        infer(door, "m", tensor([1, 2], [2]), outputs=wants("r", byte_size, offset)),
        "region 'r'",
    )


def test_a_tensor_is_as_long_as_its_shape_says(door, memory):
    register(door, "r", memory(bytes(64)), 64)
    refused(
        infer(door, "m", tensor(shape=[2], parameters=there("r", 12))),
        "8 bytes, given 12",
    )
    reply = infer(door, "m", tensor([1, 2, 3], [3]), outputs=wants("r", 8))
    refused(reply, "12 bytes", "8")


def test_data_come_once(door, memory):
    register(door, "r", memory(bytes(64)), 64)
    both = {**there("r", 8), "binary_data_size": 8}
    refused(infer(door, "m", tensor([1, 2], [2], parameters=there("r", 8))), "twice")
    refused(infer(door, "m", tensor(shape=[2], parameters=both), tail=b"12345678"))


def test_memory_that_shrank_is_no_failure_of_ours(door, memory):
    key = memory(bytes(64))
    register(door, "r", key, 64)
    os.truncate(f"/dev/shm{key}", 4)
    refused(infer(door, "m", tensor(shape=[2], parameters=there("r", 8))), "shorter")
    refused(infer(door, "m", tensor([1, 2], [2]), outputs=wants("r", 8)), "shorter")
    assert os.path.getsize(f"/dev/shm{key}") == 4


def test_a_request_brings_no_more_than_a_body_may(door, memory):
    register(door, "r", memory(bytes(8192)), 8192)
    assert (
        infer(door, "m", tensor(shape=[1024], parameters=there("r", 4096))).status
        == 200
    )
    refused(
        infer(door, "m", tensor(shape=[1025], parameters=there("r", 4100))), "4,096"
    )


def test_a_region_belongs_to_the_key_that_registered_it(door, memory):
    register(door, "r", memory(NUMBERS.tobytes()), 24)
    entry = tensor(shape=[2], parameters=there("r", 8))
    for key in ("user-key", "other-key"):
        assert regions(door, key=key) == []
        assert door.ask("GET", f"{REGIONS}/region/r/status", key=key).status == 404
        assert door.ask("POST", f"{REGIONS}/unregister", key=key).status == 200
    body = json.dumps({"inputs": [entry]}).encode()
    reply = door.ask("POST", "/v2/models/m/infer", body, key="user-key")
    assert (reply.status, "'r'" in reply.error) == (404, True)
    body = json.dumps({"inputs": [tensor([1], [1])], "outputs": wants("r", 8)}).encode()
    assert door.ask("POST", "/v2/models/m/infer", body, key="user-key").status == 404
    assert infer(door, "m", entry).status == 200
    assert register(door, "r", memory(bytes(8)), 8, caller="user-key").status == 200
    assert len(regions(door)) == len(regions(door, key="user-key")) == 1


def test_regions_are_counted(door, memory):
    key = memory(bytes(64))
    statuses = [register(door, f"r{number}", key, 64).status for number in range(65)]
    assert statuses == [200] * 64 + [400]
    assert register(door, "more", key, 64, caller="user-key").status == 200


def test_memory_of_devices_is_not_taken(door):
    assert door.ask("GET", "/v2/cudasharedmemory/status").json == []
    assert door.ask("POST", "/v2/cudasharedmemory/unregister").status == 200
    reply = door.ask("POST", "/v2/cudasharedmemory/region/a/register", b"{}")
    assert (reply.status, "system shared memory" in reply.error) == (501, True)
