"""Every datatype of v2, in JSON and in binary, both ways: what goes in comes out."""

import asyncio
import json
import math
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.protocols.v2.values import pack_bytes, unpack_bytes
from tests.helpers.gateways import InMemoryApi
from tests.helpers.v2 import (
    HEADER,
    a_mirror,
    binary,
    infer,
    mirror,
    outputs_of,
    refused,
    tensor,
)

CODES = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
    "FP16": "e",
}
INTEGERS = [kind for kind in CODES if "INT" in kind]
IN_JSON = [kind for kind in CODES if kind != "FP16"] + ["BYTES"]
KINDS = [*CODES, "BF16", "BYTES"]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    api = InMemoryApi()
    worker = api.worker(tmp_path_factory.mktemp("v2") / "w", mirror)
    there = {"sockets": [worker.path]}
    api.update(
        *(
            a_mirror(f"m-{kind}", ("x", kind, [-1, -1]), **there)
            for kind in KINDS
        ),
        *(
            a_mirror(f"row-{kind}", ("x", kind, [-1, 3]), **there)
            for kind in KINDS
        ),
        a_mirror(
            "mixed",
            ("a", "BYTES", [-1]),
            ("b", "FP16", [-1, 2]),
            ("c", "INT64", [-1]),
            **there,
        ),
    )
    yield api
    api.runner.run(worker.stop())
    api.close()


