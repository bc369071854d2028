"""Requests and answers of the benchmarked servers, encoded and read by hand: V2 binary, V2 JSON, V2
gRPC, raw bytes.

Sources: the Open Inference Protocol v2 (HTTP and gRPC) and Triton's binary tensor extension.
"""

import json
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
DATATYPES = {np.dtype(kind): name for name, kind in NUMPY.items()}

VARINT = 0
FIXED64 = 1
LENGTH = 2
FIXED32 = 5


def v2_binary(
    inputs: dict[str, Array], outputs: list[str]
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an infer call whose tensors, and those of its answer, are binary."""
    document = {
        "inputs": [
            {**_head(*item), "parameters": {"binary_data_size": item[1].nbytes}}
            for item in inputs.items()
        ],
        "outputs": [
            {"name": name, "parameters": {"binary_data": True}}
            for name in outputs
        ],
    }
    head = json.dumps(document, separators=(",", ":")).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    return b"".join(
        [head, *(array.tobytes() for array in inputs.values())]
    ), headers


def v2_json(
    inputs: dict[str, Array], outputs: list[str]
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an infer call in JSON only: flat data, as most clients send it."""
    document = {
        "inputs": [
            {**_head(*item), "data": item[1].ravel().tolist()}
            for item in inputs.items()
        ],
        "outputs": [{"name": name} for name in outputs],
    }
    return json.dumps(document, separators=(",", ":")).encode(), {
        "Content-Type": "application/json"
    }


def _head(name: str, array: Array) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": DATATYPES[array.dtype],
    }


def read_v2(headers: dict[str, str], body: bytes) -> dict[str, Array]:
    """The outputs of a V2 answer over HTTP; `headers` with names in lower case."""
    size = int(headers.get("inference-header-content-length", len(body)))
    document = json.loads(body[:size])
    at = size
    arrays = {}
    for output in document["outputs"]:
        kind = NUMPY[output["datatype"]]
        length = output.get("parameters", {}).get("binary_data_size")
        if length is None:
            array = np.asarray(output["data"], kind)
        else:
            array = np.frombuffer(body[at : at + length], kind)
            at += length
        arrays[output["name"]] = array.reshape(output["shape"])
    return arrays


# ---- protobuf, as much as an infer call needs (protobuf.dev/programming-guides/encoding)


def grpc_infer(
    model: str, inputs: dict[str, Array], outputs: list[str]
) -> bytes:
    """A `ModelInferRequest` with `raw_input_contents`."""
    parts = [_field(1, model.encode())]
    for name, array in inputs.items():
        shape = b"".join(_varint(side) for side in array.shape)
        tensor = [
            _field(1, name.encode()),
            _field(2, DATATYPES[array.dtype].encode()),
            _field(3, shape),
        ]
        parts.append(_field(5, b"".join(tensor)))
    parts += [_field(6, _field(1, name.encode())) for name in outputs]
    return b"".join(
        [*parts, *(_field(7, array.tobytes()) for array in inputs.values())]
    )


def read_grpc(message: bytes) -> dict[str, Array]:
    """The outputs of a `ModelInferResponse` that uses `raw_output_contents`."""
    heads, blobs = [], []
    for number, value in _fields(message):
        if number == 5:
            heads.append(_fields(value))
        elif number == 6:
            blobs.append(value)
    arrays = {}
    for head, blob in zip(heads, blobs, strict=True):
        name = next(value.decode() for number, value in head if number == 1)
        datatype = next(value.decode() for number, value in head if number == 2)
        arrays[name] = np.frombuffer(blob, NUMPY[datatype]).reshape(
            _shape(head)
        )
    return arrays


def _shape(tensor: list[tuple[int, bytes]]) -> list[int]:
    sides: list[int] = []
    for number, value in tensor:
        at = 0
        while number == 3 and at < len(
            value
        ):  # packed or not, a repeated varint reads the same
            side, at = _read_varint(value, at)
            sides.append(side)
    return sides


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | LENGTH) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """Numbers and values of a message; a varint's value is its bytes."""
    found, at = [], 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind, start = tag & 7, at
        if kind == LENGTH:
            length, start = _read_varint(data, at)
            at = start + length
        elif kind == VARINT:
            _, at = _read_varint(data, at)
        else:
            at += {FIXED64: 8, FIXED32: 4}[kind]
        found.append((tag >> 3, bytes(data[start:at])))
    return found