def values_of(kind):
    """Values that the datatype holds exactly, and that JSON can say."""
    if kind == "BOOL":
        return st.booleans()
    if kind == "BYTES":
        return st.text(max_size=8)
    if kind in INTEGERS:
        bits = int(kind.lstrip("UINT"))
        low, high = (
            (0, 2**bits - 1)
            if kind.startswith("U")
            else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
        return st.integers(low, high) | st.sampled_from([low, high])
    # JSON knows one NaN only.
    return st.floats(width=64 if kind == "FP64" else 32).map(
        lambda value: math.nan if math.isnan(value) else value
    )


def raw_of(kind, values):
    if kind == "BYTES":
        return pack_bytes([value.encode() for value in values])
    return struct.pack(f"<{len(values)}{CODES[kind]}", *values)


def same(first, second):
    return len(first) == len(second) and all(
        a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))
        for a, b in zip(first, second, strict=True)
    )


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(IN_JSON), st.integers(0, 4), st.data())
def test_json_and_binary_agree_both_ways(api, kind, rows, data):
    values = data.draw(
        st.lists(values_of(kind), min_size=3 * rows, max_size=3 * rows)
    )
    raw = raw_of(kind, values)
    nested = [values[at : at + 3] for at in range(0, len(values), 3)]
    model = data.draw(st.sampled_from([f"m-{kind}", f"row-{kind}"]))
    shape = [rows, 3]
    asks = {"parameters": {"binary_data_output": True}}
    for sent in (values, nested):
        entry = tensor(sent, shape, kind)
        assert outputs_of(infer(api, model, entry, **asks)) == [
            ("x_out", kind, shape, raw)
        ]
        ((*head, got),) = outputs_of(infer(api, model, entry))
        assert (head, same(got, values)) == (["x_out", kind, shape], True)
    entry = tensor(
        shape=shape, datatype=kind, parameters={"binary_data_size": len(raw)}
    )
    for _ in range(2):  # the second time what the head means is known
        assert outputs_of(binary(api, model, entry, tail=raw, **asks)) == [
            ("x_out", kind, shape, raw)
        ]
        ((*_, got),) = outputs_of(binary(api, model, entry, tail=raw))
        assert same(got, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_every_datatype_comes_back_as_it_went(api, kind, rows):
    size = {"BF16": 2, "BYTES": 0}.get(kind) or struct.calcsize(
        CODES.get(kind, "b")
    )
    raw = (
        pack_bytes([b"\xff\x00", b"", b"\n"] * rows)
        if kind == "BYTES"
        else bytes(i % 2 for i in range(size * 3 * rows))
    )
    entry = tensor(
        shape=[rows, 3],
        datatype=kind,
        parameters={"binary_data_size": len(raw)},
    )
    reply = binary(
        api,
        f"m-{kind}",
        entry,
        tail=raw,
        parameters={"binary_data_output": True},
    )
    assert reply.headers[b"content-type"] == b"application/octet-stream"
    assert outputs_of(reply) == [("x_out", kind, [rows, 3], raw)]


@pytest.mark.parametrize("kind", ["FP16", "BF16"])
def test_half_precision_has_no_form_in_json(api, kind):
    refused(
        infer(api, f"m-{kind}", tensor([1, 2], datatype=kind)),
        "'x'",
        kind,
        "binary",
    )
    entry = tensor(datatype=kind, parameters={"binary_data_size": 4})
    refused(
        binary(api, f"m-{kind}", entry, tail=b"1234"), "'x_out'", "binary_data"
    )
    as_json = [{"name": "x_out", "parameters": {"binary_data": False}}]
    refused(
        binary(api, f"m-{kind}", entry, tail=b"1234", outputs=as_json),
        "'x_out'",
        "binary_data",
    )


def test_bytes_that_are_no_text_need_binary_output(api):
    entry = tensor(
        shape=[1, 1], datatype="BYTES", parameters={"binary_data_size": 5}
    )
    refused(
        binary(api, "m-BYTES", entry, tail=b"\x01\0\0\0\xff"),
        "'x_out'",
        "binary",
    )


def test_nan_and_infinity_are_bare_in_json_both_ways(api):
    body = b'{"id": "NaN", "inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[[NaN,Infinity,-Infinity,1]]}]}'
    reply = api.ask("POST", "/v2/models/m-FP32/infer", body)
    assert b'"data":[NaN,Infinity,-Infinity,1.0]' in reply.body
    assert json.loads(reply.body)["id"] == "NaN"
    entry = tensor(
        shape=[1, 1], datatype="FP64", parameters={"binary_data_size": 8}
    )
    assert (
        b"[NaN]"
        in binary(api, "m-FP64", entry, tail=struct.pack("<d", math.nan)).body
    )


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"INT64","data":[NaN]}]}',
        b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"INT64","data":[Infinity]}]}',
        b'{"inputs":[{"name":"x","shape":[1,NaN],"datatype":"INT64","data":[1]}]}',
        b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"INT64","data":NaN}]}',
        b'{"id":"\\ud800","inputs":[{"name":"x","shape":[1,1],"datatype":"INT64","data":[NaN]}]}',
        b'{"id":"\xff","inputs":[{"name":"x","shape":[1,1],"datatype":"INT64","data":[NaN]}]}',
        b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"INT64","data":[NaN,'
        + b"[" * 5000
        + b"]" * 5000
        + b"]}]}",
        b'{"parameters":{"a":1'
        + b"0" * 5000
        + b'},"inputs":[{"name":"x","data":[NaN]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"INT64","data":[1e999,NaN]}]}',
        b'{"inputs":[NaN',
        b"NaN",
        b"[NaN]",
    ],
)
def test_nan_elsewhere_is_refused(api, body):
    refused(api.ask("POST", "/v2/models/m-INT64/infer", body))


@pytest.mark.parametrize(
    "number",
    [b"1e999", b"-1e999", b"1e40", b"1" + b"0" * 400, b"true", b"null", b'"1"'],
)
def test_beside_nan_numbers_are_as_strict_as_elsewhere(api, number):
    for rest in (b"1", b"NaN"):
        body = (
            b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[%b,%b]}]}'
            % (number, rest)
        )
        refused(api.ask("POST", "/v2/models/m-FP32/infer", body))


def test_json_with_nan_is_limited(api):
    body = (
        b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[NaN'
        + b" " * (4 << 20)
        + b"]}]}"
    )
    refused(api.ask("POST", "/v2/models/m-FP32/infer", body), "NaN", "binary")


@pytest.mark.parametrize("count", [1, 100_000])
def test_a_lone_surrogate_becomes_a_replacement_character(api, count):
    texts = ",".join([r'"a\ud83d b"', r'"\ud83d\ude00"', '"c"'] * count)
    entry = f'{{"name":"x","shape":[1,{3 * count}],"datatype":"BYTES","data":[{texts}]}}'
    body = rf'{{"id":"\udc00","inputs":[{entry}]}}'
    reply = api.ask("POST", "/v2/models/m-BYTES/infer", body.encode())
    ((_, _, shape, got),) = outputs_of(reply)
    assert shape == [1, 3 * count]
    assert got == ["a\ufffd b", "\U0001f600", "c"] * count
    assert reply.json["id"] == "\ufffd"


@pytest.mark.parametrize("kind", ["FP32", "BYTES"])
def test_a_large_body_is_not_searched_for_lone_surrogates(
    api, kind, monkeypatch
):
    def mend(body):
        raise AssertionError("it was searched")

    monkeypatch.setattr("modelmill.protocols.base.mended", mend)
    values = [1.0] * 300_000 if kind == "FP32" else ["\U0001f600"] * 100_000
    ((_, _, _, got),) = outputs_of(
        infer(api, f"m-{kind}", tensor(values, [1, len(values)], kind))
    )
    assert got == values


def test_large_json_is_exact(api):
    array = np.random.default_rng(0).random((300, 1000), np.float32)
    for data in (array.ravel().tolist(), array.tolist()):
        reply = infer(api, "m-FP32", tensor(data, array.shape))
        ((_, _, shape, got),) = outputs_of(reply)
        assert shape == [300, 1000]
        assert np.array_equal(np.array(got, np.float32).reshape(shape), array)
    numbers = (2**63 - 1 - np.arange(200_000)).tolist()
    ((_, _, _, got),) = outputs_of(
        infer(api, "m-INT64", tensor(numbers, [1, len(numbers)], "INT64"))
    )
    assert got == numbers
    texts = [f"[{number}," for number in range(200_000)]
    ((_, _, _, got),) = outputs_of(
        infer(api, "m-BYTES", tensor(texts, [1, len(texts)], "BYTES"))
    )
    assert got == texts


@pytest.mark.parametrize("kind", ["FP32", "INT64", "BYTES"])
def test_others_are_served_while_a_large_request_is_read(api, kind):
    count = 300_000
    values = (
        [str(number) for number in range(count)]
        if kind == "BYTES"
        else list(range(count))
    )
    body = json.dumps({"inputs": [tensor(values, [1, count], kind)]}).encode()

    async def ask():
        large = asyncio.create_task(
            api._ask(
                "POST", f"/v2/models/m-{kind}/infer", body, {}, "admin-key"
            )
        )
        turns = 0
        while not large.done():
            turns += 1
            await asyncio.sleep(0)
        return turns, large.result()

    turns, reply = api.runner.run(ask())
    assert len(outputs_of(reply)[0][3]) == count
    assert turns > 100


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace(b"7,", b"7,,", 1),
        lambda text: text.replace(b"7,", b'"7",', 1),
        lambda text: text.replace(b"7,", b"null,", 1),
        lambda text: text.replace(b"7,", b"{},", 1),
        lambda text: text.replace(b"7,", b"1e999,", 1),
        lambda text: text.replace(b"7,", b"[],", 1),
        lambda text: text.replace(b"7,", b"", 1),
        lambda text: b'"' + text[1:-1].replace(b'"', b"") + b'"',
        lambda text: text[:-1] + b",[]]",
        lambda text: text[:-1] + b",[1]]",
        lambda text: b"[" * 40 + text + b"]" * 40,
    ],
)
def test_a_large_list_is_read_as_strictly_as_a_small_one(api, spoil):
    for count in (10, 400_000):
        data = spoil(
            json.dumps(list(range(count)), separators=(",", ":")).encode()
        )
        body = (
            b'{"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","data":%b}]}'
            % (count, data)
        )
        refused(
            api.ask("POST", "/v2/models/m-FP32/infer", body),
            "'x'" if b",," not in data else "not valid",
        )


def test_several_datatypes_in_one_request(api):
    texts = pack_bytes([b"a", b"\xff"])
    halves = np.array([[1, 2], [3, 4]], np.float16).tobytes()
    inputs = [
        tensor([5, 2**60 + 1], (2,), "INT64", "c"),
        tensor(
            shape=[2, 2],
            datatype="FP16",
            name="b",
            parameters={"binary_data_size": len(halves)},
        ),
        tensor(
            shape=[2],
            datatype="BYTES",
            name="a",
            parameters={"binary_data_size": len(texts)},
        ),
    ]
    asked = [
        {"name": "c_out"},
        {"name": "a_out", "parameters": {"binary_data": True}},
        {"name": "b_out", "parameters": {"binary_data": True}},
    ]
    reply = binary(api, "mixed", *inputs, tail=halves + texts, outputs=asked)
    assert outputs_of(reply) == [
        ("c_out", "INT64", [2], [5, 2**60 + 1]),
        ("a_out", "BYTES", [2], texts),
        ("b_out", "FP16", [2, 2], halves),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        b"\x01\0\0\0",
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\xffabc",
        b"\x02\0\0\0a",
        b"\0\0\0\0\0",
        b"\0\0\0\0\0\0\0\0",
        b"\0\0\0\x80a",
    ],
)
@pytest.mark.parametrize("kind", ["m", "row"])
def test_elements_of_bytes_must_fill_the_data_exactly(api, data, kind):
    shape = [1, 1] if kind == "m" else [1, 3]
    entry = tensor(
        shape=shape,
        datatype="BYTES",
        parameters={"binary_data_size": len(data)},
    )
    refused(binary(api, f"{kind}-BYTES", entry, tail=data), "'x'")


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_bytes_are_packed_as_they_were(values):
    assert unpack_bytes(pack_bytes(values)) == values


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 4))
def test_no_bytes_can_mislead(api, data, count):
    entry = tensor(
        shape=[1, count],
        datatype="BYTES",
        parameters={"binary_data_size": len(data)},
    )
    reply = binary(
        api,
        "m-BYTES",
        entry,
        tail=data,
        parameters={"binary_data_output": True},
    )
    if reply.status == 200:
        assert len(unpack_bytes(data)) == count
        assert outputs_of(reply)[0][3] == data
    else:
        refused(reply, "'x'")


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200),
    st.none() | st.integers(0, 220) | st.text(max_size=3),
    st.sampled_from(KINDS),
)
def test_random_bytes_are_refused(api, body, length, kind):
    headers = {} if length is None else {HEADER: str(length).encode()}
    refused(api.ask("POST", f"/v2/models/m-{kind}/infer", body, headers))


WORDS = [
    b"NaN",
    b"Infinity",
    b"null",
    b"1e999",
    b'"',
    b"[",
    b"]",
    b",",
    b"-",
    b"0",
    b"\\ud800",
    b"\xff",
    b"{",
    b"}",
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(IN_JSON),
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from(WORDS)), max_size=3),
    st.data(),
)
def test_a_damaged_list_is_never_our_failure(api, kind, insertions, data):
    values = data.draw(st.lists(values_of(kind), min_size=2, max_size=2))
    body = json.dumps(
        {"inputs": [tensor(values, [1, 2], kind)], "id": "a"}
    ).encode()
    for place, word in insertions:
        at = round(place * len(body))
        body = body[:at] + word + body[at:]
    reply = api.ask("POST", f"/v2/models/m-{kind}/infer", body)
    assert reply.status in (200, 400), reply.body
    if reply.status == 400:
        assert msgspec.json.decode(reply.body).keys() == {"error"}
